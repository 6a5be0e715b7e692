"""One of several processes of a run: ``python together.py SCENARIO FOLDER INDEX COUNT PORT DEVICES``."""

import logging
import os
import pickle
import signal
import sys
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")

# ruff: noqa: E402  The platform is chosen before anything can touch a device.
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from toy import SPEC, Toy, Words, make_config, make_records

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import embed_split
from medclip_jax.training import distributed
from medclip_jax.training.loop import Data, train
from medclip_jax.training.mesh import make_mesh, put_state
from medclip_jax.training.nonfinite import NonFiniteError

KERNELS = ((r"/kernel$", (None, "fsdp")),)
"""The toy's matrices are below the size from which on the default rules split them."""


class Calibrated(Toy):
    """Its first biases come from the whole first batch."""

    def calibrate(self, batch, key):
        bias = self.vision.hidden.bias
        bias[...] = bias[...] - self._volumes(batch["volume"]).mean() - 0.1 * batch["sample"].std()


class Reading:
    """Records; the read with a given count calls a function."""

    def __init__(self, count=0, act=None):
        self.records, self.left, self.act = make_records(24), count, act

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            self.act()
        return self.records[index]


def config(**changes):
    changes = {"steps": 6, "ema__decay": 0.9, "checkpoint__every_steps": 3, **changes}
    return make_config(mesh__rules=KERNELS, optimizer__schedule="constant", **changes)


def run(folder, config, source=None):
    return train(config, folder, data=Data(source or Reading(), SPEC, Words()), objective_class=Calibrated)


def poisoned(folder, **changes):
    """Message of a run in which record 5 becomes NaN."""
    settings = config(**changes)
    settings.objective.poison = 5
    try:
        run(folder, settings)
    except NonFiniteError as error:
        return str(error)
    raise AssertionError("no sample of record 5")


def embedded(mesh=None, objective=None):
    """21 records, so that the last batch of 8 is not full."""
    objective = objective or Calibrated(config().objective, SPEC, rngs=nnx.Rngs(0))
    if mesh is not None:
        graphdef, state = nnx.split(objective)
        objective = nnx.merge(graphdef, put_state(state, mesh))
    embedder = Embedder(objective, SPEC, config().data, Words(), batch_size=8, progress=False)
    records = [{**record, "patient": np.int64(7)} for record in make_records(21)]
    split = embed_split("validation", records, embedder, findings=("a", "b"))
    return {
        "volumes": split.volumes,
        "texts": embedder.texts(split.texts["report"]),
        "studies": split.studies,
        "labels": split.labels,
        "report": list(split.texts["report"]),
    }


def two(folder, me):
    """Two devices each. Goes on where one process stopped; embeds; a NaN; SIGTERM; an error of one."""
    run(folder / "moved", config(mesh__fsdp=2))
    vectors = embedded(make_mesh(config(mesh__fsdp=2).mesh))
    message = poisoned(folder / "poisoned", mesh__fsdp=2)
    (folder / f"seen-{me.index}").write_bytes(pickle.dumps((message, vectors)))
    endless = config(mesh__fsdp=2, checkpoint__every_steps=1000, steps=1000)
    ask = Reading(120, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(folder / "stopped", endless, ask if me.index == 1 else None)
    print("all stopped", flush=True)

    def fail():
        raise OSError("shard 7 cannot be read")

    run(folder / "broken", endless, Reading(120, fail) if me.index == 1 else None)


def four(folder, me):
    """One device each, parameters split across processes; at last one process is killed."""
    run(folder / "whole", config(mesh__fsdp=2))
    print("whole", flush=True)
    kill = Reading(60, lambda: os.kill(os.getpid(), signal.SIGKILL))
    endless = config(mesh__fsdp=2, checkpoint__every_steps=1000, steps=1000)
    run(folder / "killed", endless, kill if me.index == 2 else None)


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)
    scenario, folder, index, count, port, devices = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    where = {"coordinator": f"127.0.0.1:{port}", "process_count": int(count), "process_index": int(index)}
    me = distributed.start(ConfigDict(where), timeout=120, heartbeat=30)
    assert me == (int(index), int(count))
    try:
        globals()[scenario](Path(folder), me)
    except BaseException as error:
        distributed.fail(error)
