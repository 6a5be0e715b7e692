"""Your own scans, stage 1: a masked autoencoder for a laptop or one GPU, whatever the archive's size.

Command:   medclip train --config configs/own/mae.py --workdir runs/mae --config.data.shards=SHARDS
           (medclip check --config configs/own/mae.py --chip here --config.data.shards=SHARDS: what it takes)
Shards:    medclip prepare --table studies.csv --out SHARDS --shape 112 224 224 --spacing 3 1.5 1.5
           (any other shape and spacing will do)
Hardware:  a laptop, or one GPU from 16 GB; on a GPU, bfloat16 is about twice as fast:
           --config.objective.vision.dtype=bfloat16
Time:      not measured on an archive; `medclip check` estimates it.
Expected:  no score of its own; the reconstruction error falls.
"""

from medclip_jax.objectives import mae
from medclip_jax.training.config import base_config


def vision(config):
    """The tower that both stages share."""
    config.patch = ()  # divides the volumes of the shards, near to cubes of 24 mm
    config.width = 256
    config.depth = 6
    config.heads = 4
    config.windows = (
        (-1000.0, 200.0),  # lung
        (-160.0, 240.0),  # soft tissue
        (100.0, 1000.0),  # calcium, contrast, bone
    )
    config.pooling = "mean"
    config.dtype = "float32"
    config.scan = True  # the blocks are compiled once


def training(config):
    """What both stages share of the rest."""
    config.batch_size = 0  # 8 to 32, by the number of training volumes
    config.microbatches = 0  # by the memory
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.checkpoint.every_steps = 200


def get_config():
    config = base_config()
    config.objective = mae.default_config()
    vision(config.objective.vision)
    config.objective.decoder.update(width=128, depth=2, heads=2)
    training(config)
    config.epochs = 30.0
    return config
