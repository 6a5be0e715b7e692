"""A run on some rows of a set, which as a script kills itself: ``python killed_subset.py SHARDS WORKDIR``."""

import os
import signal
import sys

import jax

jax.config.update("jax_platforms", "cpu")

# ruff: noqa: E402  The platform is chosen before anything can touch a device.
from medclip_jax.objectives import mae
from medclip_jax.shards.chosen import ChosenRows
from medclip_jax.shards.subset import FOLD
from medclip_jax.training.config import base_config
from medclip_jax.training.loop import train


def run(shards, workdir, *, tables=(), steps=6):
    """Six steps without the first of four folds, scored on it after each third."""
    config = base_config()
    config.objective = mae.default_config()
    small = {"width": 12, "depth": 1, "heads": 2}
    config.objective.vision.update(**small, patch=(4, 8, 8), dtype="float32")
    config.objective.decoder.update(**small)
    config.data.shards = str(shards)
    config.data.tables = tables
    config.data.subset.update(share=0.7, folds=4, fold=1, seed=3, by="cardiomegaly")
    config.batch_size, config.mesh.data = 4, 1
    config.steps = steps
    config.checkpoint.update(every_steps=2, asynchronous=False)
    config.evaluation.update(split="fold", every_steps=3, evaluators={"spectrum": {}})
    config.log.update(tensorboard=False, progress=False)
    return train(config, workdir)


def kill_in_evaluation():
    """End the process when the first evaluation, at step 3, reads the fold."""
    read = ChosenRows.__getitem__

    def killing(self, index):
        if self.split == FOLD:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    ChosenRows.__getitem__ = killing


if __name__ == "__main__":
    kill_in_evaluation()
    run(sys.argv[1], sys.argv[2])
