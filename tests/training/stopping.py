"""One of several processes that work until they agree to stop.

``python stopping.py INDEX COUNT PORT VICTIM STEPS``
"""

import os
import signal
import sys
import time

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_preemption_service", False)

# ruff: noqa: E402  The platform is chosen before anything can touch a device.
from medclip_jax.training.preemption import Preemption

if __name__ == "__main__":
    index, count, port, victim = map(int, sys.argv[1:5])
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    with Preemption() as preemption:
        for step in range(1, int(sys.argv[5]) + 1):
            time.sleep(0.003 * (1 + index))  # no two at the same pace
            if index == victim and step == 40:
                os.kill(os.getpid(), signal.SIGTERM)
            if preemption.agreed(step):
                break
    print(step, preemption.requested, flush=True)
    jax.distributed.shutdown()
