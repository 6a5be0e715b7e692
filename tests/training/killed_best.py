"""A run that ends early by its best step, and as a script kills itself.

``python killed_best.py WORKDIR step 7`` does so when it reads for step 7, ``evaluation 3`` in the third one.
"""

import os
import signal
import sys

import jax

jax.config.update("jax_platforms", "cpu")

# ruff: noqa: E402  The platform is chosen before anything can touch a device.
import numpy as np
from resumable import Killing
from toy import SPEC, Toy, Words, make_config, make_records

from medclip_jax.evaluation import run as evaluation_run
from medclip_jax.training.loop import Data, train

METRIC = "score/value"


def config(**changes):
    """Twelve steps, scored after every second."""
    made = make_config(steps=12, mesh__data=1, checkpoint__every_steps=5, **changes)
    with made.unlocked():
        made.evaluation.evaluators = {"score": {}}
    made.evaluation.every_steps = 2
    made.evaluation.best.metric = METRIC
    return made


def ending_early():
    """The same, ended by two evaluations without a better score: after step 8; step 4 is the best."""
    made = config(ema__decay=0.5)
    made.evaluation.best.patience = 2
    return made


def judge_by_vectors(embedder, evaluators, **options):
    """A score of the weights alone."""
    volume = {"volume": np.full(SPEC.shape, 300, np.int16)}
    vector = embedder.volumes(1, lambda index: volume)[0]
    return {METRIC: float(np.cos(1e4 * vector.sum()))}  # goes up and down


def main(workdir, what, count):
    """Train until the kill."""
    calls = []

    def killing(*arguments, **options):
        calls.append(None)
        if what == "evaluation" and len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return judge_by_vectors(*arguments, **options)

    evaluation_run.evaluate = killing
    records = make_records(24)
    source = Killing(records, 8 * count, signal.SIGKILL) if what == "step" else records
    train(ending_early(), workdir, data=Data(source, SPEC, Words()), objective_class=Toy)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
