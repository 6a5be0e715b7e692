"""A run that another process can start, kill and start again: ``python resumable.py WORKDIR STEP SIGNAL``."""

import os
import signal
import sys
import time

import jax

jax.config.update("jax_platforms", "cpu")

# ruff: noqa: E402  The platform is chosen before anything can touch a device.
from toy import SPEC, Toy, Words, make_config, make_records

from medclip_jax.training.loop import Data, train


class Killing:
    """Records of which one read, by its count, ends the process at once or asks it to end."""

    def __init__(self, records, read, how):
        self.records, self.left, self.how = records, read, how

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            # Late enough for the step that saves to have begun.
            time.sleep(0.2)
            os.kill(os.getpid(), self.how)
        return self.records[index]


def config():
    return make_config(
        steps=20, ema__decay=0.9, optimizer__accumulate=2, checkpoint__every_steps=6, mesh__data=1
    )


def run(workdir, source=None):
    return train(config(), workdir, data=Data(source or make_records(24), SPEC, Words()), objective_class=Toy)


if __name__ == "__main__":
    workdir, step, how = sys.argv[1], int(sys.argv[2]), getattr(signal, sys.argv[3])
    run(workdir, Killing(make_records(24), 8 * step, how))
