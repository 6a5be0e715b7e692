"""Freed memory is kept where glibc allows it, and whoever decided otherwise is left alone."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from medclip_jax.allocator import keep_freed_memory

print(keep_freed_memory())
def touch():
    return len(b"x" * (12 << 20))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
before = faults()
for _ in range(20):
    touch()
print((faults() - before) // 20)
"""
"""Prints whether the thresholds were set, and what page faults 12 MiB cost that were there before."""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run(**environment: str) -> tuple[bool, int]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=own | environment, capture_output=True, text=True, check=True
    )
    done_so, faults = done.stdout.split()
    return done_so == "True", int(faults)


@glibc
def test_blocks_of_the_size_of_a_volume_cost_no_page_faults():
    assert run() == (True, 0)


@glibc
@pytest.mark.parametrize(
    "environment",
    [
        {"MEDCLIP_ALLOCATOR": "0"},
        {"MALLOC_TRIM_THRESHOLD_": "1000"},
        {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000"},
    ],
    ids=lambda environment: "".join(environment),
)
def test_it_can_be_left_as_it_is(environment):
    done, faults = run(**environment)
    assert not done
    assert faults > 0
