"""The machine that this runs on, as a chip with the memory that it has left."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.planning.chips import CHIPS, Chip, other_chip

if TYPE_CHECKING:
    import jax

CORE_TFLOPS = 0.05
"""Of one CPU core in float32: an assumption, for an order of magnitude of times alone."""

CPU_BANDWIDTH = 20.0
"""GB/s of a computer's memory, likewise."""

CPU_SHARE = 0.5
"""Of the memory that is free, for training: the rest is for reading and for what starts later."""

GPU_SHARE = 0.9
"""Of what JAX may take of an accelerator: estimates are not exact."""


def chip_here() -> tuple[Chip, int]:
    """The GPUs of this machine as `nvidia-smi` lists them, else its processor; and how many."""
    tool = shutil.which("nvidia-smi")
    if tool:
        query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        listed = subprocess.run(query, capture_output=True, text=True, check=False)
        lines = [line.rsplit(",", 1) for line in listed.stdout.splitlines() if "," in line]
        if listed.returncode == 0 and lines:
            name, mebibytes = lines[0]
            return _named(name.strip(), float(mebibytes) * 2**20), len(lines)
    return _cpu(), 1


def chip_of(device: jax.Device) -> Chip:
    """A device that JAX has started, with the memory that JAX may take of it."""
    if device.platform == "cpu":
        return _cpu()
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    chip = _named(device.device_kind, float(limit))
    kind = "cuda" if device.platform == "gpu" else device.platform
    capability = getattr(device, "compute_capability", None) or chip.capability
    memory = {"memory_gb": limit / 1e9, "usable": GPU_SHARE} if limit else {}
    return dataclasses.replace(chip, kind=kind, capability=capability, **memory)


def _named(name: str, memory: float) -> Chip:
    """A chip of the list by its maker's name for it; one that is not listed by its memory (bytes) alone."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    known = [chip for chip in CHIPS.values() if chip.name.split("-")[0] in plain]
    if known:
        # The longest name is meant ("l40s" holds "l4"); the memory tells editions of one chip apart.
        return min(
            known, key=lambda chip: (-len(chip.name.split("-")[0]), abs(chip.memory_gb * 1e9 - memory))
        )
    return dataclasses.replace(other_chip(memory / 1e9, 50.0), name=name)


def _cpu() -> Chip:
    speed = CORE_TFLOPS * (os.cpu_count() or 1)
    chip = other_chip(free_memory() / 1e9, speed, CPU_BANDWIDTH)
    return dataclasses.replace(
        chip, name="this processor", kind="cpu", f32_tflops=speed, usable=CPU_SHARE, group=1
    )


def free_memory() -> float:
    """Bytes of main memory that a program can still have, of the machine or of its container."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2.0
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        limit = float((group / "memory.max").read_text())
        free = min(free, limit - float((group / "memory.current").read_text()))
    except (OSError, ValueError, StopIteration):
        pass  # no Linux, or no limit ("max")
    return max(free, 0.0)
