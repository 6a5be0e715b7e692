"""Where a TPU's step spends its time, by its compiler's own estimate: read from the optimized program's text.

libtpu writes into each fusion how many cycles of the core it expects it to take (`estimated_cycles`). Nothing
of this is a measurement. Kernels written by hand (splash attention) have no such figure: they are counted by
the matrix products inside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medclip_jax.planning.chips import Chip

KINDS = ("products", "loops", "copies", "slices", "collectives")
"""What the compiler's cycles are told apart by, see `ProgramCycles`."""

MACS_PER_CYCLE = {"v4": 2 * 4 * 128**2, "v5e": 4 * 128**2, "v5p": 2 * 4 * 128**2}
"""Multiply-adds that a chip's matrix units begin in a cycle: cores x units x 128 x 128, from Google Cloud's
pages "TPU v4", "v5e", "v5p". With the peak they give the clock."""

MATRIX_UNIT = 128
"""Edge of the matrix units of these chips. Heads with fewer features leave the rest of it empty."""


@dataclass(frozen=True)
class Operation:
    """One instruction of the program that takes time.

    Attributes:
        name: in the program.
        kind: one of `KINDS`.
        cycles: of one run.
        times: how often it runs in a step.
        source: "file:line" of the Python that asked for it, "" where the program does not say.
        path: what JAX names it, such as "jit(step)/transpose(jvp())/dot_general".
    """

    name: str
    kind: str
    cycles: float
    times: float
    source: str
    path: str

    @property
    def total(self) -> float:
        """Cycles of a step."""
        return self.cycles * self.times


@dataclass(frozen=True)
class Kernel:
    """A kernel of attention, for which the compiler estimates nothing.

    Attributes:
        name: of the kernel.
        flops: of the matrix products inside, on one device, with the filling of its blocks.
        features: of a head.
        times: how often it runs in a step.
    """

    name: str
    flops: float
    features: int
    times: float

    @property
    def efficiency(self) -> float:
        """Share of the peak at best: how much of the matrix unit a head fills."""
        return min(1.0, self.features / MATRIX_UNIT)


@dataclass(frozen=True)
class ProgramCycles:
    """What one device does in a step.

    Products are fusions with a matrix product in them; copies move data as they are (copies, transposes,
    pads, changes of layout); slices cut out, gather or put in; collectives are counted where the compiler
    estimates them; loops are all other fusions, reductions among them. Copies that run beside the
    computation are left out.

    Attributes:
        operations: those with an estimate.
        kernels: of attention.
        unknown: names of kernels that are not known here, whose time is missing.
        once: names of loops that were counted as one turn, because nothing says how often they turn.
    """

    operations: tuple[Operation, ...]
    kernels: tuple[Kernel, ...]
    unknown: tuple[str, ...] = ()
    once: tuple[str, ...] = ()

    def by_kind(self) -> dict[str, float]:
        """Cycles of a step by kind, every kind of `KINDS`."""
        totals = dict.fromkeys(KINDS, 0.0)
        for operation in self.operations:
            totals[operation.kind] += operation.total
        return totals

    def dearest(self, count: int = 10) -> list[Operation]:
        """Those that take the most cycles of a step. Equal ones of equal source are taken together.

        Args:
            count: how many.
        """
        together: dict[tuple[str, str, str], Operation] = {}
        for item in self.operations:
            # The number at the end tells blocks apart, which do the same.
            key = item.kind, item.source, re.sub(r"/(blocks?_?)?\d+/", "/", item.path)
            other = together.get(key)
            cycles = item.total + (other.total if other else 0.0)
            times = item.times + (other.times if other else 0.0)
            together[key] = Operation(item.name, item.kind, cycles / times, times, item.source, item.path)
        return sorted(together.values(), key=lambda item: -item.total)[:count]


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one device, estimated.

    Attributes:
        by_kind: by the compiler's cycles.
        attention: of the kernels, by their products at `Kernel.efficiency` of the peak.
    """

    by_kind: Mapping[str, float]
    attention: float

    @property
    def step(self) -> float:
        """All of it, one after the other."""
        return sum(self.by_kind.values()) + self.attention

    def utilization(self, flops: float, chip: Chip) -> float:
        """Model FLOPs / time / peak.

        Args:
            flops: of the model on one device: 3 x forward, recomputation not counted.
            chip: with its peak in bfloat16.
        """
        return flops / self.step / (chip.bf16_tflops * 1e12)


def step_time(program: ProgramCycles, chip: Chip) -> StepTime:
    """Cycles as seconds.

    Args:
        program: from `read_cycles`.
        chip: that it was compiled for.

    Raises:
        ValueError: the chip's clock is not known.
    """
    if chip.name not in MACS_PER_CYCLE:
        raise ValueError(
            f"{chip.name}: its clock is not known, so cycles are not turned into time; known are "
            f"{', '.join(MACS_PER_CYCLE)}"
        )
    peak = chip.bf16_tflops * 1e12
    clock = peak / 2 / MACS_PER_CYCLE[chip.name]
    return StepTime(
        {kind: cycles / clock for kind, cycles in program.by_kind().items()},
        sum(item.flops * item.times / (peak * item.efficiency) for item in program.kernels),
    )


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BELOW = re.compile(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT")
_CONSTANT = re.compile(r"constant\((\d+)\)")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
_SPLASH = re.compile(r"splash_\w+?_(fwd|dkv|dq)\w*")

_MOVES = frozenset(
    (
        "bitcast",
        "bitcast-convert",
        "broadcast",
        "concatenate",
        "constant",
        "convert",
        "copy",
        "get-tuple-element",
        "iota",
        "pad",
        "parameter",
        "reshape",
        "reverse",
        "transpose",
        "tuple",
    )
)
_CUTS = frozenset(("dynamic-slice", "dynamic-update-slice", "gather", "scatter", "slice"))
_PRODUCTS = frozenset(("convolution", "dot"))
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BESIDE = ("copy-start", "copy-done", "slice-start", "slice-done")


@dataclass
class _Instruction:
    name: str
    opcode: str
    type: str
    code: str
    line: str


@dataclass
class _Program:
    entry: str = ""
    computations: dict[str, list[_Instruction]] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)


def read_cycles(text: str) -> ProgramCycles:
    """Costs of an optimized program for TPUs (`compiled.as_text()`).

    Loops count as often as they turn: what the compiler says, or the limit of their counter, which JAX
    begins at 0. Of branches the dearest counts.

    Args:
        text: of one module.

    Raises:
        ValueError: the text has no entry, or no estimate in it.
    """
    program = _parse(text)
    if not program.entry:
        raise ValueError("the program's text has no entry")
    operations: list[Operation] = []
    kernels: list[Kernel] = []
    unknown: list[str] = []
    once: list[str] = []
    _walk(program, program.entry, 1.0, operations, kernels, unknown, once)
    if not operations:
        raise ValueError("the program holds no estimated cycles: it was not compiled for a TPU")
    return ProgramCycles(tuple(operations), tuple(kernels), tuple(dict.fromkeys(unknown)), tuple(once))


def _parse(text: str) -> _Program:
    program = _Program()
    current: list[_Instruction] | None = None
    section, tables = (
        "",
        {name: {} for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")},
    )
    for line in text.splitlines():
        if line in tables:
            section = line
            continue
        row = re.match(r"^(\d+) (.*)$", line)
        if section and row:
            tables[section][row[1]] = row[2]
            continue
        header = _COMPUTATION.match(line)
        if header:
            current = program.computations[header[2]] = []
            program.entry = header[2] if header[1] else program.entry
            continue
        found = _INSTRUCTION.match(line) if current is not None else None
        if not found:
            continue
        # What JAX writes about an instruction may hold anything.
        code = found[2].split(", metadata={")[0]
        opcode = _OPCODE.search(code)
        if opcode:
            type_ = code[: opcode.start(1)]
            current.append(_Instruction(found[1], opcode[1], type_, code, line))
    program.frames = _frames(tables)
    return program


def _frames(tables: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """ "file:line" by frame: the innermost place in this package, else the innermost of all.

    A linear map is that of whoever calls it: its own line says nothing.
    """

    def is_own(place: str) -> bool:
        return "medclip_jax/" in place and "medclip_jax/models/linear.py:" not in place

    def number(row: str, key: str) -> str:
        found = re.search(rf"\b{key}=(\d+)", row)
        return found[1] if found else ""

    def place(frame: str) -> str:
        location = tables["FileLocations"].get(number(tables["StackFrames"][frame], "file_location_id"), "")
        file = tables["FileNames"].get(number(location, "file_name_id"), "").strip('"')
        return f"{file}:{number(location, 'line')}"

    parents = {frame: number(row, "parent_frame_id") for frame, row in tables["StackFrames"].items()}
    if any(frame == parent for frame, parent in parents.items()):
        # libtpu 0.0.42 counts parents from 1 for "none": the outermost frame seems to be its own parent.
        parents = {frame: str(int(parent or 1) - 1) for frame, parent in parents.items()}
    found = {}
    for frame in tables["StackFrames"]:
        walked, seen = frame, set()
        while walked in tables["StackFrames"] and walked not in seen:
            seen.add(walked)
            if is_own(place(walked)):
                break
            walked = parents[walked]
        own = walked in tables["StackFrames"] and is_own(place(walked))
        found[frame] = place(walked if own else frame)
    return found


def _walk(
    program: _Program,
    computation: str,
    times: float,
    operations: list[Operation],
    kernels: list[Kernel],
    unknown: list[str],
    once: list[str],
) -> None:
    instructions = program.computations.get(computation, [])
    types = {item.name: item.type for item in instructions}
    for item in instructions:
        if item.opcode in _BESIDE:
            continue
        if item.opcode == "custom-call":
            _custom_call(item, types, times, kernels, unknown)
        cycles = _CYCLES.findall(item.line)
        if cycles:
            source, path = _origin(item.line, program.frames)
            # The last is of the whole fusion; those before it, if any, of what it was chosen from.
            operations.append(
                Operation(item.name, _kind(program, item), float(cycles[-1]), times, source, path)
            )
        elif item.opcode in ("while", "call", "async-start"):
            turns = _turns(program, item) if item.opcode == "while" else 1
            if not turns:
                once.append(item.name)
            for called in _CALLED.findall(item.code):
                _walk(program, called, times * (turns or 1), operations, kernels, unknown, once)
        elif item.opcode == "conditional":
            _dearest_branch(program, item, times, operations, kernels, unknown, once)


def _turns(program: _Program, loop: _Instruction) -> int:
    """How often a loop turns, 0 where nothing says it."""
    if known := _TURNS.search(loop.line):
        return int(known[1])
    named = re.search(r"condition=%?([\w.\-]+)", loop.code)
    condition = {item.name: item.code for item in program.computations.get(named[1] if named else "", [])}
    for code in condition.values():
        below = _BELOW.search(code)
        limit = _CONSTANT.search(condition.get(below[2], "")) if below else None
        if limit:
            return int(limit[1])
    return 0


def _dearest_branch(program, item, times, operations, kernels, unknown, once) -> None:
    names = []
    for listed, single in _BRANCHES.findall(item.code):
        names += [single] if single else [name.strip().lstrip("%") for name in listed.split(",")]
    branches = []
    for name in names:
        found: tuple[list, ...] = [], [], [], []
        _walk(program, name, times, *found)
        branches.append(found)
    dearest = max(branches, key=lambda found: sum(one.total for one in found[0]), default=None)
    for every, more in zip((operations, kernels, unknown, once), dearest or ([],) * 4, strict=True):
        every += more


def _custom_call(
    item: _Instruction, types: Mapping[str, str], times: float, kernels: list[Kernel], unknown: list[str]
) -> None:
    if 'custom_call_target="tpu_custom_call"' not in item.line:
        return
    named = _SPLASH.search(item.line)
    if not named:
        unknown.append(item.name)
        return
    operands = re.findall(r"%([\w.\-]+)", item.code[item.code.index("custom-call(") :].split(")", 1)[0])
    # Queries, keys and values are the first arrays of floats; segments and tables are of integers.
    shapes = [shape for name in operands for shape in _float_shapes(types.get(name, ""))]
    shapes = [shape for shape in shapes if len(shape) >= 3]
    if len(shapes) < 2:
        unknown.append(item.name)
        return
    (*outer, queries, features), keys = shapes[0], shapes[1][-2]
    results = _float_shapes(item.type)
    # A backward kernel that makes the queries' gradient as well yields it in parts, one axis more.
    fused = named[1] == "dkv" and any(len(shape) == len(shapes[0]) + 1 for shape in results)
    products = {"fwd": 2, "dkv": 5 if fused else 4, "dq": 3}[named[1]]
    flops = products * 2.0 * math.prod(outer) * queries * keys * features
    kernels.append(Kernel(named[0], flops, features, times))


def _float_shapes(text: str) -> list[tuple[int, ...]]:
    return [
        tuple(int(size) for size in sizes.split(",") if size)
        for name, sizes in _ARRAY.findall(text)
        if name.startswith(("f", "bf")) and sizes
    ]


def _kind(program: _Program, item: _Instruction) -> str:
    inside = set(_opcodes(program, item))
    if any(name.removesuffix("-start") in _COLLECTIVES for name in inside):
        return "collectives"
    if inside & _PRODUCTS:
        return "products"
    if inside <= _MOVES:
        return "copies"
    return "slices" if inside <= _MOVES | _CUTS else "loops"


def _opcodes(program: _Program, item: _Instruction) -> Iterable[str]:
    called = _CALLED.findall(item.code) if item.opcode in ("fusion", "call", "async-start") else []
    if not called:
        yield item.opcode
    for name in called:
        for inner in program.computations.get(name, []):
            yield from _opcodes(program, inner)


def _origin(line: str, frames: Mapping[str, str]) -> tuple[str, str]:
    path = re.search(r'op_name="([^"]*)"', line)
    file = re.search(r'source_file="([^"]*)" source_line=(\d+)', line)
    frame = re.search(r"stack_frame_id=(\d+)", line)
    source = f"{file[1]}:{file[2]}" if file else frames.get(frame[1], "") if frame else ""
    # From the package on; what stands before is of the machine.
    _, inside, rest = source.rpartition("medclip_jax/")
    return inside + rest if inside else "/".join(source.split("/")[-2:]), path[1] if path else ""
