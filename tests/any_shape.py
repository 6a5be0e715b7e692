"""A small volume tower for volumes of any shape, which rounding hardly moves."""

import jax.numpy as jnp
from flax import nnx

from medclip_jax.models.encoder import Encoded, VisionEncoder

KIND = "tests.any_shape:Cells"


class Cells(VisionEncoder):
    """Cells of 2 x 2 x 2 voxels through two linear layers; what an odd size leaves over is not seen."""

    part = "cells"
    any_shape = True
    pooling = "mean"

    @classmethod
    def defaults(cls):
        return {"width": 16}

    @classmethod
    def from_config(cls, config, shape, channels, *, rngs):
        return cls(config.width, channels, jnp.dtype(config.dtype), rngs)

    def __init__(self, width, channels, dtype, rngs):
        self.width = self.pooled_width = width
        self.first = nnx.Linear(8 * channels, width, dtype=dtype, rngs=rngs)
        self.second = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def grid_of(self, shape):
        return tuple(size // 2 for size in shape)

    def encode(self, voxels, keep=None, *, train=False):
        d, h, w = self.grid_of(voxels.shape[1:4])
        cut = voxels[:, : 2 * d, : 2 * h, : 2 * w].reshape(len(voxels), d, 2, h, 2, w, 2, -1)
        cells = cut.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(len(voxels), d * h * w, -1)
        return Encoded(self.second(nnx.gelu(self.first(cells))))

    def pool(self, encoded):
        return encoded.tokens.mean(axis=1)
