"""T3D: contrast of volumes and reports, and of local views that have read the report with their volume.

"T3D: Advancing 3D Medical Vision-Language Pre-training by Learning Multi-View Visual Consistency"; what the
paper leaves open is decided in `docs/reference/t3d.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from medclip_jax import transforms
from medclip_jax.losses import contrastive, views
from medclip_jax.models import blocks
from medclip_jax.models.heads import Projection
from medclip_jax.objectives import clip
from medclip_jax.objectives.base import (
    VIEWS,
    Batch,
    DataSpec,
    Features,
    Term,
    ViewMatch,
    sample_keys,
)
from medclip_jax.objectives.towers import vision_defaults
from medclip_jax.sections import Section
from medclip_jax.sharding import batch_sharded
from medclip_jax.vectors import normalize

SIMILARITIES = ("cosine", "dot")
HEADS = ("prototype", "batch_linear")


@dataclass(frozen=True)
class Weights:
    """Weights of the terms; one with weight 0 is left out."""

    contrast: float
    views: float


def default_config() -> Section:
    """ResNet-50 on HU of -1000 to 1000 scaled to [0, 1], BERT-base, three views of 64 x 128 x 128 voxels."""
    shared = clip.default_config().to_dict()
    for name in ("logit_scale", "loss", "logit_bias", "prompts", "cached_texts"):
        del shared[name]
    return Section(
        shared
        | {
            "name": "t3d",
            # The tower scales windows to [-1, 1]; mean -1 and standard deviation 2 make it [0, 1].
            "vision": vision_defaults("resnet") | {"standardize": ((-1.0, 2.0),)},
            "embedding_width": 768,
            "temperature": 0.07,  # of both losses; not learned
            # 0 leaves a term out: contrast of volumes and reports, assignment of views to volumes.
            "weights": {"contrast": 1.0, "views": 1.0},
            # "cosine", both directions averaged | "dot", unnormalized and volume to report alone: the paper's
            # equation as it stands.
            "similarity": "cosine",
            "views": {
                "count": 3,  # crops of a volume
                "shape": (64, 128, 128),  # of a crop, voxels along depth, height, width
                "read_report": True,  # False: a crop's tokens are pooled as they are
                "depth": 1,  # blocks in which the tokens read the report
                "heads": 8,
                "mlp_ratio": 4.0,
                # "prototype": the volumes of the batch are the classes | "batch_linear": a linear layer over
                # the batch's places, as the paper words it.
                "head": "prototype",
                "batch_size": 0,  # with "batch_linear" alone: the same number as config.batch_size
            },
        }
    )


class T3d(clip.Clip):
    """CLIP's towers at a fixed temperature, and blocks in which the tokens of crops read the report.

    Args:
        config: the keys of `default_config`.
        spec: fixes grid and vocabulary.
        rngs: source of the initial weights.

    Raises:
        ValueError: an unknown option, crops that do not fit, or a volume tower that takes none.
    """

    description: ClassVar[str] = (
        "volumes and reports in one space, by contrast of both and of local views (T3D)"
    )
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.t3d:T3dModel"

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Volumes and their reports."""
        return ("volume", "tokens")

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        super().__init__(config, spec, rngs=rngs)
        self.weights = Weights(**config.weights)
        self.head = config.views.head
        self.matches_views = self.weights.views > 0 and self.head == "prototype"
        if self.weights.views:
            self._set_views(config, rngs)

    def _set_loss(self, config: Any, spec: DataSpec) -> None:
        if config.similarity not in SIMILARITIES:
            raise ValueError(
                f"config.objective.similarity is {config.similarity!r}; choose 'cosine' or 'dot'"
            )
        self.similarity, self.same_study = config.similarity, config.same_study
        self.temperature = config.temperature

    def _set_views(self, config: Any, rngs: nnx.Rngs) -> None:
        given, width = config.views, self.vision.width
        self.views, self.view_shape = given.count, tuple(given.shape)
        self.remat = "none" if config.vision.remat == "none" else "block"
        if self.head not in HEADS:
            raise ValueError(
                f"config.objective.views.head is {self.head!r}; choose 'prototype' or 'batch_linear'"
            )
        if (self.head == "batch_linear") != bool(given.batch_size):
            raise ValueError(
                f"config.objective.views.batch_size={given.batch_size} with head={self.head!r}: "
                "'batch_linear' needs config.batch_size there, 'prototype' 0"
            )
        if not self.vision.encoder.any_shape:
            raise ValueError(
                f"views are smaller than volumes, and a volume tower of kind {self.vision.kind!r} takes one "
                "shape alone: choose kind 'resnet', or config.objective.weights.views=0"
            )
        fits = all(0 < part <= size for part, size in zip(self.view_shape, self.vision.shape, strict=True))
        if self.views < 1 or not fits:
            raise ValueError(
                f"config.objective.views: {self.views} of {self.view_shape} voxels from volumes of "
                f"{self.vision.shape}: give a count of 1 or more, and a shape no larger than the volumes"
            )

        def block():
            return blocks.CrossBlock(
                width,
                given.heads,
                context_width=self.text.width,
                mlp_ratio=given.mlp_ratio,
                dtype=jnp.dtype(config.vision.dtype),
                rngs=rngs,
            )

        self.view_blocks = blocks.stack(given.depth, block) if given.read_report else None
        self.view_projection = Projection(width, given.batch_size or config.embedding_width, rngs=rngs)

    def encode(self, batch: Batch, key: jax.Array, *, train: bool) -> Features:
        """Projected, unnormalized vectors of volumes, reports and views, the last (B, M, D)."""
        augment_key, crop_key, view_key = jax.random.split(key, 3)
        keys = sample_keys(augment_key, batch["sample"]) if train else None
        volume = self.vision_projection(self.vision(batch["volume"], keys, train=train))
        states, mask, text = self._read(batch["tokens"])
        features = {"volume": volume.astype(jnp.float32), "text": text.astype(jnp.float32)}
        if self.weights.views:
            keys = sample_keys(view_key, batch["sample"]) if train else None
            tokens = self._view_tokens(batch, crop_key, keys, train=train)
            features["views"] = self._view_vectors(tokens, states, mask)
        return features

    def _read(self, tokens):
        """States (B, L, W) of reports, where they are no padding, and the reports' projected vectors."""
        mask = tokens != self.text.pad_token
        states = self.text.encoder(tokens, mask)
        pooled = self.text.encoder.pool(states, tokens, mask, self.text.pooling)
        return states, mask, self.text_projection(pooled)

    def _view_tokens(self, batch, crop_key, keys, *, train):
        """Tokens (B * M, N, W) of random crops; augmented when keys (B,) are given."""
        crops = transforms.random_crops(
            batch["volume"], sample_keys(crop_key, batch["sample"]), count=self.views, shape=self.view_shape
        )
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, self.views))(keys).reshape(-1)
        # All crops of the batch pass through the encoder at once.
        crops = batch_sharded(crops.reshape(-1, *self.view_shape))
        return self.vision.encode(self.vision.to_voxels(crops, keys), train=train).tokens

    def _view_vectors(
        self,
        tokens: Float[Array, "crops tokens W"],
        states: Float[Array, "B L text"],
        mask: Bool[Array, "B L"],
    ) -> Float[Array, "B M D"]:
        """Vectors of views from their tokens and the reports, not normalized."""
        if self.view_blocks is not None:
            states, mask = (batch_sharded(jnp.repeat(x, self.views, axis=0)) for x in (states, mask))
            tokens = blocks.run(self.view_blocks, tokens, states, None, mask, remat=self.remat)
        vectors = self.view_projection(tokens.mean(axis=1, dtype=jnp.float32)).astype(jnp.float32)
        return vectors.reshape(-1, self.views, vectors.shape[-1])

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """Contrast: mean over pairs. Views: mean over pairs, sum over a volume's views, so that a view weighs
        as much as a pair. Then what is only logged: how many volumes and views find their own among all.
        """
        volume, text, size = features["volume"], features["text"], features["volume"].shape[0]
        count, scale, rows = jnp.float32(size), 1.0 / self.temperature, self._chunk_rows(features)
        pairs = {"groups": batch["study"], "same_group": self.same_study, "chunk_rows": rows}
        terms = {}
        if self.weights.contrast:
            if self.similarity == "cosine":
                loss = contrastive.info_nce(volume, text, scale, **pairs) * size
            else:
                loss = contrastive.one_way(volume, text, scale, normalized=False, **pairs).sum()
            terms["contrast"] = Term(loss, count, self.weights.contrast)
        hits = clip.first_hits(volume, text, batch["study"], rows)
        terms["top1"] = Term(hits.sum(), count, 0.0)
        if self.weights.views:
            terms |= self._view_terms(features, batch, pairs)
        return terms

    def _view_terms(self, features, batch, pairs):
        seen, volume = features["views"], features["volume"]
        count = jnp.float32(len(seen))
        if self.head == "batch_linear":
            if seen.shape[0] != seen.shape[2]:
                raise ValueError(
                    f"config.objective.views.batch_size={seen.shape[2]} and a batch of {seen.shape[0]}: give "
                    "both one number"
                )
            loss = views.slot_assignment(seen, temperature=self.temperature)
            return {"views": Term(loss.sum(), count, self.weights.views)}
        loss = views.prototype_assignment(seen, volume, temperature=self.temperature, **pairs)
        flat = seen.reshape(-1, seen.shape[2])
        hits = clip.first_hits(flat, volume, batch["study"], pairs["chunk_rows"])
        return {
            "views": Term(loss.sum(), count, self.weights.views),
            "views_top1": Term(hits.sum(), jnp.float32(len(flat)), 0.0),
        }

    def match_views(self, batch: Batch, key: jax.Array, *, image: str = "own") -> ViewMatch:
        """See `Objective.match_views`.

        Raises:
            ValueError: an unknown `image`, or a model without prototypes.
        """
        if image not in VIEWS:
            raise ValueError(f"image={image!r} is unknown: use 'own', 'other' or 'noise'")
        if not self.matches_views:
            raise ValueError("this model assigns no views to volumes: it was trained without prototypes")
        crop_key, noise_key = jax.random.split(key)
        states, mask, _ = self._read(batch["tokens"])
        tokens = self._view_tokens(batch, crop_key, None, train=False)
        if image == "other":
            tokens = jnp.roll(tokens, self.views, axis=0)
        elif image == "noise":
            # Of the tokens' own mean and spread, so that only what they say is lost.
            noise = jax.random.normal(noise_key, tokens.shape, tokens.dtype)
            tokens = tokens.mean(axis=(0, 1)) + tokens.std(axis=(0, 1)) * noise
        vectors = normalize(self._view_vectors(tokens, states, mask))
        return ViewMatch(vectors, self.embed_volumes(batch).mean)

    def similarity_scale(self) -> Float[Array, ""]:
        """The inverse temperature."""
        return jnp.float32(1.0 / self.temperature)
