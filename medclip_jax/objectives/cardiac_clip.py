"""Cardiac-CLIP, stage 2: contrast against soft targets from the findings that two studies share.

"Cardiac-CLIP: A Vision-Language Foundation Model for 3D Cardiac CT Images", equations of the soft-label
matrix; what the paper leaves open is decided in `docs/reference/losses.md`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp

from medclip_jax.losses import contrastive
from medclip_jax.models.heads import LogitScale
from medclip_jax.objectives import clip
from medclip_jax.objectives.base import Batch, DataSpec, Features, Term
from medclip_jax.sections import Section

FINDINGS = (
    "coronary_stenosis",
    "coronary_calcification",
    "aortic_calcification",
    "atherosclerosis",
    "cardiomegaly",
    "pericardial_effusion",
    "pulmonary_arterial_hypertension",
)
"""The paper's seven, in its order."""


def default_config() -> Section:
    """The released shape: ViT-B, PubMedBERT-sized text tower, 768 wide linear projections."""
    shared = clip.default_config().to_dict()
    for name in ("loss", "logit_bias", "same_study", "prompts"):
        del shared[name]
    return Section(
        shared
        | {
            "name": "cardiac_clip",
            "embedding_width": 768,
            "findings": FINDINGS,  # columns that say how alike two studies are; () = all that the shards have
            # Options of `losses.contrastive.soft_target`.
            "soft_target": "softmax",
            "target_temperature": 1.0,
            "text_targets": "renormalized",
        }
    )


class CardiacClip(clip.Clip):
    """CLIP's towers with a soft-label loss: pairs with like findings attract in proportion.

    A finding that the report does not mention counts as absent.

    Args:
        config: the keys of `default_config`; `findings` are the columns that make the affinity.
        spec: fixes grid, vocabulary and the findings that were prepared.
        rngs: source of the initial weights.

    Raises:
        ValueError: the shards hold no column for one of `config.findings`.
    """

    description: ClassVar[str] = (
        "volumes and reports in one space, by contrast over shared findings (Cardiac-CLIP)"
    )

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Volumes, their reports, and the findings that say how alike two of them are."""
        return ("volume", clip.text_field(config), "findings")

    def _set_loss(self, config: Any, spec: DataSpec) -> None:
        self.logit_scale = LogitScale(config.logit_scale)
        self.columns = clip.columns_of(config.findings, spec, "findings")
        self.soft_target = config.soft_target
        self.target_temperature = float(config.target_temperature)
        self.text_targets = config.text_targets

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """Cross-entropy of both softmax directions against the soft targets of the global batch."""
        present = jnp.take(batch["findings"], jnp.asarray(self.columns), axis=1) == 1
        loss = contrastive.soft_target(
            features["volume"],
            features["text"],
            jnp.where(present, 1, -1),
            self.logit_scale(),
            soft_target=self.soft_target,
            target_temperature=self.target_temperature,
            text_targets=self.text_targets,
            chunk_rows=self._chunk_rows(features),
        )
        return self._terms(loss, features, batch)
