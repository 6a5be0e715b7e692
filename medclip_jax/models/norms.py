"""Normalization by statistics of the batch, or of each volume's groups of channels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class RunningStatistics(nnx.Module):
    """Mean and variance: in training of the batch, else running ones.

    Under `jax.jit` the mean over the batch axis is over all devices of the mesh, in whatever way the batch is
    split: nothing else is needed for global statistics, and with gradient caching they are those of the slice
    being encoded.

    Args:
        shape: of the axes that are kept.
        momentum: share of the newest batch in the running statistics.
    """

    def __init__(self, shape: tuple[int, ...], *, momentum: float = 0.1):
        self.momentum = momentum
        self.running_mean = nnx.BatchStat(jnp.zeros(shape))
        self.running_var = nnx.BatchStat(jnp.ones(shape))

    def statistics(
        self, x: Float[Array, ...], *, train: bool
    ) -> tuple[Float[Array, "*kept"], Float[Array, "*kept"]]:
        """Mean and variance (with bias) over the leading axes of `x`, at least float32.

        In training, the running statistics move towards them, the variance without bias, as PyTorch does.
        """
        if not train:
            return self.running_mean[...], self.running_var[...]
        axes = tuple(range(x.ndim - self.running_mean.ndim))
        count = math.prod(x.shape[: len(axes)])
        mean = x.mean(axes)
        # From centered values: the mean of squares minus the square of the mean loses digits.
        variance = jnp.square(x - mean).mean(axes)
        self._move(self.running_mean, mean)
        self._move(self.running_var, variance * (count / max(count - 1, 1)))
        return mean, variance

    def _move(self, running: nnx.BatchStat, newest: Float[Array, "*kept"]) -> None:
        running[...] = running[...] + self.momentum * (jax.lax.stop_gradient(newest) - running[...])


class BatchNorm(RunningStatistics):
    """Batch norm over every axis but the last, at least in float32; see `RunningStatistics`.

    Args:
        features: C.
        momentum: share of the newest batch in the running statistics.
        epsilon: added to the variance.

    References:
        Ioffe & Szegedy 2015, "Batch normalization".
    """

    def __init__(self, features: int, *, momentum: float = 0.1, epsilon: float = 1e-5):
        super().__init__((features,), momentum=momentum)
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "*axes C"], *, train: bool) -> Float[Array, "*axes C"]:
        """Normalize; in training, update the running statistics in place."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, variance = self.statistics(wide, train=train)
        factor = self.scale[...] * jax.lax.rsqrt(variance + self.epsilon)
        return ((wide - mean) * factor + self.bias[...]).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group norm: each volume by its own mean and variance in each group of channels, at least in float32.

    What it gives for a volume does not depend on the batch, so it is the same in training and evaluation, on
    any number of devices and with gradient caching.

    Args:
        features: C. There are 32 groups, or fewer where those would not be equal or hold one channel alone: a
            group of one value has nothing to say once it is normalized.
        epsilon: added to the variance.

    References:
        Wu & He 2018, "Group normalization".
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5):
        self.groups = math.gcd(32, max(features // 2, 1))
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "B *axes C"], *, train: bool) -> Float[Array, "B *axes C"]:
        """Normalize; `train` changes nothing."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        centered = wide - wide.mean((1, 3), keepdims=True)
        variance = jnp.square(centered).mean((1, 3), keepdims=True)
        normal = (centered * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


NORMS: dict[str, type[BatchNorm] | type[GroupNorm]] = {"batch": BatchNorm, "group": GroupNorm}
