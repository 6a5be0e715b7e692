"""Work that kills the process which does it; alone here, so that a new process has little to import."""

import os
import signal


def square(value: int) -> int:
    """The square of a number; 1 is deadly."""
    if value == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return value * value
