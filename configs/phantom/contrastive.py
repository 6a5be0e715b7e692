"""Phantom study, stage 2: the demo's Cardiac-CLIP, trained longer.

Command:   python tools/phantom_study.py --out runs/phantom_study
           (or: medclip train --config configs/phantom/contrastive.py --workdir W \
               --config.data.shards=SHARDS --config.initial_weights.workdir=STAGE1)
Hardware:  2 CPU cores.
Time, expected score: not measured yet at this length; the demo's shorter run is in configs/demo.
"""

import runpy
from pathlib import Path

_demo = runpy.run_path(str(Path(__file__).parents[1] / "demo" / "contrastive.py"))


def get_config():
    config = _demo["get_config"]()
    config.steps = 700
    config.evaluation.every_steps = 350
    config.evaluation.evaluators = {"zero_shot": {"draws": 0}}  # the test split gets its intervals at the end
    return config
