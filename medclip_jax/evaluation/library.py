"""A searchable library: studies of other patients that look like a given one, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.degradation import OpenRecords
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import TEXT_FIELDS, EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import Interval, mean_of_defined, percentile_interval
from medclip_jax.evaluation.pictures import View, view_arrays, views_of
from medclip_jax.evaluation.ranking import precision_at_k
from medclip_jax.evaluation.results import (
    FEWEST,
    TOO_FEW,
    NotEvaluable,
    Table,
    chosen_findings,
    label_source,
    number,
    with_interval,
)
from medclip_jax.evaluation.similarity import describe, similarity
from medclip_jax.evaluation.tasks import GROUP, class_of_each

_ROWS = 512
"""Queries whose similarities to all volumes are held at a time."""


@dataclass(frozen=True)
class Neighborhood:
    """How often the nearest volumes of other patients agree with the query.

    Attributes:
        queries: volumes that have the class or the finding.
        chance: share of volumes of other patients that agree, mean over the queries.
        precision: k to the share among the k nearest, mean over the queries.
        intervals: k to bootstrap interval over patients; {} when none was requested.
    """

    queries: int
    chance: float
    precision: Mapping[int, float]
    intervals: Mapping[int, Interval]


@dataclass(frozen=True)
class Entry:
    """A study of the library.

    Attributes:
        views: its pictures; () where records are not to be read.
        text: what its report says.
        present: findings that it has.
        similarity: to the query; 1 for the query itself.
        agrees: whether it has the query's class, or, without classes, any of its findings; None where that
            is unknown.
    """

    views: tuple[View, ...]
    text: str
    present: tuple[str, ...]
    similarity: float
    agrees: bool | None


@dataclass(frozen=True)
class Case:
    """A query and its nearest studies, each of another patient.

    Attributes:
        query: the study that was looked up.
        found: the nearest, best first.
    """

    query: Entry
    found: tuple[Entry, ...]


@dataclass(frozen=True)
class LibraryResult:
    """Image to image search in a split.

    Attributes:
        neighborhoods: `tasks.GROUP`, "classes/<class>", and findings to what was found.
        cases: a few queries to be shown.
        conditions: n, labels, similarity, text, intervals, in words.
    """

    neighborhoods: Mapping[str, Neighborhood]
    cases: Sequence[Case]
    conditions: Mapping[str, str]

    def metrics(self) -> dict[str, float]:
        """Keys ``P@5/classes``, ``P@5/classes/<class>``, ``P@5/<finding>``, and ``chance/...`` of each.

        ``P@5_mean`` is over the findings.
        """
        flat: dict[str, float] = {}
        for name, found in self.neighborhoods.items():
            flat |= {f"P@{k}/{name}": value for k, value in found.precision.items()}
            flat |= {f"chance/{name}": found.chance, f"queries/{name}": found.queries}
        for k in self.ks if self._findings else ():
            flat[f"P@{k}_mean"] = mean_of_defined(found.precision[k] for found in self._findings)
        return flat

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of P@k."""
        return tuple(next(iter(self.neighborhoods.values())).precision)

    @property
    def _findings(self) -> list[Neighborhood]:
        return [x for name, x in self.neighborhoods.items() if name.partition("/")[0] != GROUP]

    def table(self) -> Table:
        """One line for each class or finding."""
        rows = []
        for name, found in self.neighborhoods.items():
            cells = [TOO_FEW] * len(self.ks)
            if found.queries >= FEWEST:
                cells = [with_interval(value, found.intervals.get(k)) for k, value in found.precision.items()]
            rows.append((name, str(found.queries), number(found.chance), *cells))
        if found := [one for one in self._findings if one.queries >= FEWEST]:
            means = [mean_of_defined(one.precision[k] for one in found) for k in self.ks]
            chance = number(mean_of_defined(one.chance for one in found))
            rows.append(("mean of the findings", "", chance, *map(number, means)))
        header = ("shared with the query", "queries", "chance", *(f"P@{k}" for k in self.ks))
        few = {TOO_FEW: f"fewer than {FEWEST} queries, not in the mean"}
        shown = any(TOO_FEW in row for row in rows)
        return Table("Library", header, tuple(rows), {**self.conditions, **(few if shown else {})})

    def __str__(self) -> str:
        return str(self.table())


def evaluate_library(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    classes: Sequence[str] = (),
    findings: Sequence[str] = (),
    labels: str = "labels",
    text: str = "impression",
    ks: Sequence[int] = (1, 5, 10),
    pictures: int = 6,
    neighbors: int = 5,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
) -> LibraryResult:
    """Look every volume up among those of other patients: do the nearest share its diagnosis?

    Args:
        data: the split; it is the library.
        encode_texts: not needed.
        classes: findings of which a study has one, such as diagnoses; () for none.
        findings: each by itself: the queries are the volumes that have it; () for all columns but `classes`.
        labels: "labels" for ground truth, "findings" for what the reports say.
        text: field of the records that is shown beside a study, one of `TEXT_FIELDS`.
        ks: of P@k.
        pictures: queries that are shown, of one class or finding after the other; 0 for none.
        neighbors: studies that are shown for each.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the bootstrap, and of the choice of queries.
        embedder: of the model, whose shards are read for pictures.
        open_records: opens the split's records again.

    Returns:
        The result.

    Raises:
        NotEvaluable: nothing is known of any finding, or there is a single patient.
        ValueError: an unknown finding or option, or a NaN embedding.
    """
    if text not in TEXT_FIELDS:
        raise ValueError(f"text={text!r}: use one of {', '.join(TEXT_FIELDS)}")
    if len(np.unique(data.patients)) < 2:
        raise NotEvaluable(f"split {data.name!r} holds a single patient: there is nothing else to find")
    columns = data.findings(labels)
    group = chosen_findings(classes, columns, data.definitions) if classes else ()
    if len(group) == 1:
        raise ValueError(f"classes={group[0]!r} alone: name two or more that exclude one another")
    single = [name for name in columns if name not in group]
    if findings:
        single = list(chosen_findings(findings, columns, data.definitions))
    agreement = _Agreement(columns, group, single)
    precision, chance = _precision(data, agreement, tuple(sorted(set(ks))))
    neighborhoods = {
        name: _summary(precision[name], chance[name], data.patients, draws, seed) for name in agreement.names
    }
    cases = ()
    if pictures:
        chosen = _queries(agreement, pictures, np.random.default_rng(seed))
        cases = tuple(_cases(data, agreement, chosen, neighbors, text, embedder, open_records))
    conditions = {
        "n": f"{data.counted}; each is looked up among those of the other patients whose label is known",
        "labels": label_source(labels),
        "similarity": describe(data.volumes),
        "pooling": data.pooling,
        "P@k": "share of the k nearest that share it with the query; ties count as their expectation; "
        "chance: share of all of them",
        "intervals": bootstrap.described(draws, seed),
    }
    return LibraryResult(neighborhoods, cases, conditions)


class _Agreement:
    """What volumes can have in common: a class of several, or a finding.

    Args:
        columns: finding to 1 present, -1 absent, 0 unknown.
        group: findings that exclude one another.
        single: findings that count each by itself.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], group: tuple[str, ...], single: Sequence[str]):
        self.columns, self.group = columns, group
        self.classes = class_of_each(columns, group) if group else None
        # Name to (queries, known, the value that both must have).
        self._kinds: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        if self.classes is not None:
            known = self.classes >= 0
            self._kinds[GROUP] = known, known, self.classes
            for place, name in enumerate(group):
                self._kinds[f"{GROUP}/{name}"] = self.classes == place, known, self.classes
        for name in single:
            column = columns[name]
            self._kinds[name] = column == 1, column != 0, column
        self.names = tuple(self._kinds)

    def queries(self, name: str) -> Bool[np.ndarray, " N"]:
        """Volumes that have it."""
        return self._kinds[name][0]

    def known(self, name: str) -> Bool[np.ndarray, " N"]:
        """Volumes of which it is known whether they have it."""
        return self._kinds[name][1]

    def shared(self, name: str, row: int) -> Bool[np.ndarray, " N"]:
        """Volumes that share it with one of the queries."""
        value = self._kinds[name][2]
        return value == value[row]

    def present(self, row: int) -> tuple[str, ...]:
        """All that a volume has."""
        return tuple(name for name, column in self.columns.items() if column[row] == 1)

    def agrees(self, query: int, row: int) -> bool | None:
        """Whether a volume has the class of another; without classes, any of its findings."""
        if self.classes is not None:
            own = self.classes[query]
            status = self.columns[self.group[own]][row] if own >= 0 else 0
            return {1: True, -1: False}.get(int(status))
        return bool(set(self.present(query)) & set(self.present(row)))


def _similarities(data: EmbeddedSplit, rows: Int64[np.ndarray, " Q"]) -> Float[np.ndarray, "Q N"]:
    """To all volumes; -inf to those of the same patient, which are no finds."""
    found = similarity(data.volumes[rows], data.volumes)
    return np.where(data.patients[rows][:, None] == data.patients, -np.inf, found)


def _precision(
    data: EmbeddedSplit, agreement: _Agreement, ks: tuple[int, ...]
) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, np.ndarray]]:
    """P@k and chance of each query; NaN of volumes that are none."""
    count = len(data.patients)
    precision = {name: {k: np.full(count, np.nan) for k in ks} for name in agreement.names}
    chance = {name: np.full(count, np.nan) for name in agreement.names}
    for start in range(0, count, _ROWS):
        rows = np.arange(start, min(start + _ROWS, count))
        for row, scores in zip(rows.tolist(), _similarities(data, rows), strict=True):
            others = data.patients != data.patients[row]
            for name in agreement.names:
                if not agreement.queries(name)[row]:
                    continue
                among = agreement.known(name) & others
                relevant = agreement.shared(name, row)[among]
                chance[name][row] = relevant.mean() if relevant.size else np.nan
                for k, value in precision_at_k(relevant, scores[among], ks).items():
                    precision[name][k][row] = value
    return precision, chance


def _summary(
    precision: Mapping[int, np.ndarray], chance: np.ndarray, patients: np.ndarray, draws: int, seed: int
) -> Neighborhood:
    counted = ~np.isnan(chance)
    weights = bootstrap.draw_patients(patients[counted], draws, seed).astype(np.float64)
    total = weights.sum(axis=1)
    values, intervals = {}, {}
    for k, found in precision.items():
        # k beyond the library is undefined for some queries, and then for the mean.
        values[k] = float(found[counted].mean()) if counted.any() else float("nan")
        if draws and not np.isnan(values[k]):
            intervals[k] = percentile_interval(weights @ found[counted] / total)
    mean = float(chance[counted].mean()) if counted.any() else float("nan")
    return Neighborhood(int(counted.sum()), mean, values, intervals)


def _queries(agreement: _Agreement, count: int, generator: np.random.Generator) -> list[int]:
    """Volumes to show, of one class or finding after the other, each once."""
    names = [name for name in agreement.names if name.startswith(f"{GROUP}/")]
    names = names or [name for name in agreement.names if name != GROUP]
    waiting = [generator.permutation(np.flatnonzero(agreement.queries(name))).tolist() for name in names]
    chosen: list[int] = []
    while len(chosen) < count and any(waiting):
        for rows in waiting:
            while rows and rows[-1] in chosen:
                rows.pop()
            if rows and len(chosen) < count:
                chosen.append(rows.pop())
    return chosen


def _cases(
    data: EmbeddedSplit,
    agreement: _Agreement,
    chosen: Sequence[int],
    neighbors: int,
    text: str,
    embedder: Embedder | None,
    open_records: OpenRecords | None,
) -> list[Case]:
    texts = data.texts.get(text, [""] * len(data.patients))
    if embedder is not None and open_records is not None:
        spec = embedder.layout.spec
        records, _ = open_records(view_arrays(spec))

    def entry(query: int, row: int, near: float) -> Entry:
        views = () if embedder is None or open_records is None else views_of(records[row], spec)
        return Entry(views, texts[row], agreement.present(row), near, agreement.agrees(query, row))

    cases = []
    for query, scores in zip(chosen, _similarities(data, np.array(chosen, np.int64)), strict=True):
        order = np.argsort(-scores, kind="stable")
        order = order[np.isfinite(scores[order])]
        # Of several volumes of a study, the nearest.
        _, first = np.unique(data.studies[order], return_index=True)
        nearest = order[np.sort(first)][:neighbors].tolist()
        cases.append(
            Case(entry(query, query, 1.0), tuple(entry(query, row, float(scores[row])) for row in nearest))
        )
    return cases
