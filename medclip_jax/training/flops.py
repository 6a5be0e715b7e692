"""Floating point operations of a step, counted from the traced program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of the matrix products and convolutions of one call; everything else is left out.

    A scanned body counts once for each turn (XLA's own cost analysis counts it once in all), the dearest
    branch of a conditional counts, of what depends on the platform that of accelerators, and the body of a
    loop of unknown length counts once.

    Args:
        function: traced, not run.
        args: arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Operations, a multiplication and an addition counting two.
    """
    import jax

    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def utilization(flops_forward: float, seconds: float, devices: int, peak_tflops: float) -> float:
    """Share of the chips' peak: forward x 3 / time / peak. Work done again to save memory is not counted.

    Args:
        flops_forward: of one step's forward pass, over all devices.
        seconds: for the step.
        devices: chips at work.
        peak_tflops: of one chip, at the compute type used.
    """
    return 3.0 * flops_forward / seconds / (devices * peak_tflops * 1e12)


def operation_flops(equation: Any) -> float:
    """Of one equation of a traced program, what it calls inside left out; 0 unless it is a product.

    Args:
        equation: a `JaxprEqn`.
    """
    name = equation.primitive.name
    if name == "dot_general":
        (left, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in left)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
    if name.startswith("dot_product_attention_fwd"):  # cuDNN's kernel hides its two products
        query, key = equation.invars[0].aval, equation.invars[1].aval
        return 4.0 * query.size * key.shape[1]
    return 0.0


def inner_programs(params: dict[str, Any]) -> list[Any]:
    """The traced programs that an equation calls, from its parameters."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                found.append(item)
            elif hasattr(getattr(item, "jaxpr", None), "eqns"):
                found.append(item.jaxpr)
    return found


def default_branch(equation: Any) -> Any:
    """Of a conditional on the platform, the program of those that are not named; None for all else.

    Args:
        equation: a `JaxprEqn`.
    """
    return equation.params["branches"][-1].jaxpr if equation.params.get("branches_platforms") else None


def _count(jaxpr: Any) -> float:
    flops = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        flops += operation_flops(equation)
        if (chosen := default_branch(equation)) is not None:
            flops += _count(chosen)
        elif name == "cond":
            flops += max(_count(branch.jaxpr) for branch in equation.params["branches"])
        elif not name.startswith("dot_product_attention_fwd"):
            times = equation.params["length"] if name == "scan" else 1
            flops += times * sum(_count(inner) for inner in inner_programs(equation.params))
    return flops
