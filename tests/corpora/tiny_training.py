"""One training step of the smallest model on a prepared set."""

from pathlib import Path

import numpy as np


def train_step(shards: Path, workdir: Path, *, objective: str = "clip") -> float:
    """Train for one step on the train split; the loss.

    Args:
        shards: a set with a tokenizer, of volumes of (16, 32, 32).
        workdir: to write to.
        objective: "clip", or "mae" for sets without text.
    """
    from importlib import import_module

    from medclip_jax.training.config import base_config
    from medclip_jax.training.loop import train

    config = base_config()
    config.objective = import_module(f"medclip_jax.objectives.{objective}").default_config()
    config.objective.vision.update(patch=(8, 16, 16), width=24, depth=1, heads=2, dtype="float32")
    if objective == "mae":
        config.objective.decoder.update(width=24, depth=1, heads=2)
    else:
        config.objective.vision.pooling = "mean"
        config.objective.text.update(width=24, depth=1, heads=2, max_positions=64, dtype="float32")
        config.objective.embedding_width = 16
        config.data.text_length = 24
    config.data.shards = str(shards)
    config.batch_size = 8
    config.steps = 1
    config.evaluation.evaluators = {}
    config.log.tensorboard = False
    config.log.progress = False
    metrics = train(config, workdir)
    loss = metrics["loss"]
    assert np.isfinite(loss)
    return loss
