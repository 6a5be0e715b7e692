"""What is most unusual in feature maps: findings that are small and may lie anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medclip_jax.models.linear import Linear
from medclip_jax.models.norms import BatchNorm, RunningStatistics


class Standard(RunningStatistics):
    """How far each feature is from what is usual at its place, in units of its usual spread there.

    What is usual is the mean of the batch in training, else the running one, as in batch norm. To the spread
    of a place a quarter of the mean spread of all places is added: where hardly anything varies, not every
    change is news.

    Args:
        places: N.
        features: C.
    """

    def __init__(self, places: int, features: int):
        super().__init__((places, features))

    def __call__(self, x: Float[Array, "B N C"], *, train: bool) -> Float[Array, "B N C"]:
        """Standardize, in float32; in training, update the running statistics in place."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, variance = self.statistics(wide, train=train)
        # The root has no gradient at 0, as where a ReLU gives nothing in all volumes.
        spread = jnp.sqrt(variance + 1e-8)
        return (wide - mean) / (spread + 0.25 * spread.mean(axis=0) + 1e-6)


class Extremes(nnx.Module):
    """One vector from several feature maps: their means, and what is most unusual anywhere in them.

    Of each feature of each map: its mean over all places, and the highest and the lowest of what `Standard`
    makes of it. A mean drowns what fills few places; a plain maximum is that of the heart or of a vessel in
    every volume. These numbers are brought to a common scale by batch norm, then mapped linearly.

    Args:
        sizes: (places, features) of each map.
        width: features of the vector.
        dtype: compute type of the linear map.
        rngs: draws it.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], width: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.standards = nnx.Dict({str(i): Standard(*size) for i, size in enumerate(sizes)})
        count = 3 * sum(features for _, features in sizes)
        self.norm = BatchNorm(count)
        self.linear = Linear(count, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, maps: Sequence[Float[Array, "B places features"]], *, train: bool
    ) -> Float[Array, "B F"]:
        """Maps of the sizes that were announced, (B, N, C) each, to (B, width)."""
        found = []
        for standard, features in zip(self.standards.values(), maps, strict=True):
            unusual = standard(features, train=train)
            found += [features.mean(axis=1, dtype=unusual.dtype), unusual.max(axis=1), unusual.min(axis=1)]
        return self.linear(self.norm(jnp.concatenate(found, axis=-1), train=train))
