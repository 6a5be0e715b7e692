"""The demo's control: one frame of the short-axis cine, in which nothing moves.

Command:   medclip demo --system cmr_clip, which trains it beside the demo
           or: medclip train --config configs/cmr_clip/demo_still.py --workdir W --config.data.shards=SHARDS
Hardware:  2 CPU cores.
Time:      2.1 minutes for 800 steps (measured, with other work of low priority beside it).
Expected:  accuracy of four diagnoses by 32 examples of each 0.59, with all frames 0.75 (measured).
"""

from . import demo


def get_config():
    config = demo.get_config()
    config.data.views = ("cine_sa",)
    # Drawn in training; in evaluation the middle one, which may be any part of the beat.
    config.data.frames = config.objective.vision.frames = 1
    return config
