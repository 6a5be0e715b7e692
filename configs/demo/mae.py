"""Demo, stage 1: a small masked autoencoder on phantoms.

Command:   medclip demo
           or: medclip train --config configs/demo/mae.py --workdir W --config.data.shards=SHARDS
Hardware:  2 CPU cores.
Time:      1.1 minutes for 70 steps (measured).
Expected:  no score of its own; loss 0.18 after 10 steps, 0.16 after 70 (measured).
"""

from medclip_jax.objectives import mae
from medclip_jax.training.config import base_config

from .data import expect

CELL = (4, 4, 4)
"""Voxels that the tower sees as one, by channels of several windows."""

WINDOWS = (
    (-1000.0, 0.0),  # lung, and its consolidation or effusion
    (-200.0, 300.0),  # soft tissue
    (100.0, 500.0),  # calcium, contrast
    (400.0, 1200.0),  # calcium beside contrast
    (-600.0, 100.0),  # nodules and vessels in the lung
    (-1024.0, -850.0),  # emphysema
    (-200.0, 600.0),  # what stands out on all sides: nodules
)
PROJECTIONS = ("mean", "mean", "max", "max", "max", "min", "blob")
STANDARDIZE = (  # mean and standard deviation of each channel over 100 such phantoms
    (0.084, 0.824),
    (-0.645, 0.468),
    (-0.774, 0.494),
    (-0.993, 0.041),
    (0.197, 0.883),
    (0.293, 0.882),
    (-0.631, 0.190),
)


def vision(config):
    """The tower that both stages share."""
    config.cell = CELL
    config.patch = (4, 3, 3)
    config.peaks = True
    config.skip = True
    config.width = 128
    config.depth = 1
    config.heads = 2
    config.windows = WINDOWS
    config.projections = PROJECTIONS
    config.extremes = True
    config.standardize = STANDARDIZE
    config.dtype = "float32"


def get_config():
    config = base_config()
    expect(config)
    config.objective = mae.default_config()
    vision(config.objective.vision)
    config.objective.vision.pooling = "mean"
    config.objective.decoder = {"width": 128, "depth": 1, "heads": 2}
    config.objective.decoder_windows = ((-1350.0, 150.0), (-160.0, 240.0))  # lung, mediastinum
    config.objective.decoder_from_mean = True
    config.objective.normalize_patches = False
    config.batch_size = 32
    config.steps = 70
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    # Drawn at random and kept so: what a masked autoencoder makes of it drowns plaques, which are few voxels.
    config.optimizer.frozen = (r"^vision/transformer/embed/", r"^vision/transformer/extreme_")
    config.log.every_steps = 10
    config.log.tensorboard = False
    return config
