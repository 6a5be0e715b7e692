"""The seam between every system and the one training loop: encode per sample, couple across the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int8, UInt8

if TYPE_CHECKING:
    from medclip_jax.objectives.towers import VisionTower

Batch = Mapping[str, jax.Array]
"""Integers from the pipeline, by the names of `medclip_jax.fields.FIELDS`."""

Features = dict[str, jax.Array]
"""What `encode` hands to `couple`: small arrays, every one with the batch on its first axis."""

Inputs = Mapping[str, jax.Array]
"""What is embedded: batch fields by name, every one with the batch on its first axis."""


class Term(NamedTuple):
    """A named share of the loss, as a sum and a count so that shards and microbatches add up exactly.

    The loop's loss is ``sum over terms of weight * sum / count`` (0 where count is 0). A term with
    weight 0 is a metric: logged, never differentiated into the loss.
    """

    sum: Float[Array, ""]
    count: Float[Array, ""]
    weight: float = 1.0


class Embedding(NamedTuple):
    """A point, or a Gaussian where the system has one, in the joint space. Means are L2-normalized."""

    mean: Float[Array, "B D"]
    log_variance: Float[Array, "B D"] | None = None


class OrganEmbedding(NamedTuple):
    """Gaussians of the organs of volumes.

    Attributes:
        mean: (B, O, D), L2-normalized.
        log_variance: (B, O, D).
        present: (B, O), False where the organ does not show in the volume: its numbers mean nothing.
    """

    mean: Float[Array, "B O D"]
    log_variance: Float[Array, "B O D"]
    present: Bool[Array, "B O"]


class Selected(NamedTuple):
    """Which patches of their volume the sentences of reports are about.

    Attributes:
        similarity: (B, S, N) cosines, patches in the order of the grid.
        count: (B, S) how many patches a sentence is about: the most similar ones.
        valid: (B, S), False where a report has no such sentence.
    """

    similarity: Float[Array, "B S N"]
    count: Int[Array, "B S"]
    valid: Bool[Array, "B S"]


class Words(NamedTuple):
    """Reports with hidden words, and what was filled in.

    Attributes:
        masked: (B, L) the ids that the model saw.
        hidden: (B, L), True where a word was hidden.
        filled: (B, L) the most probable word in each place.
    """

    masked: Int[Array, "B L"]
    hidden: Bool[Array, "B L"]
    filled: Int[Array, "B L"]


VIEWS = ("own", "other", "noise")
"""What `Objective.match_views` looks at: a volume's own crops, those of another one, or none."""


class ViewMatch(NamedTuple):
    """Vectors by which crops are assigned to volumes; L2-normalized."""

    views: Float[Array, "B M D"]
    """M crops of each volume, after they read its report."""
    volumes: Float[Array, "B D"]


class Reconstruction(NamedTuple):
    """Volumes, what the model saw of them and what it filled in, as windowed floats in [-1, 1]."""

    original: Float[Array, "B D H W C"]
    visible: Float[Array, "B D H W C"]
    """The original with hidden patches at NaN."""
    completed: Float[Array, "B D H W C"]
    """Visible patches as they were, hidden ones as predicted."""


@dataclass(frozen=True)
class DataSpec:
    """What the prepared shards and the tokenizer fix before a model can be built.

    Attributes:
        shape: (D, H, W) voxels of a prepared volume; () where records hold none.
        spacing: mm per voxel along depth, height, width; None where volumes are resized scans, which have
            each its own.
        views: names of the series of frames, () where records hold none.
        frame_shape: (H, W) pixels of a frame, () likewise.
        findings: names of the columns of `batch["findings"]`.
        organs: names of the channels of `batch["organs"]`, () where there are none.
        organ_shape: (O, d, h, w) of a sample's `batch["organs"]`, () likewise.
        label_classes: names of the classes 1, 2, ... of `batch["label_map"]`, () where there are none.
        measurements: names of the columns of `batch["measurements"]`, () where there are none.
        vocabulary_size: entries of the tokenizer.
        mask_token, pad_token: ids in that tokenizer.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float | None, float | None, float | None]
    findings: tuple[str, ...] = ()
    organs: tuple[str, ...] = ()
    organ_shape: tuple[int, ...] = ()
    vocabulary_size: int = 0
    mask_token: int = 0
    pad_token: int = 0
    views: tuple[str, ...] = ()
    frame_shape: tuple[int, ...] = ()
    label_classes: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: Any, tokenizer: Any | None) -> DataSpec:
        """From what `shards.read.open_shards` returned and a tokenizer, None for runs without text."""
        series = [one for one in info.series if one.frames]
        return cls(
            shape=tuple(info.shape),
            spacing=tuple(info.spacing),
            findings=tuple(info.findings),
            organs=tuple(info.organs),
            organ_shape=tuple(info.schema.organ_shape) if info.organs else (),
            vocabulary_size=tokenizer.vocabulary_size if tokenizer else 0,
            mask_token=tokenizer.mask if tokenizer else 0,
            pad_token=tokenizer.pad if tokenizer else 0,
            views=tuple(one.name for one in series),
            frame_shape=tuple(series[0].shape[1:]) if series else (),
            label_classes=info.label_classes,
            measurements=tuple(info.measurements),
        )


class Objective(nnx.Module):
    """A system: its towers, its heads, how it learns, how it embeds, and what others need to know of it.

    `encode` and `couple` are for training; `embed_volumes` and, with `has_text`, `embed_texts` for
    evaluation, export and inference; `pool_volumes` for probes. All that those need to know is declared
    here, with an answer for a system that has none of it. Subclasses live one to a file in `objectives/` and
    are registered by name in `objectives.create`.

    Attributes:
        volume_inputs: batch fields that `embed_volumes` reads.
        has_text: whether `embed_texts` works.
        embeds_organs: whether `embed_organs` works.
        selects_patches: whether `embed_patches` and `select` work.
        predicts_organs: whether `predict_organs` works.
        reconstructs: whether `reconstruct` works.
        fills_words: whether `fill_words` works.
        matches_views: whether `match_views` works.
        segments: whether `segment` works.
        predicts: names of what `predict` tells, () where it tells nothing.
        exclusive: whether of all that it tells exactly one is true.
        outcome: where the last of them is a risk, the measurements of the time of its event and of whether it
            came; () elsewhere.
        word_inputs: batch fields that `fill_words` reads, beside `study` and `sample`.
        description: what it is, for the model card; follows a colon.
        torch_twin: "package.module:Class", the torch class that embeds likewise and travels with an exported
            model, see `export.torch.model.VolumeModel`; "" where there is none, and then no export.
    """

    volume_inputs: ClassVar[tuple[str, ...]] = ("volume",)
    has_text: ClassVar[bool] = False
    embeds_organs: ClassVar[bool] = False
    selects_patches: bool = False
    predicts_organs: bool = False
    reconstructs: ClassVar[bool] = False
    fills_words: bool = False
    matches_views: bool = False
    predicts: tuple[str, ...] = ()
    exclusive: bool = False
    outcome: tuple[str, ...] = ()
    word_inputs: tuple[str, ...] = ()
    segments: ClassVar[bool] = False
    description: ClassVar[str] = "a system of one's own"
    torch_twin: ClassVar[str] = ""

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Names of the batch fields that `encode` and `couple` read, beside `study` and `sample`.

        Args:
            config: `config.objective`.
        """
        raise NotImplementedError

    def encode(self, batch: Batch, key: jax.Array, *, train: bool) -> Features:
        """Map each sample on its own to small features.

        Nothing here may look across the batch, but for batch norm in training: with microbatches its batch
        is the slice.

        Args:
            batch: the slice to encode.
            key: the step's key. Per-sample randomness is ``sample_keys(key, batch["sample"])``.
            train: whether augmentation, masking and dropout are on.
        """
        raise NotImplementedError

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """Turn the features of the global batch into named terms."""
        raise NotImplementedError

    def calibrate(self, batch: Batch, key: jax.Array) -> None:
        """Set initial values that depend on data, from a run's first batch. By default there are none.

        Called once, before the first step of a run, after initial weights were read.
        """

    def embed_volumes(self, inputs: Inputs) -> Embedding:
        """Embed volumes. Deterministic.

        Args:
            inputs: the fields of `volume_inputs`, as in a batch.
        """
        raise NotImplementedError

    def pool_volumes(self, inputs: Inputs) -> Float[Array, "B pooled"]:
        """What probes read of volumes: pooled features before any projection or normalization. Deterministic.

        By default the vectors of `embed_volumes`.

        Args:
            inputs: as for `embed_volumes`.

        Returns:
            (B, pooled) float32.
        """
        return self.embed_volumes(inputs).mean.astype(jnp.float32)

    def embed_texts(self, tokens: Int[Array, "B L"]) -> Embedding:
        """Embed token ids; padding is recognized by `DataSpec.pad_token`. Deterministic."""
        raise NotImplementedError

    def embed_organs(self, inputs: Inputs, organs: UInt8[Array, "B O d h w"]) -> OrganEmbedding:
        """Embed organs of volumes. Deterministic.

        Args:
            inputs: as for `embed_volumes`.
            organs: occupancy of the organs' cells, as in a batch.
        """
        raise NotImplementedError

    def embed_patches(self, inputs: Inputs) -> Float[Array, "B N D"]:
        """Vectors of patches in the space of texts, in the order of the grid; normalized. Deterministic.

        Args:
            inputs: as for `embed_volumes`.
        """
        raise NotImplementedError

    def select(self, inputs: Inputs, tokens: Int[Array, "B L"], sentence: Int[Array, "B L"]) -> Selected:
        """Which patches the sentences of reports are about, every patch being visible. Deterministic.

        Args:
            inputs: as for `embed_volumes`.
            tokens: ids of the reports.
            sentence: the sentence of each, as in a batch.
        """
        raise NotImplementedError

    def predict_organs(self, inputs: Inputs) -> Float[Array, "B N O"]:
        """Share of each patch that each organ of `organ_names` fills. Deterministic.

        Args:
            inputs: as for `embed_volumes`.
        """
        raise NotImplementedError

    def organ_names(self) -> tuple[str, ...]:
        """What `predict_organs` tells, in its order."""
        return ()

    def reconstruct(self, volumes: Int[Array, "B D H W"], key: jax.Array) -> Reconstruction:
        """Hide patches and fill them in.

        Args:
            volumes: prepared volumes, HU.
            key: draws which patches are hidden.
        """
        raise NotImplementedError

    def reconstructed_windows(self) -> tuple[tuple[float, float], ...]:
        """The windows of what `reconstruct` gives, (low, high) HU, in its order."""
        return ()

    def fill_words(self, batch: Batch, key: jax.Array, *, image: str = "own") -> Words:
        """Hide words of reports and fill them in from what is left and from the volume.

        Args:
            batch: the fields of `word_inputs`.
            key: draws which words are hidden.
            image: "own"; "other", the volume of the sample before; "none", a volume whose tokens are all 0.
        """
        raise NotImplementedError

    def match_views(self, batch: Batch, key: jax.Array, *, image: str = "own") -> ViewMatch:
        """Cut crops out of volumes and let them read the report of their volume.

        Args:
            batch: `volume`, `tokens` and `sample`.
            key: draws the crops.
            image: "own"; "other", the crops of the sample before; "noise", in place of the crops' tokens,
                of the same mean and spread. What is found then was found in the report.
        """
        raise NotImplementedError

    def segment(self, inputs: Inputs) -> Float[Array, "B d h w K"]:
        """Logits of the class of each voxel of crops; 0 is the background. Deterministic.

        Args:
            inputs: the fields of `volume_inputs`, of the shape `crop_shape`.
        """
        raise NotImplementedError

    def crop_shape(self) -> tuple[int, int, int]:
        """(d, h, w) voxels of what `segment` takes."""
        raise NotImplementedError

    def segmented_classes(self) -> tuple[str, ...]:
        """Names of the classes 1, 2, ... that `segment` tells."""
        return ()

    def predict(self, inputs: Inputs) -> Float[Array, "B P"]:
        """Probability, or risk, of each of `predicts`. Deterministic.

        Args:
            inputs: as for `embed_volumes`.

        Returns:
            (B, P) float32.
        """
        raise NotImplementedError

    def truths(
        self,
        labels: Mapping[str, Int8[np.ndarray, " N"]],
        reported: Mapping[str, Int8[np.ndarray, " N"]],
        measurements: Mapping[str, Float[np.ndarray, " N"]],
    ) -> dict[str, Int8[np.ndarray, " N"]]:
        """What is true of volumes, for each of `predicts` that is true or not; to be scored by.

        By default those that are findings, by their labels.

        Args:
            labels: finding to ground truth: 1 present, -1 absent, 0 unknown.
            reported: finding to what the report says, likewise.
            measurements: name to numbers, NaN unknown.

        Returns:
            Name to 1 true, -1 false, 0 unknown.
        """
        return {name: labels[name] for name in self.predicts if name in labels}

    def similarity_scale(self) -> Float[Array, ""]:
        """The learned multiplier of similarities, 1 where there is none."""
        return jnp.float32(1.0)

    def pooling(self) -> str:
        """How the towers reduce tokens to one vector, in words, for tables and cards."""
        return "not stated"

    def towers(self) -> dict[str, str]:
        """What each tower is, in words, for tables and cards: "volume tower" to "ViT, width 768, ..."."""
        return {}

    def explained_tower(self) -> VisionTower | None:
        """The tower that heat maps follow, None where there is none with a way to the space of texts."""
        return None

    def volume_tower(self) -> VisionTower | None:
        """The tower whose tokens are looked at layer by layer, None where there is none.

        By default the one that heat maps follow. It reads the field `volume`.
        """
        return self.explained_tower()

    def to_joint_space(self, pooled: Float[Array, "B pooled"]) -> Float[Array, "B D"]:
        """From what `explained_tower` pools to the joint space, unnormalized; of Gaussians the mean."""
        raise NotImplementedError


def sample_keys(key: jax.Array, sample: Int[Array, " B"]) -> jax.Array:
    """One key per sample, a function of the step's key and the sample's id alone.

    So the draw does not depend on where in the batch, or on which device, the sample lies.

    Args:
        key: the step's key.
        sample: ids from the pipeline.

    Returns:
        (B,) keys.
    """
    return jax.vmap(lambda s: jax.random.fold_in(key, s))(sample)


def total(terms: Mapping[str, Term]) -> Float[Array, ""]:
    """The scalar that is differentiated: weighted means, an empty term counting 0."""
    return sum(
        (
            term.weight * jnp.where(term.count > 0, term.sum / jnp.maximum(term.count, 1e-9), 0.0)
            for term in terms.values()
            if term.weight
        ),
        start=jnp.zeros((), jnp.float32),
    )
