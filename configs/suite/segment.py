"""The suite's segmentation of organs and lesions: the demo's tower with UNETR's decoder, for a few steps.

`segmentation_of` makes the same of another system's config; `segment_*.py` beside this file do so.

Command:   medclip evaluate --suite phantom --out medclip-suite
           or: medclip train --config configs/suite/segment.py --workdir W \
               --config.data.shards=medclip-suite/shards --config.initial_weights.workdir=RUN
Hardware:  2 CPU cores.
Time:      docs/downstream.md has the suite's.
Expected:  docs/downstream.md has the suite's.
"""

from medclip_jax.objectives import segment

from ..demo import contrastive


def segmentation_of(config):
    """A config of a pretraining, changed to segment with its volume tower."""
    vision = config.objective.vision
    config.objective = segment.default_config()
    config.objective.vision = vision
    vision.pooling = "mean"  # a decoder reads tokens, and needs no pooling
    if vision.kind == "vit":
        vision.extremes = False
    vision.augment.shift_voxels = (0, 0, 0)
    config.objective.feature_size = 8
    # Half of a volume: where an organ lies tells most of what it is, and is learned first.
    config.objective.crops.update(shape=(32, 60, 72), count=1)
    config.initial_weights.include = (r"^vision/(?!.*/(grid_|extreme))",)
    config.batch_size = 1
    config.mesh.data = 1  # one volume is for one device
    config.steps = 40
    # A weight moves by no more than this in a step, and the decoder's have far to go.
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 10
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.frozen = ()
    config.optimizer.multipliers = ((r"^vision/", 0.1),)
    config.log.every_steps = 10
    config.log.tensorboard = False
    return config


def get_config():
    return segmentation_of(contrastive.get_config())
