"""Normalization by statistics of the batch, of each volume's groups of channels, or of each token."""

from __future__ import annotations

import functools
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


class LayerNorm(nnx.LayerNorm):
    """Layer norm of the last axis, at least in float32; the parameters are those of `flax.nnx.LayerNorm`.

    Its derivative is its own: the backward pass keeps the input and two numbers a token, where
    differentiation would keep several float32 arrays of the input's size. It has no forward-mode derivative.
    """

    def __call__(self, x: Float[Array, "*axes C"]) -> Float[Array, "*axes C"]:
        """The shape stays; the type is the module's `dtype`, by default that of `x`."""
        x = x if self.dtype is None else x.astype(self.dtype)
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*axes C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> Float[Array, "*axes C"]:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over the last axis, in the type of `x`.

    References:
        Ba et al. 2016, "Layer normalization".
    """
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    # The square of the mean taken away, and not each value centered first: x is read once.
    variance = jnp.maximum(jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    return ((wide - mean) * inverse * scale + bias).astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(epsilon, kept, gradient):
    x, mean, inverse, scale = kept
    normal = (x.astype(mean.dtype) - mean) * inverse
    gradient = gradient.astype(mean.dtype)
    others = tuple(range(x.ndim - 1))
    to_scale, to_bias = (gradient * normal).sum(others), gradient.sum(others)
    gradient = gradient * scale
    along = (gradient * normal).mean(-1, keepdims=True)
    to_x = inverse * (gradient - gradient.mean(-1, keepdims=True) - normal * along)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


NORMS: dict[str, type[BatchNorm] | type[GroupNorm]] = {"batch": BatchNorm, "group": GroupNorm}
