"""CMR-CLIP: contrast of cardiac MR studies, as sequences of frames, and the impressions of their reports.

The article and its public code; what they leave open is decided in `docs/reference/cmr-clip.md`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax.losses import contrastive
from medclip_jax.objectives import clip
from medclip_jax.objectives.base import Batch, DataSpec, Features, Inputs, Term
from medclip_jax.objectives.frame_tower import FRAME_INPUTS, FrameTower, frame_tower_defaults
from medclip_jax.sections import Section

DIRECTIONS = 2.0
"""The loss is the sum of study to text and text to study, where others take the mean."""


def default_config() -> Section:
    """Space-time ViT-B/16, BERT-base with mean pooling, 512 wide joint space, temperature 0.05."""
    shared = clip.default_config().to_dict()
    for name in ("logit_scale", "loss", "logit_bias", "prompts", "cached_texts"):
        del shared[name]
    shared["text"]["pooling"] = "mean"
    return Section(
        shared
        | {
            "name": "cmr_clip",
            "vision": frame_tower_defaults(),
            "temperature": 0.05,  # not learned
            "projection_bias": True,
        }
    )


class CmrClip(clip.Clip):
    """CLIP of frames and impressions at a fixed temperature; each projection is ReLU, then linear.

    A study of which no frame is there, such as one without the series that `config.data.views` names, takes
    no part in the loss; `terms/without_frames` is the share of such studies.

    Args:
        config: the keys of `default_config`.
        spec: fixes frames and vocabulary.
        rngs: source of the initial weights.
    """

    volume_inputs: ClassVar[tuple[str, ...]] = FRAME_INPUTS
    description: ClassVar[str] = (
        "cardiac MR studies, as sequences of frames, and impressions in one space, by contrast (CMR-CLIP)"
    )
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.cmr_clip:CmrClipModel"

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Frames and their impressions."""
        return (*FRAME_INPUTS, "tokens")

    def _volume_tower(self, config: Any, spec: DataSpec, rngs: nnx.Rngs) -> FrameTower:
        return FrameTower(config, spec, rngs=rngs)

    def _set_loss(self, config: Any, spec: DataSpec) -> None:
        self.temperature, self.same_study = config.temperature, config.same_study

    def _calibrate_tower(self, batch: Batch) -> None:
        """Nothing in the tower follows from data."""

    def _pooled(
        self, inputs: Inputs, keys: jax.Array | None = None, *, train: bool = False
    ) -> Float[Array, "B pooled"]:
        return self.vision(inputs, keys)

    def to_joint_space(self, pooled: Float[Array, "B pooled"]) -> Float[Array, "B D"]:
        """The projection of studies."""
        return self.vision_projection(jax.nn.relu(pooled))

    def _text_vectors(self, tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
        return self.text_projection(jax.nn.relu(self.text(tokens)))

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """Contrast over the studies that have frames, and the share whose own text ranks first."""
        volume, text, rows = features["volume"], features["text"], self._chunk_rows(features)
        valid = (batch["frame_valid"] > 0).any(axis=1)
        count = valid.sum().astype(jnp.float32)
        loss = contrastive.info_nce(
            volume,
            text,
            1.0 / self.temperature,
            groups=batch["study"],
            same_group=self.same_study,
            valid=valid,
            chunk_rows=rows,
        )
        hits = clip.first_hits(volume, text, batch["study"], rows)
        return {
            "contrast": Term(loss * count, count, DIRECTIONS),
            "top1": Term((hits * valid).sum(), count, 0.0),
            "without_frames": Term((~valid).sum().astype(jnp.float32), jnp.float32(len(valid)), 0.0),
        }

    def similarity_scale(self) -> Float[Array, ""]:
        """The inverse temperature."""
        return jnp.float32(1.0 / self.temperature)

    def explained_tower(self) -> None:
        """No heat maps over a volume: `FrameTower.attention` shows where the model looks in each frame."""
        return
