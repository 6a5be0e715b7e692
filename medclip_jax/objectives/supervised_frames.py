"""A frame tower that is trained with labels: classifiers of cardiac MR studies."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medclip_jax.objectives import supervised
from medclip_jax.objectives.base import Batch, DataSpec, Features, Inputs, Term
from medclip_jax.objectives.frame_tower import FRAME_INPUTS, FrameTower, frame_tower_defaults
from medclip_jax.objectives.targets import target_fields
from medclip_jax.sections import Section


def default_config() -> Section:
    """Findings of the ground truth, a linear head on the class token of a space-time ViT-B/16."""
    shared = supervised.default_config().to_dict()
    for name in ("features", "calibrate"):
        del shared[name]
    return Section(shared | {"name": "supervised_frames", "vision": frame_tower_defaults()})


class SupervisedFrames(supervised.Supervised):
    """A frame tower, a head, and labels.

    A study of which no frame is there takes no part in the loss; `terms/without_frames` is the share of such
    studies.

    Args:
        config: the keys of `default_config`.
        spec: fixes frames and the columns of labels.
        rngs: source of the initial weights.
    """

    volume_inputs: ClassVar[tuple[str, ...]] = FRAME_INPUTS
    description: ClassVar[str] = "a classifier of cardiac MR studies, which reads frames and no text"
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.frame_classifier:FrameClassifierModel"

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Frames, and what tells the truth."""
        return (*FRAME_INPUTS, *target_fields(config.target))

    def _add_tower(self, config: Any, spec: DataSpec, rngs: nnx.Rngs) -> int:
        self.vision = FrameTower(config.vision, spec, rngs=rngs)
        return self.vision.pooled_width

    def _features(
        self, inputs: Inputs, keys: jax.Array | None = None, *, train: bool = False
    ) -> Float[Array, "B F"]:
        return self.vision(inputs, keys).astype(jnp.float32)

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """The loss of the target, over what is known of the studies that have frames."""
        valid = (batch["frame_valid"] > 0).any(axis=1)
        field = self.target.field
        unknown = jnp.nan if field == "measurements" else 0
        known = jnp.where(valid[:, None], batch[field], unknown)
        missing = Term((~valid).sum().astype(jnp.float32), jnp.float32(len(valid)), 0.0)
        return super().couple(features, {**batch, field: known}) | {"without_frames": missing}

    def calibrate(self, batch: Batch, key: jax.Array) -> None:
        """Nothing in the tower follows from data."""

    def pooling(self) -> str:
        """Of the frame tower."""
        return f"study {self.vision.pooling}"

    def towers(self) -> dict[str, str]:
        """The frame tower, and what its head tells."""
        described = super().towers()
        return {"frame tower": described.pop("volume tower"), **described}

    def volume_tower(self) -> None:
        """None that reads volumes of HU."""
        return
