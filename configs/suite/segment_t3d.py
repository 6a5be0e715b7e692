"""The suite's segmentation of organs and lesions with T3D's tower and a U-Net's decoder.

Command:   medclip evaluate --suite phantom --out medclip-suite
           or: medclip train --config configs/suite/segment_t3d.py --workdir W \
               --config.data.shards=medclip-suite/shards --config.initial_weights.workdir=RUN
Hardware:  2 CPU cores.
Time:      docs/downstream.md has the suite's.
Expected:  docs/downstream.md has the suite's.
"""

from ..t3d import demo
from .segment import segmentation_of


def get_config():
    return segmentation_of(demo.get_config())
