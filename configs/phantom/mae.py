"""Phantom study, stage 1: the demo's masked autoencoder on more phantoms.

Command:   python tools/phantom_study.py --out runs/phantom_study
           (or: medclip train --config configs/phantom/mae.py --workdir W --config.data.shards=SHARDS)
Hardware:  2 shared CPU cores.
Time:      1 minute for 150 steps (measured, other work on the machine).
Expected:  no score of its own; loss 1.17 → 0.79 (measured).
"""

from ..demo import mae


def get_config():
    return mae.get_config()
