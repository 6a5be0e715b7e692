"""CMR-CLIP's loss, InfoNCE of images and impressions, with all else as in configs/strong/demo.py.

To compare recipes and not towers: on phantoms of chest CT instead of series of frames.

Shards:    as `medclip demo` prepares them
Command:   medclip train --config configs/strong/against_cmr_clip.py --workdir runs/against_cmr_clip \
               --config.data.shards=SHARDS --config.initial_weights.workdir=STAGE1 --config.steps=300
           (SHARDS and STAGE1: medclip-demo/shards and medclip-demo/mae after `medclip demo`)
Hardware:  2 CPU cores.
Time:      2 minutes for 300 steps (measured).
Expected:  mean zero-shot AUROC of eleven findings on 230 unseen phantoms after 300 steps, three seeds:
           0.833 (0.819 to 0.845); configs/strong/demo.py 0.861 (measured, docs/reference/strong.md).
"""

from . import demo


def get_config():
    config = demo.get_config()
    config.objective.loss = "info_nce"
    config.objective.logit_scale = 1.0 / 0.07
    config.objective.prompts.weight = 0.0
    return config
