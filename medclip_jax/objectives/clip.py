"""Contrast of volumes and reports: InfoNCE (CLIP) or sigmoid pairs (SigLIP); findings by prompts beside it.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021);
Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax.losses import chunked, contrastive
from medclip_jax.losses.prompts import finding_prompts
from medclip_jax.models.heads import LogitScale, Projection, common_part
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
from medclip_jax.objectives.towers import TextTower, VisionTower, text_defaults, vision_defaults
from medclip_jax.sections import Section
from medclip_jax.vectors import normalize


def default_config() -> Section:
    """ViT-B and BERT-base, 512 wide joint space, InfoNCE at temperature 0.07."""
    return Section(
        {
            "name": "clip",
            "vision": vision_defaults(),
            "text": text_defaults(),
            # Look up what the text encoder makes of texts, in config.data.text_vectors, instead of encoding
            # them in every step: for an encoder that is frozen.
            "cached_texts": False,
            "embedding_width": 512,  # of the joint space
            "logit_scale": 1.0 / 0.07,  # multiplier of cosines at the start; learned
            "loss": "info_nce",  # "info_nce" | "sigmoid"
            "logit_bias": -10.0,  # at the start; with "sigmoid" alone
            # Ask each volume for findings, too: "There is X." against "There is no X.", see
            # `losses.prompts.finding_prompts` and config.data.prompt_wordings.
            "prompts": {
                "weight": 0.0,  # of the term; 0 leaves it out
                "labels": "findings",  # who says what is there: "findings" the report | "labels" ground truth
                "unknown": "ignore",  # findings that are not mentioned or known: "ignore" | "absent"
                "findings": (),  # columns that are asked for; () = all that the shards have
                "logit_scale": 10.0,  # at the start; learned
            },
            "same_study": "positive",  # two volumes of a study to each other's report: "positive" | "ignore"
            "projection_bias": False,  # whether the projections have one
            "centered": False,  # start that bias at minus the mean over the first batch, see `calibrate`
            # Volumes that a device compares with all texts at a time; 0 = all that it has, or as many as make
            # `losses.chunked.AUTOMATIC_PAIRS` pairs where that is fewer.
            "chunk_rows": 0,
        }
    )


class Clip(Objective):
    """Two towers, two linear projections, one learnable temperature.

    Args:
        config: the keys of `default_config`.
        spec: fixes grid and vocabulary.
        rngs: source of the initial weights.
    """

    has_text: ClassVar[bool] = True
    description: ClassVar[str] = "volumes and reports in one space, by contrast of the two (CLIP)"
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.contrastive:ContrastiveModel"

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Volumes and their reports; with a term of prompts, these and what is known of the findings."""
        asked = ("prompts", config.prompts.labels) if config.prompts.weight else ()
        return ("volume", text_field(config), *asked)

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        self.vision = self._volume_tower(config.vision, spec, rngs)
        self.text = TextTower(config.text, spec, rngs=rngs)
        pooled_width = self.vision.pooled_width
        self.centered, self.cached_texts = config.centered, config.get("cached_texts", False)
        self.chunk_rows = config.chunk_rows
        width, bias = config.embedding_width, config.projection_bias or self.centered
        self.vision_projection = Projection(pooled_width, width, bias=bias, rngs=rngs)
        self.text_projection = Projection(self.text.width, width, bias=bias, rngs=rngs)
        self._set_loss(config, spec)

    def _volume_tower(self, config: Any, spec: DataSpec, rngs: nnx.Rngs) -> nnx.Module:
        return VisionTower(config, spec, rngs=rngs)

    def _set_loss(self, config: Any, spec: DataSpec) -> None:
        if config.loss not in ("info_nce", "sigmoid"):
            raise ValueError(f"config.objective.loss is {config.loss!r}; choose 'info_nce' or 'sigmoid'")
        self.loss = config.loss
        self.same_study = config.same_study
        bias = config.logit_bias if config.loss == "sigmoid" else None
        self.logit_scale = LogitScale(config.logit_scale, bias=bias)
        self.prompt_weight = float(config.prompts.weight)
        if self.prompt_weight:
            self._set_prompts(config.prompts, spec)

    def _set_prompts(self, config: Any, spec: DataSpec) -> None:
        for key, choices in (("labels", ("findings", "labels")), ("unknown", ("ignore", "absent"))):
            if config[key] not in choices:
                said = f"config.objective.prompts.{key} is {config[key]!r}"
                raise ValueError(f"{said}; choose {' or '.join(map(repr, choices))}")
        self.prompt_labels, self.unknown_is_absent = config.labels, config.unknown == "absent"
        self.prompt_columns = columns_of(config.findings or spec.findings, spec, "prompts.findings")
        self.prompt_scale = LogitScale(config.logit_scale)

    def calibrate(self, batch: Batch, key: jax.Array) -> None:
        """Standardize grid pooling; with `centered`, move either tower's mean projected vector to the origin.

        At the start, all vectors of a tower lie in a narrow cone, so that every cosine is near 1 and says
        little; on small data the first hundreds of steps go into opening it.

        References:
            Liang et al. 2022, "Mind the gap: understanding the modality gap in multi-modal contrastive
            representation learning" (the cone); Krähenbühl et al. 2016, "Data-dependent initializations of
            convolutional neural networks".
        """
        self._calibrate_tower(batch)
        if not self.centered:
            return
        features = self._features(batch, None, train=True)  # batch norm as in the first step
        for name, projection in (("volume", self.vision_projection), ("text", self.text_projection)):
            bias = projection.linear.bias
            bias[...] = bias[...] - common_part(features[name])

    def _calibrate_tower(self, batch: Batch) -> None:
        self.vision.calibrate(self.vision.to_voxels(batch["volume"]))

    def encode(self, batch: Batch, key: jax.Array, *, train: bool) -> Features:
        """Projected, unnormalized vectors of both towers."""
        return self._features(batch, sample_keys(key, batch["sample"]) if train else None, train=train)

    def _features(self, batch: Batch, keys: jax.Array | None, *, train: bool) -> Features:
        volume = self.to_joint_space(self._pooled(batch, keys, train=train))
        if self.cached_texts:
            text = self.text_projection(batch["text_vector"])
        else:
            text = self._text_vectors(batch["tokens"])
        return {"volume": volume.astype(jnp.float32), "text": text.astype(jnp.float32)}

    def _pooled(
        self, inputs: Inputs, keys: jax.Array | None = None, *, train: bool = False
    ) -> Float[Array, "B pooled"]:
        """What the volume tower makes of its inputs; augmented when keys (B,) are given."""
        return self.vision(inputs["volume"], keys, train=train)

    def _text_vectors(self, tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
        """Projected, unnormalized vectors of texts."""
        return self.text_projection(self.text(tokens))

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """The pair loss over the global batch, and the share of volumes whose own report ranks first.

        With a term of prompts, that, too, and the share of known findings that it gets right.
        """
        volume, text = features["volume"], features["text"]
        scale = self.logit_scale()
        if self.loss == "info_nce":
            loss = contrastive.info_nce(
                volume,
                text,
                scale,
                groups=batch["study"],
                same_group=self.same_study,
                chunk_rows=self._chunk_rows(features),
            )
        else:
            loss = contrastive.sigmoid_pairs(
                volume,
                text,
                scale,
                self.logit_scale.bias[...],
                groups=batch["study"],
                same_group=self.same_study,
                chunk_rows=self._chunk_rows(features),
            )
        terms = self._terms(loss, features, batch)
        return terms | self._prompt_terms(features["volume"], batch) if self.prompt_weight else terms

    def _prompt_terms(self, volume: Float[Array, "B D"], batch: Batch) -> dict[str, Term]:
        """The findings that prompts ask for; the prompts are encoded here, once for the global batch."""
        columns = jnp.asarray(self.prompt_columns)
        tokens = jnp.take(batch["prompts"][0], columns, axis=0)
        count, sides, length = tokens.shape
        vectors = self._text_vectors(tokens.reshape(count * sides, length)).reshape(count, sides, -1)
        status = jnp.take(batch[self.prompt_labels], columns, axis=1)
        if self.unknown_is_absent:
            status = jnp.where(status == 0, -1, status)
        loss, known, logits = finding_prompts(
            volume, vectors[:, 0], vectors[:, 1], status, self.prompt_scale()
        )
        right = ((jax.lax.stop_gradient(logits) * status > 0) & (status != 0)).sum().astype(jnp.float32)
        scale = jax.lax.stop_gradient(self.prompt_scale())
        return {
            "prompts": Term(loss, known, self.prompt_weight),
            "prompt_accuracy": Term(right, known, weight=0.0),
            "prompt_scale": Term(scale, jnp.float32(1.0), weight=0.0),
        }

    def _chunk_rows(self, features: Features) -> int:
        return self.chunk_rows or chunked.automatic(features["volume"].shape[0])

    def _terms(self, loss: Float[Array, ""], features: Features, batch: Batch) -> dict[str, Term]:
        size = features["volume"].shape[0]
        hits = first_hits(features["volume"], features["text"], batch["study"], self._chunk_rows(features))
        count = jnp.float32(size)
        return {
            "contrast": Term(loss * size, count),
            "top1": Term(hits.sum(), count, weight=0.0),
            "logit_scale": Term(jax.lax.stop_gradient(self.logit_scale()), jnp.float32(1.0), weight=0.0),
        }

    def embed_volumes(self, inputs: Inputs) -> Embedding:
        """Normalized joint-space vectors of volumes."""
        return Embedding(normalize(self.to_joint_space(self._pooled(inputs))))

    def pool_volumes(self, inputs: Inputs) -> Float[Array, "B pooled"]:
        """What the volume tower pools, before the projection."""
        return self._pooled(inputs).astype(jnp.float32)

    def embed_texts(self, tokens: Int[Array, "B L"]) -> Embedding:
        """Normalized joint-space vectors of texts."""
        return Embedding(normalize(self._text_vectors(tokens)))

    def similarity_scale(self) -> Float[Array, ""]:
        """The learned inverse temperature."""
        return self.logit_scale()

    def pooling(self) -> str:
        """Of both towers."""
        return f"volume {self.vision.pooling}, text {self.text.pooling}"

    def towers(self) -> dict[str, str]:
        """Both towers."""
        return {"volume tower": self.vision.describe(), "text tower": self.text.describe()}

    def explained_tower(self) -> VisionTower:
        """The volume tower."""
        return self.vision

    def to_joint_space(self, pooled: Float[Array, "B pooled"]) -> Float[Array, "B D"]:
        """The projection of volumes."""
        return self.vision_projection(pooled)


def text_field(config: Any) -> str:
    """The batch field that texts are read from.

    Args:
        config: `config.objective`, with `cached_texts`.
    """
    return "text_vector" if config.cached_texts else "tokens"


def columns_of(names: Sequence[str], spec: DataSpec, key: str) -> tuple[int, ...]:
    """Places of findings among the columns of the shards.

    Args:
        names: of findings.
        spec: fixes the columns.
        key: of `config.objective` that names them, for the message.

    Raises:
        ValueError: there are no names, or the shards hold no column for one.
    """
    if not names:
        raise ValueError("the shards hold no findings: prepare with --findings")
    missing = [name for name in names if name not in spec.findings]
    if missing:
        raise ValueError(
            f"the shards hold no findings {', '.join(missing)} (they hold {', '.join(spec.findings)}): "
            f"prepare with these findings, or shorten config.objective.{key}"
        )
    return tuple(spec.findings.index(name) for name in names)


def first_hits(
    rows: Float[Array, "rows D"], columns: Float[Array, "B D"], study: Int[Array, "B words"], chunk_rows: int
) -> Float[Array, " rows"]:
    """1 where the column nearest to a row, by cosine, is of the same study; without gradient.

    Args:
        rows: (B * M, D); rows i * M ... i * M + M - 1 belong to column i.
        columns: (B, D).
        study: (B, G) of the columns.
        chunk_rows: see `losses.chunked.map_rows`.
    """

    def hits(rows, columns):
        nearest = (rows["vector"] @ columns["vector"].T).argmax(axis=1)
        return jnp.all(columns["study"][nearest] == rows["study"], axis=1).astype(jnp.float32)

    rows, columns = (jax.lax.stop_gradient(normalize(x)) for x in (rows, columns))
    own = jnp.repeat(study, len(rows) // len(columns), axis=0)
    return chunked.map_rows(
        hits, {"vector": rows, "study": own}, {"vector": columns, "study": study}, chunk_rows
    )
