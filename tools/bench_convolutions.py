"""Convolutions of stride 1 on CPUs: products with a banded matrix, XLA's own, and PyTorch's.

    python tools/bench_convolutions.py [--repeats 7]

A kernel of 3 x 3 x 3 from C to C channels, value and gradient of 4 volumes, float32, as the first level of a
small decoder and the stages of a ResNet have it. One JSON line per size: median seconds of processor time
and of the clock over repeats in turn, and the ratio of XLA's and PyTorch's clock to ours.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from medclip_jax.models.convolution import banded_convolution

SIZES = ((4, (32, 36, 36)), (8, (32, 36, 36)), (16, (24, 24, 24)), (32, (12, 12, 12)), (64, (8, 8, 8)))


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution."""
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=layout)


def of_jax(convolve: Callable[..., jax.Array], x: np.ndarray, kernel: np.ndarray) -> Callable[[], object]:
    """Value and gradient, compiled."""
    run = jax.jit(jax.value_and_grad(lambda x, kernel: jnp.square(convolve(x, kernel)).sum(), argnums=(0, 1)))
    arrays = jnp.asarray(x), jnp.asarray(kernel)
    return lambda: jax.block_until_ready(run(*arrays))


def of_torch(x: np.ndarray, kernel: np.ndarray) -> Callable[[], object]:
    """Value and gradient in PyTorch, channels last in memory."""
    voxels = torch.from_numpy(x).permute(0, 4, 1, 2, 3).requires_grad_()
    weight = torch.from_numpy(kernel).permute(4, 3, 0, 1, 2).contiguous().requires_grad_()

    def run() -> object:
        loss = torch.nn.functional.conv3d(voxels, weight, padding=1).square().sum()
        return torch.autograd.grad(loss, (voxels, weight))

    return run


def measure(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median (processor, clock) seconds of each job."""
    taken = {name: [] for name in jobs}
    for turn in range(1 + repeats):
        for name, job in jobs.items():
            processor, clock = time.process_time(), time.perf_counter()
            job()
            if turn:  # the first compiles
                taken[name].append((time.process_time() - processor, time.perf_counter() - clock))
    return {name: tuple(map(statistics.median, zip(*times, strict=True))) for name, times in taken.items()}


def main() -> None:
    """Print one JSON line per size."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--repeats", type=int, default=7, help="after one that is not counted (7)")
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(0)
    for channels, shape in SIZES:
        x = rng.normal(size=(4, *shape, channels)).astype(np.float32)
        kernel = rng.normal(size=(3, 3, 3, channels, channels)).astype(np.float32)
        jobs = {
            "banded": of_jax(banded_convolution, x, kernel),
            "xla": of_jax(plain, x, kernel),
            "torch": of_torch(x, kernel),
        }
        found = measure(jobs, repeats)
        line = {"channels": channels, "shape": shape}
        for name, (processor, clock) in found.items():
            line |= {f"{name}_processor_s": round(processor, 4), f"{name}_s": round(clock, 4)}
        for name in ("xla", "torch"):
            line[f"{name}_over_banded"] = round(found[name][1] / found["banded"][1], 2)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
