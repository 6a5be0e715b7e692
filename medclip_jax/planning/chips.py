"""Peak figures of accelerators, one chip each, from the makers' public specification sheets.

Sources: NVIDIA's data sheets of A100, A800, L4, L40S, T4, RTX A6000, H100, H200 (SXM where there is one) and
DGX B200, and its Ada white paper for the RTX 4090, dense figures, that is half of what is printed "with
sparsity"; AMD's of MI300X; Google Cloud's pages "TPU v4",
"v5e", "v5p", "v6e", "TPU7x". Capacities are decimal gigabytes as printed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """What one device can do at best.

    Attributes:
        name: as `--chip` takes it.
        kind: "cuda", "rocm" or "tpu".
        bf16_tflops: matrix products of bfloat16, dense.
        f32_tflops: matrix products of float32 as JAX runs them by default: TF32 on NVIDIA, operands rounded
            to bfloat16 on TPU.
        memory_gb: of HBM, decimal.
        memory_bandwidth: GB/s of HBM.
        link_bandwidth: GB/s in one direction to the other chips of a group (NVLink, ICI).
        group: chips that are joined by such links; beyond it `network_bandwidth` counts.
        network_bandwidth: GB/s in one direction and chip between groups; an assumption (400 Gbit/s for each
            GPU, 25 Gbit/s for each TPU), because it belongs to the cluster and not to the chip.
        usable: share of the memory that a program can have: a TPU's compiler names 15.75 of 16 GiB; a GPU's
            driver, cuDNN and NCCL take a few GB, and JAX takes 75 % unless it is told otherwise.
        per_host: chips that one host feeds.
        capability: compute capability of a GPU, which decides how it attends; "8.0" and above does so fused.
    """

    name: str
    kind: str
    bf16_tflops: float
    f32_tflops: float
    memory_gb: float
    memory_bandwidth: float
    link_bandwidth: float
    group: int
    network_bandwidth: float
    usable: float
    per_host: int = 8
    capability: str = "8.0"

    @property
    def usable_bytes(self) -> float:
        """Bytes of memory that a program can have."""
        return self.memory_gb * 1e9 * self.usable

    def peak_tflops(self, dtype: str) -> float:
        """Of matrix products in a compute type, "bfloat16", "float16" or "float32"."""
        return self.f32_tflops if dtype == "float32" else self.bf16_tflops


def _gpu(
    name: str, bf16: float, f32: float, memory: float, bandwidth: float, link: float, group: int
) -> Chip:
    return Chip(name, "cuda", bf16, f32, memory, bandwidth, link, group, 50.0, 0.92)


def _tpu(
    name: str, bf16: float, memory: float, bandwidth: float, link: float, group: int, per_host: int
) -> Chip:
    # Google prints binary gigabytes: a v5e's compiler offers 15.75 GiB of "16 GB".
    return Chip(name, "tpu", bf16, bf16, memory * 2**30 / 1e9, bandwidth, link, group, 3.0, 0.984, per_host)


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _gpu("a100", 312.0, 156.0, 80.0, 2039.0, 300.0, 8),
        _gpu("a100-40gb", 312.0, 156.0, 40.0, 1555.0, 300.0, 8),
        _gpu("a800", 312.0, 156.0, 80.0, 2039.0, 200.0, 8),
        _gpu("l40s", 362.0, 183.0, 48.0, 864.0, 32.0, 8),
        _gpu("l4", 121.0, 60.0, 24.0, 300.0, 32.0, 8),
        _gpu("rtx4090", 165.2, 82.6, 24.0, 1008.0, 32.0, 8),
        _gpu("a6000", 154.8, 77.4, 48.0, 768.0, 32.0, 8),
        # Turing multiplies neither bfloat16 nor TF32 in its tensor cores.
        dataclasses.replace(_gpu("t4", 8.1, 8.1, 16.0, 320.0, 16.0, 8), capability="7.5"),
        _gpu("h100", 989.0, 494.5, 80.0, 3350.0, 450.0, 8),
        _gpu("h200", 989.0, 494.5, 141.0, 4800.0, 450.0, 8),
        _gpu("b200", 2250.0, 1125.0, 180.0, 8000.0, 900.0, 8),
        dataclasses.replace(_gpu("mi300x", 1307.0, 653.7, 192.0, 5300.0, 448.0, 8), kind="rocm"),
        _tpu("v4", 275.0, 32.0, 1228.0, 300.0, 4096, 4),
        _tpu("v5e", 197.0, 16.0, 819.0, 200.0, 256, 8),
        _tpu("v5p", 459.0, 95.0, 2765.0, 600.0, 8960, 4),
        _tpu("v6e", 918.0, 32.0, 1640.0, 400.0, 256, 8),
        _tpu("tpu7x", 2307.0, 192.0, 7380.0, 1200.0, 9216, 4),
    )
}
"""All chips by name."""

CORES_IN_NAME = ("v4", "v5p")
"""Google names slices of these by TensorCores, two a chip: a v5p-256 has 128 chips."""


BANDWIDTH_PER_TFLOP = 4.0
"""GB/s of memory for each TFLOP/s of a chip that is given by its figures: between an H100's and an A100's."""


def other_chip(memory_gb: float, tflops: float, bandwidth: float | None = None) -> Chip:
    """A GPU that is not listed.

    Args:
        memory_gb: decimal.
        tflops: of bfloat16, dense; half of that is taken for float32, as on NVIDIA's.
        bandwidth: GB/s of its memory; None for `BANDWIDTH_PER_TFLOP`.
    """
    name = f"{memory_gb:g}GB:{tflops:g}TF"
    return _gpu(name, tflops, tflops / 2, memory_gb, bandwidth or BANDWIDTH_PER_TFLOP * tflops, 32.0, 8)


def _by_figures(text: str) -> Chip | None:
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"{number}\s*gb:{number}\s*tf(?:lops?)?(?:/s)?(?::{number}\s*gb/s)?", text)
    if not found:
        return None
    figures = [float(part) if part else None for part in found.groups()]
    if not all(figure is None or figure > 0 for figure in figures):
        return None
    return other_chip(*figures)


def find_chip(text: str) -> tuple[Chip, int | None]:
    """The chip of a name, and its number where a TPU slice is named.

    >>> find_chip("v5p-256")[1], find_chip("v5e-64")[1], find_chip("h100")[1]
    (128, 64, None)
    >>> find_chip("24GB:165TF:1008GB/s")[0].bf16_tflops
    165.0

    Args:
        text: a name; or memory and dense bfloat16 rate of a GPU, and its memory's bandwidth where known.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    name = text.lower().strip()
    if name in CHIPS:
        return CHIPS[name], None
    named = re.fullmatch(r"(.+)-(\d+)", name)
    if named and named[1] in CHIPS and CHIPS[named[1]].kind == "tpu":
        count = int(named[2])
        return CHIPS[named[1]], count // 2 if named[1] in CORES_IN_NAME else count
    if figures := _by_figures(name):
        return figures, None
    plain = re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name)
    if plain != name and plain in CHIPS:
        return CHIPS[plain], None
    near = difflib.get_close_matches(name, CHIPS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"--chip {text}: unknown; there are {', '.join(CHIPS)}, slices of TPUs such as v5e-64, 'here' for "
        f"this machine, and any GPU by memory and bfloat16 rate, such as 24GB:165TF.{hint}"
    )


def find_topology(text: str) -> tuple[Chip, int]:
    """Chip and number of chips of a TPU topology.

    >>> chip, count = find_topology("v5e:16x16")
    >>> chip.name, count
    ('v5e', 256)

    Raises:
        ValueError: it is not written as chip:shape, or the chip is unknown or no TPU.
    """
    named = re.fullmatch(r"([\w]+):(\d+(?:x\d+)*)", text.lower())
    tpus = [chip.name for chip in CHIPS.values() if chip.kind == "tpu"]
    if not named or named[1] not in tpus:
        raise ValueError(
            f"--tpu {text}: write chip:shape, chips along each axis, such as v5e:8x8; of {', '.join(tpus)}"
        )
    return CHIPS[named[1]], math.prod(int(size) for size in named[2].split("x"))
