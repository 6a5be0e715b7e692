"""What devices send each other in a step: read from a compiled program, and counted on paper.

The reading follows calls and loops from the entry of the optimized program. A collective inside a loop whose
number of turns the compiler does not state makes the reading unreliable, which is said rather than guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

BITS = {"pred": 8, "c64": 64, "c128": 128}
"""Element types whose name does not end with their number of bits; `token` and others hold nothing."""


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: one of `KINDS`.
        bytes: of the full array that takes part: what an all-reduce or all-gather yields, what a
            reduce-scatter is given.
        group: devices that take part together.
        times: how often it runs in a step.
    """

    kind: str
    bytes: float
    group: int
    times: float


class Unreadable(ValueError):
    """The program holds a collective whose bytes or repetitions its text does not tell."""


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(r" (" + "|".join(KINDS) + r")(-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def read_collectives(text: str) -> list[Collective]:
    """All collectives of an optimized HLO program (`compiled.as_text()`).

    Asynchronous pairs count once; a collective in a loop counts as often as the loop turns.

    Raises:
        Unreadable: a collective stands in a loop of unknown length, or in a form that is not known here.
    """
    computations: dict[str, list[str]] = {}
    entry = current = None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current is not None:
            instruction = _INSTRUCTION.match(line)
            if instruction:
                computations[current].append(instruction[1])
    if entry is None:
        raise Unreadable("the program's text has no entry")
    inside: dict[str, list[Collective]] = {}

    def of(name: str) -> list[Collective]:
        if name not in inside:
            inside[name] = []  # a computation cannot call itself
            inside[name] = [found for line in computations.get(name, ()) for found in _of_line(line, of)]
        return inside[name]

    return of(entry)


def _of_line(line: str, of: Any) -> list[Collective]:
    # Operands and attributes of interest come before metadata, which may hold anything.
    code = line.split(", metadata={")[0]
    head = _COLLECTIVE.search(code)
    if head:
        return [_collective(head[1], bool(head[2]), code, head.start())]
    called = _CALLS.findall(code)
    for branches in _BRANCHES.findall(code):
        called += [name.strip().lstrip("%") for name in branches.split(",")]
    found = [collective for name in called for collective in of(name)]
    if not found or " while(" not in code:
        return found
    turns = _TURNS.search(line)
    if turns is None:
        raise Unreadable(
            "a collective stands in a loop of which the compiler does not say how often it turns"
        )
    return [Collective(item.kind, item.bytes, item.group, item.times * int(turns[1])) for item in found]


def _collective(kind: str, started: bool, code: str, end_of_type: int) -> Collective:
    arrays = [_array_bytes(name, sizes) for name, sizes in _ARRAY.findall(code[:end_of_type])]
    if started and kind in ("all-gather", "collective-permute"):
        # The start of a pair yields its operands, its results, and for a permutation two counters.
        arrays = arrays[: 2 * (len(arrays) // 2)]
        if kind == "collective-permute":
            arrays = arrays[:2]
        arrays = arrays[len(arrays) // 2 :]
    elif started and kind != "all-reduce":
        raise Unreadable(f"{kind}-start is not known here")
    group = _group_size(code)
    size = sum(arrays)
    if kind == "reduce-scatter":
        size *= group
    return Collective(kind, size, group, 1.0)


def _array_bytes(name: str, sizes: str) -> float:
    bits = BITS.get(name)
    if bits is None:
        digits = re.search(r"(\d+)", name)
        if digits is None:
            return 0.0
        bits = int(digits[1])
    return math.prod(int(size) for size in sizes.split(",") if size) * bits / 8


def _group_size(code: str) -> int:
    """Devices of a group, from any of the three ways in which programs write `replica_groups`."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", code)
    if listed:
        return listed[1].count(",") + 1
    table = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", code)
    if table:
        return int(table[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", code)
    if named:
        sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", named[1]))
        axes = re.findall(r"'([\w.]+)'", named[2])
        if axes and all(axis in sizes for axis in axes):
            return math.prod(int(sizes[axis]) for axis in axes)
    if "source_target_pairs=" in code:
        return 2
    raise Unreadable(f"cannot read who takes part: {code[-200:]}")


def bytes_by_kind(collectives: list[Collective]) -> dict[str, float]:
    """Bytes of a step by kind of collective; groups of one device send nothing."""
    totals: dict[str, float] = {}
    for item in collectives:
        if item.group > 1:
            totals[item.kind] = totals.get(item.kind, 0.0) + item.bytes * item.times
    return totals


@dataclass(frozen=True)
class Exchange:
    """What a step must exchange, counted on paper.

    Attributes:
        name: what for.
        bytes: of the full array, as in `Collective.bytes`.
        axis: of the mesh over which, "data", "fsdp" or "all".
        reduces: summed on every device (twice the traffic of a gather).
    """

    name: str
    bytes: float
    axis: str
    reduces: bool


def on_paper(
    *,
    trained: Mapping[str, tuple[float, bool]],
    frozen: Mapping[str, tuple[float, bool]],
    features: float,
    data: int,
    fsdp: int,
    microbatches: int,
    fetches: int,
    gradient_share: float = 1.0,
    sums_once: bool = False,
) -> list[Exchange]:
    """What a step must exchange.

    Args:
        trained: bytes of each trained parameter, and whether fsdp splits it.
        frozen: the same of the others.
        features: bytes of what `couple` needs from the full batch.
        data, fsdp: of the mesh.
        microbatches: slices of a batch.
        fetches: times that a split parameter is fetched in a step. Slices share what is fetched: compilers
            take it out of the loop over them.
        gradient_share: bytes of a gradient as it is summed, over those of its parameter: 0.5 where products
            are in 16 bits, because compilers turn them to float32 after the sum.
        sums_once: whether each device adds its microbatches up first, in float32; see
            `training.microbatches.sums_once`.
    """
    split = sum(size for size, parted in trained.values() if parted)
    replicated = sum(size for size, parted in trained.values() if not parted)
    # Otherwise each slice's gradients are summed on their own.
    summed = 1.0 if sums_once else microbatches * gradient_share
    exchanges = []
    if fsdp > 1:
        fetched = split + sum(size for size, parted in frozen.values() if parted)
        exchanges.append(Exchange("parameters gathered", fetched * fetches, "fsdp", False))
        exchanges.append(Exchange("gradients scattered", split * summed, "fsdp", False))
        exchanges.append(Exchange("gradients of replicated parameters", replicated * summed, "fsdp", True))
    if data > 1:
        exchanges.append(Exchange("gradients", (split / fsdp + replicated) * summed, "data", True))
    if data * fsdp > 1:
        exchanges.append(Exchange("features gathered", features, "all", False))
        exchanges.append(Exchange("gradients of features", features, "all", True))
    return [item for item in exchanges if item.bytes]
