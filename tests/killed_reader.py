"""A process that reads batches with worker processes, prints their numbers, and is killed."""

import multiprocessing
import os
import signal

import numpy as np
from ml_collections import ConfigDict

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pipeline import train_batches

if __name__ == "__main__":
    config = ConfigDict({"workers": 1, "prefetch": 1})
    records = [{"volume": np.zeros((2, 2, 2), np.int16), "study": np.int64(1)}] * 4
    layout = Layout(("volume",), DataSpec((2, 2, 2), (1.0, 1.0, 1.0)), config)
    batches = train_batches(records, layout, seed=0, batch_size=2)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
