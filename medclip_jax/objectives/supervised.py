"""A volume tower that is trained with labels: classifiers, fine-tuned or on a frozen tower."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medclip_jax.models.heads import ClassifierHead, OrderedCuts
from medclip_jax.objectives.base import (
    Batch,
    DataSpec,
    Embedding,
    Features,
    Inputs,
    Objective,
    Term,
    sample_keys,
)
from medclip_jax.objectives.targets import Columns, make_target, target_defaults, target_fields
from medclip_jax.objectives.towers import VisionTower, vision_defaults
from medclip_jax.sections import Section
from medclip_jax.vectors import normalize

FEATURES = ("pooled", "asap")
"""What a head reads: the tower's pooled vector; or the mean patch token of its last block, standardized."""


def default_config() -> Section:
    """Findings of the ground truth, a linear head on the pooled vector of a ViT-B."""
    return Section(
        {
            "name": "supervised",
            "vision": vision_defaults(),
            # "pooled", or "asap": the mean of the last block's patch tokens, before the encoder's final norm,
            # in a LayerNorm without scale and shift.
            "features": "pooled",
            # Begin with what the tower sets by the first volumes (pooling "grid", extremes): for towers from
            # scratch. One that was trained before keeps its own.
            "calibrate": False,
            "head": {
                "layers": "linear",  # or "mlp": Linear - LayerNorm - GELU - Linear
                "hidden": 0,  # features within "mlp"; 0 = as many as come in
                "dropout": 0.0,  # of what enters the last layer
            },
            "target": target_defaults(),
        }
    )


class Supervised(Objective):
    """A tower, a head, and labels.

    Args:
        config: the keys of `default_config`.
        spec: fixes the grid and the columns of labels.
        rngs: source of the initial weights.

    Raises:
        ValueError: unknown settings, or data that lack what the target names.
    """

    description: ClassVar[str] = "a classifier: it tells what it was trained to tell, and reads no text"
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.classifier:ClassifierModel"

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Volumes, and what tells the truth."""
        return ("volume", *target_fields(config.target))

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        width = self._add_tower(config, spec, rngs)
        self.target = make_target(config.target, spec)
        self.predicts, self.outcome = self.target.outputs, self.target.outcome
        self.exclusive = self.target.task == "multi_class"
        self.head = ClassifierHead(
            width,
            self.target.scores,
            layers=config.head.layers,
            hidden=config.head.hidden,
            dropout=config.head.dropout,
            rngs=rngs,
        )
        self.cuts = OrderedCuts(len(self.predicts), rngs=rngs) if self.target.task == "ordinal" else None

    def _add_tower(self, config: Any, spec: DataSpec, rngs: nnx.Rngs) -> int:
        """Build `vision`; how many features the head reads of it."""
        if config.features not in FEATURES:
            raise ValueError(
                f"config.objective.features={config.features!r}: use one of {', '.join(FEATURES)}"
            )
        self.vision = VisionTower(config.vision, spec, rngs=rngs)
        self.features, self.calibrates = config.features, bool(config.calibrate)
        return self.vision.pooled_width if self.features == "pooled" else self.vision.width

    def _features(
        self, inputs: Inputs, keys: jax.Array | None = None, *, train: bool = False
    ) -> Float[Array, "B F"]:
        """What the head reads."""
        if self.features == "pooled":
            return self.vision(inputs["volume"], keys, train=train).astype(jnp.float32)
        return self.vision.mean_token(inputs["volume"], keys, train=train)

    def _logits(self, features: Float[Array, "B F"], keys: jax.Array | None = None) -> Float[Array, "B K"]:
        scores = self.head(features, keys)
        return scores if self.cuts is None else self.cuts(scores)

    def encode(self, batch: Batch, key: jax.Array, *, train: bool) -> Features:
        """Logits (B, K), one for each of `predicts`."""
        augment_key, dropout_key = jax.random.split(key)
        augment = sample_keys(augment_key, batch["sample"]) if train else None
        dropout = sample_keys(dropout_key, batch["sample"]) if train else None
        return {"logits": self._logits(self._features(batch, augment, train=train), dropout)}

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """The loss of the target, over what is known in the batch."""
        return {self.target.task: Term(*self.target.loss(features["logits"], batch))}

    def calibrate(self, batch: Batch, key: jax.Array) -> None:
        """What the tower sets by the first volumes, where the config says so."""
        if self.calibrates:
            self.vision.calibrate(self.vision.to_voxels(batch["volume"]))

    def embed_volumes(self, inputs: Inputs) -> Embedding:
        """What the head reads, normalized."""
        return Embedding(normalize(self.pool_volumes(inputs)))

    def pool_volumes(self, inputs: Inputs) -> Float[Array, "B pooled"]:
        """What the head reads."""
        return self._features(inputs)

    def predict(self, inputs: Inputs) -> Float[Array, "B P"]:
        """Probability of each of `predicts`."""
        return self.target.probabilities(self._logits(self.pool_volumes(inputs)))

    def truths(self, labels: Columns, reported: Columns, measurements: Columns) -> dict[str, Any]:
        """By the target."""
        return self.target.truths(labels, reported, measurements)

    def pooling(self) -> str:
        """Of the volume tower."""
        if self.features == "asap":
            return "mean of the last block's patch tokens, standardized"
        return f"volume {self.vision.pooling}"

    def towers(self) -> dict[str, str]:
        """The volume tower, and what its head tells."""
        told = ", ".join(self.predicts)
        return {"volume tower": self.vision.describe(), "predicts": f"{self.target.describe()}: {told}"}

    def volume_tower(self) -> VisionTower:
        """The encoder."""
        return self.vision
