"""CMR-CLIP on beating-heart phantoms: cine of the long and short axis, and late enhancement.

Command:   medclip demo --system cmr_clip
           or: medclip train --config configs/cmr_clip/demo.py --workdir W --config.data.shards=SHARDS
Hardware:  2 CPU cores.
Time:      8.1 minutes for 800 steps (measured, with other work of low priority beside it); the demo 11.4.
Expected:  243 unseen phantoms, one seed (measured): mean zero-shot AUROC of thirteen findings by positive
           prompts alone 0.84, by pairs 0.85; four diagnoses by an MLP on frozen vectors 0.79 (chance 0.29).
           Scar, regional motion and the aortic root are not learned (docs/reference/cmr-clip.md).
"""

from medclip_jax.objectives import cmr_clip
from medclip_jax.training.config import base_config

from .demo_data import expect

FRAMES = 19  # two cines of 8 phases, three slices of late enhancement


def get_config():
    config = base_config()
    expect(config)
    config.data.frames = FRAMES
    # Statements are worded as prompts are; one or two at a time, as short as those.
    config.data.text.update(report=0.0, impression=0.7, some_statements=0.3)
    config.data.most_statements = 2
    config.data.text_length = 96
    config.objective = cmr_clip.default_config()
    vision = config.objective.vision
    vision.update(patch=(12, 12), width=96, depth=2, heads=2, frames=FRAMES, views=3, dtype="float32")
    vision.motion = 10.0
    vision.augment.gain = 0.1  # no random boxes: that a ventricle is dilated is said in mm
    config.objective.text.update(width=128, depth=1, heads=2, dtype="float32")
    config.objective.embedding_width = 128
    config.objective.centered = True
    config.batch_size = 32
    config.steps = 800
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 40
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.log.every_steps = 20
    config.log.tensorboard = False
    return config
