"""Convolutions by products of matrices are convolutions: against SciPy in float64, and nnx.Conv."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from scipy.signal import correlate

from medclip_jax.models.convolution import banded_convolution, convolution
from medclip_jax.models.kernels import variance_scaling
from medclip_jax.models.resnet import ResNet
from medclip_jax.training.flops import count_flops


@pytest.mark.parametrize("outputs", [2, 33])
@pytest.mark.parametrize("sizes", [(3, 3, 3), (1, 1, 1), (3, 1, 5), (1, 7, 3)])
@pytest.mark.parametrize("shape", [(4, 5, 8), (2, 3, 1), (1, 2, 6), (3, 4, 13)])
def test_bands_are_convolutions(shape, sizes, outputs):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *shape, 3)), rng.normal(size=(*sizes, 3, outputs))
    expected = np.zeros((2, *shape, outputs))
    for sample, channel, out in np.ndindex(2, 3, outputs):
        padded = np.pad(x[sample, ..., channel], [(size // 2, size // 2) for size in sizes])
        expected[sample, ..., out] += correlate(
            padded, kernel[..., channel, out], mode="valid", method="direct"
        )
    with jax.enable_x64(True):
        found = banded_convolution(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_gradients_of_bands():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 4, 6, 2)), rng.normal(size=(3, 3, 3, 2, 3))
    with jax.enable_x64(True):
        arguments = jnp.asarray(x), jnp.asarray(kernel)
        check_grads(banded_convolution, arguments, 1, modes=["rev"], atol=1e-7, rtol=1e-7)


def test_operations_are_counted_as_accelerators_do_them():
    options = {
        "dtype": jnp.float32,
        "initial": variance_scaling(2.0, "fan_in", "normal"),
        "rngs": nnx.Rngs(0),
    }
    x = jnp.zeros((2, 6, 5, 9, 3))
    conv = convolution(3, 4, (3, 3, 3), **options)
    assert count_flops(conv, x) == 2 * x.size * 27 * 4
    strided = convolution(3, 4, (3, 3, 3), (2, 1, 1), **options)
    assert count_flops(strided, x) == x.size * 27 * 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "strides", "shape"),
    [
        ((7, 7, 7), (2, 2, 2), (8, 12, 10)),
        ((3, 7, 5), (1, 2, 2), (5, 9, 11)),
        ((5, 1, 3), (3, 2, 1), (7, 5, 3)),
    ],
)
def test_strides_give_what_the_plain_convolution_gives(size, strides, shape, channels):
    rngs, x = nnx.Rngs(0), np.random.default_rng(0).normal(size=(2, *shape, channels)).astype(np.float32)
    resnet = ResNet(18, width=4, channels=channels, stem_size=size, stem_stride=strides, rngs=rngs)
    padding = [(k // 2, k // 2) for k in size]
    plain = nnx.Conv(channels, 4, size, strides, padding=padding, use_bias=False, rngs=rngs)
    assert resnet.conv1.kernel.shape == plain.kernel.shape == (*size, channels, 4)
    plain.kernel[...] = resnet.conv1.kernel[...]
    weights = np.random.default_rng(1).normal(size=plain(x).shape).astype(np.float32)

    @nnx.jit
    def run(conv, x):
        return conv(x), nnx.grad(lambda conv, x: (conv(x) * weights).sum(), argnums=(0, 1))(conv, x)

    assert type(resnet.conv1) is not nnx.Conv
    for found, expected in zip(
        jax.tree.leaves(run(resnet.conv1, x)), jax.tree.leaves(run(plain, x)), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
