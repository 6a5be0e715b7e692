"""Phantom study, stage 1: the demo's masked autoencoder, trained longer.

Command:   python tools/phantom_study.py --out runs/phantom_study
           (or: medclip train --config configs/phantom/mae.py --workdir W --config.data.shards=SHARDS)
Hardware:  2 CPU cores.
Time, expected score: not measured yet at this length; the demo's shorter run is in configs/demo.
"""

import runpy
from pathlib import Path

_demo = runpy.run_path(str(Path(__file__).parents[1] / "demo" / "mae.py"))


def get_config():
    config = _demo["get_config"]()
    config.steps = 150
    return config
