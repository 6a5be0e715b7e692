"""The tower of systems that read frames: a study's series, one after the other, to one vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from medclip_jax import transforms
from medclip_jax.models.encoder import Encoded
from medclip_jax.models.spacetime import SpaceTimeTransformer
from medclip_jax.objectives.base import DataSpec, Inputs
from medclip_jax.volumes.modality import WINDOW_TOP

FRAME_INPUTS = ("frames", "view", "frame_valid")
"""Batch fields that the tower reads."""


def frame_tower_defaults() -> dict[str, Any]:
    """Keys of a frame tower: ViT-B/16 with attention divided into time and space, gray frames."""
    return {
        **SpaceTimeTransformer.defaults(),
        "weights": "",  # file of a published 2D ViT that a fresh run starts from, see docs/how-to/weights.md
        # (mean, standard deviation) for each channel: intensities of 0 to 1 become (x - mean) / deviation.
        # One makes gray frames in [-1, 1]; ImageNet's three go with weights that were learned on photographs.
        "channels": ((0.5, 0.5),),
        # Above 0: one more channel, what a frame differs by from the mean frame of its series, times this.
        # Ours, not the article's: it shows motion to the first layer, see docs/reference/cmr-clip.md.
        "motion": 0.0,
        "augment": {
            "crop_area": (1.0, 1.0),  # share of the frame that a random box covers, smallest and largest
            "flip": False,  # mirror left and right: anatomically wrong
            "gain": 0.0,  # largest relative change of contrast
            "noise": 0.0,  # largest standard deviation of white noise, of intensities in [0, 1]
        },
        "dtype": "bfloat16",
        "remat": "none",  # what is computed again in the backward pass, see `models.blocks.run`
    }


class FrameTower(nnx.Module):
    """Scaling, augmentation and a space-time transformer: frames of 0 to `WINDOW_TOP` to one vector.

    Args:
        config: the keys of `frame_tower_defaults`.
        spec: fixes the shape of frames and how many series there are.
        rngs: source of the initial weights.

    Raises:
        ValueError: the data hold no frames, or more series than the view embedding has rows.

    Attributes:
        video: the network; its parameters lie at "vision/video".
        width: features of a token.
        pooling: how tokens become one vector, in a word.
        pooled_width: features of that vector.
    """

    pooling = "cls"

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        if not spec.frame_shape:
            raise ValueError(
                "the objective reads frames, and the data hold none: prepare with --corpus cmr, or, without "
                "shards, set config.data.prepare.views and config.data.prepare.frame_shape"
            )
        if config.views and len(spec.views) > config.views:
            raise ValueError(
                f"the data hold {len(spec.views)} series of frames and config.objective.vision.views is "
                f"{config.views}: set it to that number or more, or to 0 for no embedding of series"
            )
        self.channels = tuple((float(mean), float(std)) for mean, std in config.channels)
        self.crop_area = tuple(config.augment.crop_area)
        self.motion = float(config.motion)
        self.flip = bool(config.augment.flip)
        self.gain, self.noise = float(config.augment.gain), float(config.augment.noise)
        self.video = SpaceTimeTransformer.from_config(
            config, tuple(spec.frame_shape), len(self.channels) + (self.motion > 0), rngs=rngs
        )
        self.width, self.pooled_width = self.video.width, self.video.pooled_width

    def describe(self) -> str:
        """What the tower is, in words, for tables and cards."""
        return self.video.describe()

    def to_float(self, inputs: Inputs, keys: jax.Array | None = None) -> Float[Array, "B T H W C"]:
        """Intensities to floats, by channel; augmented when keys (B,) are given.

        Of the fields of `FRAME_INPUTS`. The last channel is that of motion, where the config has one.
        """
        values = inputs["frames"].astype(jnp.float32) / WINDOW_TOP
        if keys is not None:
            values = transforms.augment_frames(
                values,
                keys,
                crop_area=self.crop_area,
                flip_width=self.flip,
                gain=self.gain,
                noise=self.noise,
            )
        mean, std = jnp.asarray(self.channels).T
        scaled = (values[..., None] - mean) / std
        if not self.motion:
            return scaled
        moved = self.motion * transforms.beyond_mean_frame(values, inputs["view"], inputs["frame_valid"] > 0)
        return jnp.concatenate([scaled, moved[..., None]], axis=-1)

    def encode(self, inputs: Inputs, keys: jax.Array | None = None) -> Encoded:
        """Tokens of the fields of `FRAME_INPUTS`; augmented when keys (B,) are given."""
        return self.video.encode(self.to_float(inputs, keys), *_known(inputs))

    def attention(self, inputs: Inputs) -> Float[Array, "B T h w"]:
        """Where the class token looks in each frame, see `SpaceTimeTransformer.class_attention`."""
        return self.video.class_attention(self.to_float(inputs), *_known(inputs))

    def __call__(self, inputs: Inputs, keys: jax.Array | None = None) -> Float[Array, "B pooled"]:
        """One pooled vector a study; augmented when keys (B,) are given."""
        return self.video.pool(self.encode(inputs, keys))


def _known(inputs: Inputs) -> tuple[Bool[Array, "B T"], Int[Array, "B T"]]:
    """Which frames there are, and of which series."""
    return inputs["frame_valid"] > 0, inputs["view"]
