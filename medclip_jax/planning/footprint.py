"""Memory and time of a traced program, from its operations alone: no device, no compiler.

The model of the compiler is deliberately small. Elementwise work is fused: it costs no memory and no time of
its own, and is repeated wherever its result is needed. What a matrix product, a gather, a sort, a loop or a
reduction makes or reads lies in memory, from where it is made to where it is last needed. Views (reshape,
transpose) are free. `docs/reference/scaling.md` says how far that is from what compilers report.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medclip_jax.planning.attention_cost import BACKWARD, FORWARD, kernel_flops
from medclip_jax.training.flops import default_branch, inner_programs, operation_flops

VIEWS = frozenset(
    (
        "reshape",
        "squeeze",
        "expand_dims",
        "transpose",
        "copy",
        "copy_p",
        "stop_gradient",
        "optimization_barrier",
        "bitcast_convert_type",
        "sharding_constraint",
        "name",
        "reduce_precision",
    )
)
INLINED = frozenset(
    (
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_lin",
    )
)
REDUCTIONS = frozenset(
    (
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "argmax",
        "argmin",
        "reduce_and",
        "reduce_or",
    )
)
"""They take elementwise inputs into their own loop."""

STORED = (
    frozenset(
        (
            "dot_general",
            "conv_general_dilated",
            "gather",
            "scatter",
            "scatter-add",
            "scatter_add",
            "sort",
            "top_k",
            "cumsum",
            "cumlogsumexp",
            "cummax",
            "cumprod",
            "while",
            "scan",
            "cond",
            "pallas_call",
            "custom_call",
            "dynamic_update_slice",
            "all_gather",
            "psum",
        )
    )
    | {FORWARD, BACKWARD}
    | REDUCTIONS
)
"""Primitives whose results lie in memory; all others are taken for elementwise."""

NEGLIGIBLE = 1 / 16
"""A value this much smaller than another is no burden beside it."""


@dataclass(frozen=True)
class Work:
    """One operation that reads and writes memory.

    Attributes:
        flops: of matrix products.
        moved: bytes read and written.
        dtype: of its operands.
        times: how often it runs.
        head: features of a head, of the kernels of attention; 0 for everything else.
    """

    flops: float
    moved: float
    dtype: str
    times: float = 1.0
    head: int = 0


@dataclass(frozen=True)
class Footprint:
    """What a program needs beside its inputs and outputs.

    Attributes:
        peak: bytes alive at once at most.
        works: every operation that touches memory.
    """

    peak: float
    works: tuple[Work, ...]

    @property
    def flops(self) -> float:
        """Of all matrix products, repeated ones included."""
        return sum(work.flops * work.times for work in self.works)

    @property
    def moved(self) -> float:
        """Bytes read and written."""
        return sum(work.moved * work.times for work in self.works)

    def seconds(self, flops_per_second: Callable[[Work], float], bytes_per_second: float) -> float:
        """Roofline: each operation takes as long as the slower of its arithmetic and its traffic.

        Args:
            flops_per_second: of an operation's matrix products.
            bytes_per_second: of memory.
        """
        return sum(
            work.times * max(work.flops / flops_per_second(work), work.moved / bytes_per_second)
            for work in self.works
        )


class _Value:
    """An array of the program: in memory, or made of what is (`sources`) wherever it is needed."""

    __slots__ = ("born", "bytes", "consumers", "free", "last", "needed", "sources", "stored")

    def __init__(self, size: float, *, stored: bool, free: bool = False):
        self.bytes = size
        self.stored = stored
        self.free = free
        self.needed = False  # an operation wants it in memory
        self.consumers = 0
        self.sources: tuple[_Value, ...] = ()
        self.born = self.last = -1

    def roots(self) -> tuple[_Value, ...]:
        return (self,) if self.stored else self.sources


@dataclass
class _Step:
    name: str
    inputs: list[_Value]
    outputs: list[_Value]
    flops: float
    dtype: str
    head: int = 0
    inner: Footprint | None = None
    times: float = 1.0


def footprint(function: Callable[..., Any], *args: Any, resident: Sequence[int] | None = None) -> Footprint:
    """Trace a function and add up what its operations hold and move.

    Args:
        function: traced, not run.
        args: trees of arrays or `jax.ShapeDtypeStruct`.
        resident: which of `args` lie in memory anyhow and are counted elsewhere; default all. The arrays of
            the others count from first to last use, as gathered parameters do.

    Returns:
        The footprint; what the function returns does not count as held.
    """
    import jax

    closed = jax.make_jaxpr(function)(*args)
    resident = range(len(args)) if resident is None else resident
    free = [index in resident for index, arg in enumerate(args) for _ in range(len(jax.tree.leaves(arg)))]
    return _footprint(closed.jaxpr, free)


def _is_literal(atom: Any) -> bool:
    return hasattr(atom, "val")


def _size(aval: Any) -> float:
    itemsize = getattr(aval.dtype, "itemsize", 4)
    return float(math.prod(aval.shape)) * itemsize


def _footprint(jaxpr: Any, free: Sequence[bool]) -> Footprint:
    values: dict[Any, _Value] = {}
    for var, resident in zip(jaxpr.invars, free, strict=True):
        values[var] = _Value(_size(var.aval), stored=True, free=resident)
    for var in jaxpr.constvars:
        values[var] = _Value(_size(var.aval), stored=True, free=True)
    steps: list[_Step] = []
    _flatten(jaxpr, values, steps)
    made = [values[var] for var in jaxpr.outvars if not _is_literal(var)]
    for value in made:
        value.needed = True
    _decide(steps)
    return _simulate(steps, {id(value) for value in made})


def _flatten(jaxpr: Any, values: dict[Any, _Value], steps: list[_Step]) -> None:
    """Inline calls, take views for what they show, and list what is left."""

    for equation in jaxpr.eqns:
        if not equation.outvars:  # what tracing left of a call whose results nobody wants
            continue
        name = equation.primitive.name
        if equation.params.get("name") in (FORWARD, BACKWARD):
            name = equation.params["name"]
        inputs = [
            _Value(0.0, stored=True, free=True) if _is_literal(atom) else values[atom]
            for atom in equation.invars
        ]
        same = (
            name == "convert_element_type" and equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype
        )
        if name in VIEWS or same:
            for var, value in zip(equation.outvars, inputs, strict=False):
                values[var] = value
            continue
        bodies = inner_programs(equation.params)
        body = default_branch(equation)
        if name in INLINED and len(bodies) >= 1:
            body = bodies[0]
        if body is not None:
            inside: dict[Any, _Value] = dict(zip(body.invars, inputs[-len(body.invars) :], strict=True))
            for var in body.constvars:
                inside[var] = _Value(_size(var.aval), stored=True, free=True)
            _flatten(body, inside, steps)
            for var, atom in zip(equation.outvars, body.outvars, strict=True):
                values[var] = _Value(0.0, stored=False) if _is_literal(atom) else inside[atom]
            continue
        outputs = [_Value(_size(var.aval), stored=name in STORED) for var in equation.outvars]
        values.update(zip(equation.outvars, outputs, strict=True))
        first = equation.invars[0].aval if equation.invars else equation.outvars[0].aval
        flops, head = operation_flops(equation), 0
        if name in (FORWARD, BACKWARD):
            flops, head = (
                kernel_flops(name, *(atom.aval.shape for atom in equation.invars[:2])),
                first.shape[-1],
            )
        step = _Step(name, inputs, outputs, flops, str(getattr(first, "dtype", "")), head)
        if bodies and name not in ("pallas_call", FORWARD, BACKWARD):
            inner = [_footprint(body, [True] * len(body.invars)) for body in bodies]
            step.times = equation.params["length"] if name == "scan" else 1
            step.inner = max(inner, key=lambda part: part.peak)
        steps.append(step)


def _decide(steps: list[_Step]) -> None:
    """Which elementwise results are kept in memory after all."""
    for step in steps:
        for value in step.inputs:
            value.consumers += 1
            if step.name in STORED and step.name not in REDUCTIONS:
                value.needed = True
    for step in steps:
        for value in step.outputs:
            if value.stored:
                continue
            roots = {id(root): root for item in step.inputs for root in item.roots()}
            large = [root for root in roots.values() if root.bytes > NEGLIGIBLE * value.bytes]
            # Two large sources and several readers: one sum is cheaper to keep than both its parts.
            if value.needed or (len(large) > 1 and value.consumers > 1):
                value.stored = True
            else:
                value.sources = tuple(roots.values())


def _simulate(steps: list[_Step], results: set[int]) -> Footprint:
    works: list[Work] = []
    for time, step in enumerate(steps):
        written = [value for value in step.outputs if value.stored]
        if not written:
            continue
        roots = {id(root): root for value in step.inputs for root in value.roots()}
        for root in roots.values():
            root.last = time
            if root.born < 0:
                root.born = time
        for value in written:
            value.born = time
            value.last = max(value.last, time)
        if step.inner is not None:
            works += [dataclasses.replace(work, times=work.times * step.times) for work in step.inner.works]
        else:
            moved = sum(root.bytes for root in roots.values()) + sum(value.bytes for value in written)
            works.append(Work(step.flops, moved, step.dtype, head=step.head))
    changes = [0.0] * (len(steps) + 1)
    counted: set[int] = set()
    for time, step in enumerate(steps):
        for item in (*step.inputs, *step.outputs):
            for value in item.roots():
                if id(value) in counted or value.free or value.born < 0 or id(value) in results:
                    continue
                counted.add(id(value))
                changes[value.born] += value.bytes
                changes[value.last + 1] -= value.bytes
        del time
    peak = alive = 0.0
    for time, step in enumerate(steps):
        alive += changes[time]
        peak = max(peak, alive + (step.inner.peak if step.inner else 0.0))
    return Footprint(peak, tuple(works))
