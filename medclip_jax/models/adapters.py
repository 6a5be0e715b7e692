"""Low-rank adapters (LoRA): a frozen matrix learns by a small product added to it, merged in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from medclip_jax.models.linear import Linear

FUSED = ("query_adapter", "key_adapter", "value_adapter")
"""Adapters of an attention's fused matrix `qkv`, in the order of its columns."""

OUTPUT = "output_adapter"
"""Adapter of an attention's matrix `output`."""


@dataclass(frozen=True)
class AdapterSize:
    """How large adapters are.

    Attributes:
        rank: of the product, above 0.
        alpha: the product counts alpha / rank times.

    Raises:
        ValueError: one of them is not above 0.
    """

    rank: int
    alpha: float

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"an adapter of rank {self.rank} and alpha {self.alpha}: give both above 0")


class Adapter(nnx.Module):
    """``x down up · alpha / rank``: 0 at the start, as `up` is.

    Args:
        in_features: of what is given.
        out_features: of what is added.
        size: rank and alpha.
        dtype: compute type; parameters are float32.
        rngs: draws `down`.

    References:
        Hu et al. 2021, "LoRA: Low-rank adaptation of large language models", section 4.1.
    """

    def __init__(self, in_features: int, out_features: int, size: AdapterSize, *, dtype, rngs: nnx.Rngs):
        linear = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        init = nnx.initializers.normal(in_features**-0.5)
        self.down = Linear(in_features, size.rank, kernel_init=init, **linear)
        self.up = Linear(size.rank, out_features, kernel_init=nnx.initializers.zeros, **linear)
        self.scale = size.alpha / size.rank

    def __call__(self, features: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """What is added to the matrix's own product."""
        return self.up(self.down(features)) * self.scale


def merge_adapters(params: Mapping[str, jax.Array], alpha: float) -> dict[str, jax.Array]:
    """Parameters without adapters that compute the same: their products added to the matrices.

    Args:
        params: "path/to/parameter" to array, see `parameters.flatten`.
        alpha: of the adapters; their rank is told by their shapes.

    Returns:
        The same, without the adapters' own; merged matrices are float32 arrays of NumPy, added up in float64.
        Where there are no adapters, what was given.
    """
    merged = dict(params)
    for name in params:
        attention, found, _ = name.partition(f"/{OUTPUT}/down/kernel")
        if not found:
            continue
        for matrix, adapters in (("qkv", FUSED), ("output", (OUTPUT,))):
            products = []
            for adapter in adapters:
                down, up = (
                    np.asarray(merged.pop(f"{attention}/{adapter}/{side}/kernel"), np.float64)
                    for side in ("down", "up")
                )
                products.append(down @ up * (alpha / down.shape[1]))
            kernel = f"{attention}/{matrix}/kernel"
            whole = np.asarray(merged[kernel], np.float64) + np.concatenate(products, axis=1)
            merged[kernel] = whole.astype(np.float32)
    return merged
