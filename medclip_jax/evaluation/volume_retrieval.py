"""Retrieval of volumes by a volume: does what lies near have the same findings?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from medclip_jax.evaluation.chosen_volumes import choose_volumes
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.label_mapping import map_labels
from medclip_jax.evaluation.metrics import mean_of_defined
from medclip_jax.evaluation.presets import label_sets
from medclip_jax.evaluation.ranking import average_precision_at_k, mean_gain_at_k
from medclip_jax.evaluation.results import NotEvaluable, Table, chosen_findings, number
from medclip_jax.evaluation.similarity import describe, similarity
from medclip_jax.progress import track_each

MATCHES = ("overlap", "any", "identical")
"""How two volumes match: the shared part of their findings (CT-CLIP), any shared finding (RadFinder), the
very same labels (SPECTRE)."""

LEFT_OUT = ("nothing", "volume", "study", "patient")
"""What of the query's is no candidate."""

_BLOCK = 256
"""Queries whose similarities are in memory at once."""
_WORDS = {
    "overlap": "mean over the k nearest of |A ∩ B| / |A ∪ B| of their findings and the query's, as CT-CLIP's "
    "MAP; candidates have a finding, queries need not",
    "any": "average precision at k, divided by k: relevant is a volume that shares a finding; queries and "
    "candidates have one",
    "identical": "average precision at k, divided by the lesser of k and the number of relevant volumes: "
    "relevant is a volume with the very same labels; queries are those that have one",
}


@dataclass(frozen=True)
class VolumeRetrievalResult:
    """Volumes found by a volume.

    Attributes:
        queries: how many.
        gallery: candidates, the query's own not yet left out.
        scores: k to MAP@k.
        chance: k to what a random order of the candidates gives.
        conditions: n, labels, match, similarity, what is left out, in words.
    """

    queries: int
    gallery: int
    scores: Mapping[int, float]
    chance: Mapping[int, float]
    conditions: Mapping[str, str]

    def metrics(self) -> dict[str, float]:
        """Keys ``MAP@5`` and ``chance/MAP@5``, and ``queries``."""
        flat = {f"MAP@{k}": value for k, value in self.scores.items()}
        flat |= {f"chance/MAP@{k}": value for k, value in self.chance.items()}
        return flat | {"queries": self.queries}

    def table(self) -> Table:
        """One line for the model, one for chance."""
        header = ("order", "queries", "gallery", *(f"MAP@{k}" for k in self.scores))
        counts = (str(self.queries), str(self.gallery))
        rows = (
            ("by similarity", *counts, *map(number, self.scores.values())),
            ("random", *counts, *map(number, self.chance.values())),
        )
        return Table("Volumes by a volume", header, rows, self.conditions)

    def __str__(self) -> str:
        return str(self.table())


def evaluate_volume_retrieval(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts | None = None,
    *,
    match: str = "identical",
    ks: Sequence[int] = (1, 5, 10, 50),
    labels: str = "labels",
    label_set: str = "",
    findings: Sequence[str] = (),
    volumes: str = "all",
    leave_out: str = "patient",
    open_manifest: Callable[[], Mapping[str, Mapping[str, Any]]] | None = None,
) -> VolumeRetrievalResult:
    """Rank the volumes of a split by their similarity to each of them, and see whether they match.

    Args:
        data: the split.
        encode_texts: not used: volumes are compared with volumes.
        match: one of `MATCHES`.
        ks: of MAP@k.
        labels: "labels" for ground truth, "findings" for what the reports say.
        label_set: of `presets.label_sets`; "" for the columns of the shards.
        findings: that are compared; () for all. Volumes with an unknown one take no part.
        volumes: which, see `choose_volumes`.
        leave_out: what is no candidate for a query: itself ("volume"), its "study", its "patient", or
            "nothing".
        open_manifest: reads the manifest of the shards, which some choices of `volumes` need.

    Returns:
        The result.

    Raises:
        NotEvaluable: the labels leave no query.
        ValueError: an unknown option, or a NaN embedding.
    """
    for name, value, known in (("match", match, MATCHES), ("leave_out", leave_out, LEFT_OUT)):
        if value not in known:
            raise ValueError(f"{name}={value!r}: use one of {', '.join(known)}")
    rows, taken = choose_volumes(data, volumes, open_manifest)
    data = data.take(rows)
    table, names = _labels(data, labels, label_set, findings)
    known = (table != 0).all(axis=1)
    data, present = data.take(np.flatnonzero(known)), table[known] == 1
    kept = np.ones(len(present), bool) if match == "identical" else present.any(axis=1)
    groups = _groups(data, leave_out)
    collected: dict[int, list[float]] = {k: [] for k in ks}
    by_chance: dict[int, list[float]] = {k: [] for k in ks}
    queries = 0
    gallery = np.flatnonzero(kept)
    asked = np.flatnonzero(kept) if match == "any" else np.arange(len(present))
    for query, near in track_each(
        _similarities(data, asked, gallery), total=len(asked), unit="volume", label="volumes by a volume"
    ):
        others = gallery if groups is None else gallery[groups[gallery] != groups[query]]
        scores = near if groups is None else near[groups[gallery] != groups[query]]
        found = _scored(match, present[query], present[others], scores, ks)
        if found is None:
            continue
        queries += 1
        for k, value in found.items():
            collected[k].append(value)
        for k, value in _scored(match, present[query], present[others], np.zeros(len(others)), ks).items():
            by_chance[k].append(value)
    if not queries:
        raise NotEvaluable(
            f"split {data.name!r} has no volume with all of {', '.join(names)} known that another one "
            "matches: choose findings that are known, or labels='findings'"
        )
    return VolumeRetrievalResult(
        queries,
        len(gallery),
        {k: mean_of_defined(values) for k, values in collected.items()},
        {k: mean_of_defined(values) for k, values in by_chance.items()},
        {
            "n": f"{len(present)} volumes, split {data.name!r}, {taken}"
            + (f"; {int((~known).sum())} with an unknown label left out" if not known.all() else ""),
            "labels": ("ground truth" if labels == "labels" else "from the reports")
            + f", {len(names)} findings"
            + (f" of {label_set}" if label_set else ""),
            "match": _WORDS[match],
            "no candidate": {"nothing": "none: the query finds itself", "volume": "the query itself"}.get(
                leave_out, f"all of the query's {leave_out}"
            ),
            "similarity": describe(data.volumes),
            "pooling": data.pooling,
            "ties": "count as their expectation over random orders",
        },
    )


def _labels(
    data: EmbeddedSplit, labels: str, label_set: str, findings: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N, findings) 1, -1 or 0, and the names of the findings."""
    columns = data.findings(labels)
    if label_set:
        if label_set not in label_sets():
            raise ValueError(f"label_set={label_set!r}: use one of {', '.join(label_sets())}")
        columns = map_labels(label_sets()[label_set], columns, data.definitions).columns
        if not columns:
            raise NotEvaluable(f"the shards have no column of label set {label_set!r}")
    names = chosen_findings(findings, columns, data.definitions)
    return np.stack([np.asarray(columns[name]) for name in names], axis=1), names


def _groups(data: EmbeddedSplit, leave_out: str) -> Int64[np.ndarray, " N"] | None:
    return {
        "nothing": None,
        "volume": np.arange(len(data.volumes)),
        "study": data.studies,
        "patient": data.patients,
    }[leave_out]


def _similarities(
    data: EmbeddedSplit, queries: Int64[np.ndarray, " Q"], gallery: Int64[np.ndarray, " G"]
) -> Iterator[tuple[int, Float[np.ndarray, " G"]]]:
    """Each query with its similarity to the gallery."""
    candidates = data.volumes[gallery]
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        yield from zip(block.tolist(), similarity(data.volumes[block], candidates), strict=True)


def _scored(
    match: str,
    query: Bool[np.ndarray, " F"],
    others: Bool[np.ndarray, "G F"],
    scores: Float[np.ndarray, " G"],
    ks: Sequence[int],
) -> dict[int, float] | None:
    """What one query finds; None where it is no query."""
    if match == "overlap":
        either = (query | others).sum(axis=1)
        return mean_gain_at_k((query & others).sum(axis=1) / np.maximum(either, 1), scores, ks)
    if match == "any":
        return average_precision_at_k((query & others).any(axis=1), scores, ks, over_k=True)
    same = (query == others).all(axis=1)
    return average_precision_at_k(same, scores, ks) if same.any() else None
