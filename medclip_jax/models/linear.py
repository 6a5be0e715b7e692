"""A linear map of features."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from medclip_jax.sharding import compiled_for


class Linear(nnx.Linear):
    """`nnx.Linear`, in the form that suits the device.

    On CPUs the rows of all samples are those of one matrix. The gradient of the kernel is a product over all
    of them; where they stand along two axes, XLA's CPU compiler transposes both factors first, and computes
    what they were made by (a GELU and its derivative) anew for it, one number at a time.
    """

    def __call__(self, inputs: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """(..., in) to (..., out)."""
        if inputs.ndim <= 2 or compiled_for()[0] != "cpu":
            return super().__call__(inputs)
        rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return rows.reshape(*inputs.shape[:-1], rows.shape[-1])
