"""Demo, stage 1: a small masked autoencoder on phantoms.

Command:   medclip demo (or: medclip train --config configs/demo/mae.py --workdir W --config.data.shards=SHARDS)
Hardware:  2 CPU cores.
"""

from medclip_jax.objectives import mae
from medclip_jax.training.config import base_config

WINDOWS = ((-1000.0, -200.0), (-150.0, 250.0), (150.0, 1000.0))
"""Lung, soft tissue, calcium and contrast: one channel each."""


def vision(config):
    """The tower that both stages share."""
    config.patch = (8, 8, 8)
    config.width = 128
    config.depth = 4
    config.heads = 4
    config.pooling = "mean"
    config.windows = WINDOWS
    config.dtype = "float32"


def get_config():
    config = base_config()
    config.objective = mae.default_config()
    vision(config.objective.vision)
    config.objective.decoder = {"width": 64, "depth": 1, "heads": 2}
    config.data.text_length = 64
    config.batch_size = 32
    config.steps = 150
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.log.every_steps = 5
    config.log.tensorboard = False
    return config
