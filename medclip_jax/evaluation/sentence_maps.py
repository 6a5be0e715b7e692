"""Where in a scan each sentence of a report finds what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int16

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.grounding_metrics import most_similar
from medclip_jax.evaluation.heatmaps import Saveable, upsample
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.objectives.base import Inputs, Objective, Selected
from medclip_jax.volumes.grid import Grid


@dataclass(frozen=True)
class SentenceMap(Saveable):
    """Where in a scan a sentence finds what it is about.

    Attributes:
        text: the sentence.
        count: patches that it selects, the most similar ones.
        patches: (d, h, w) cosine of each patch with the sentence.
        selected: (d, h, w) which it selects.
        voxels: (D, H, W) the cosines, interpolated linearly between the patches' centers.
        grid: where `voxels` lie; None where the volume was a prepared array, which does not say.
        source: the grid of the scan that the volume was prepared from, in its own orientation; None likewise.
    """

    text: str
    count: int
    patches: Float[np.ndarray, "d h w"]
    selected: Bool[np.ndarray, "d h w"]
    voxels: Float[np.ndarray, "D H W"]
    grid: Grid | None = None
    source: Grid | None = None


def ground_sentences(
    embedder: Embedder, volume: Int16[np.ndarray, "D H W"], sentences: Sequence[str]
) -> list[SentenceMap]:
    """Where in a volume each of some sentences finds what it is about.

    The sentences are read together, as one report.

    Args:
        embedder: of the model.
        volume: prepared, HU.
        sentences: of a report, in order.

    Returns:
        A map for each.

    Raises:
        NotEvaluable: the model selects no patches.
        ValueError: a sentence beyond the tokens or the sentences that the model reads.
    """
    if reason := embedder.lacks("patches") or embedder.lacks("text"):
        raise NotEvaluable(reason)
    text = " ".join(sentences)
    ends = np.cumsum([len(sentence) + 1 for sentence in sentences])
    starts = embedder.tokenizer.starts(text, embedder.text_length)
    sentence = np.where(starts >= 0, np.searchsorted(ends, starts, side="right"), -1).astype(np.int32)
    tokens = np.asarray(embedder.tokenizer([text], embedder.text_length), np.int32)[0]
    (found,) = embedder.each(
        select, 1, lambda _: ({"volume": volume}, tokens, sentence), label="ground sentences"
    )
    read = found.valid[0][: len(sentences)]
    if lost := len(sentences) - int(read.sum()):
        raise ValueError(
            f"{lost} of {len(sentences)} sentences lie beyond the {embedder.text_length} tokens or the "
            f"{found.valid.shape[1]} sentences that the model reads, or hold no word: give fewer"
        )
    tower = embedder.objective.volume_tower()
    chosen = most_similar(found.similarity[0], found.count[0])
    maps = []
    for index, one in enumerate(sentences):
        patches = found.similarity[0, index].reshape(tower.grid)
        voxels = upsample(patches, tower.token_centers(), volume.shape)
        selected = chosen[index].reshape(tower.grid)
        maps.append(SentenceMap(one, int(selected.sum()), patches, selected, voxels))
    return maps


def select(objective: Objective, inputs: Inputs, tokens: jax.Array, sentence: jax.Array) -> Selected:
    """`Objective.select`, for `Embedder.each`."""
    return objective.select(inputs, tokens, sentence)
