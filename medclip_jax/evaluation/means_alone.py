"""Gaussian embeddings ranked by their means alone: what a model's variance adds is the difference."""

from __future__ import annotations

from dataclasses import replace

from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.similarity import means

OF_MEANS = {"similarity": "", "means": " of the means"}
"""Ranking to what results add to the name of the similarity."""

RANKINGS = tuple(OF_MEANS)
"""By `similarity.similarity`, which counts variances where there are any; or by the cosine of the means."""


def ranked_by(
    ranking: str, data: EmbeddedSplit, encode_texts: EncodeTexts
) -> tuple[EmbeddedSplit, EncodeTexts]:
    """A split and the text side as a ranking sees them. A model of points is the same in both rankings.

    Args:
        ranking: one of `RANKINGS`.
        data: the split.
        encode_texts: the model's text side.

    Raises:
        ValueError: an unknown ranking.
    """
    if ranking not in RANKINGS:
        raise ValueError(f"ranking={ranking!r}: use {' or '.join(map(repr, RANKINGS))}")
    if ranking == "similarity":
        return data, encode_texts
    return replace(data, volumes=means(data.volumes)), lambda texts: means(encode_texts(texts))
