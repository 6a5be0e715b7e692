"""Every volume and every text of a split embedded once, for all evaluators to share."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int8, Int64

from medclip_jax.evaluation.embedder import Embedder, VolumeInputs
from medclip_jax.evaluation.feature_cache import Features
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.similarity import Embeddings, averaged
from medclip_jax.evaluation.volume_features import as_embeddings
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.prompts import Prompts

TEXT_FIELDS = ("report", "findings_text", "impression", "statements")
"""Texts of a prepared record."""

DESCRIBES = ("id", "study", "patient", "findings", "labels", "measurements", "groups")
"""What evaluators read of a record beside its texts and what is embedded."""

KeptFeatures = Callable[[int, Callable[[Sequence[int]], Iterator[Features]]], Features]
"""Number of volumes, and what embeds some of them, to the features of all; see `FeatureCache.features`."""

EncodeTexts = Callable[[Sequence[str]], Embeddings]
"""Texts to L2-normalized float32 vectors, or to Gaussians."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """A split of prepared shards as the evaluators see it; every array has one row for each volume.

    Attributes:
        name: the split, e.g. "test".
        volumes: (N, E) float32, L2-normalized, or as many Gaussians.
        studies: (N,) keyed hash of the study: volumes that share a report.
        patients: (N,) keyed hash of the patient: what the bootstrap draws.
        labels: finding to (N,) ground truth: 1 present, -1 absent, 0 unknown.
        reported: finding to (N,) status in the report: 1 present, -1 absent, 0 not mentioned.
        measurements: name to (N,), NaN unknown.
        groups: name to (N,) str, the group that each volume belongs to; "" where it is not known.
        texts: field of the record (`TEXT_FIELDS`) to N texts, "" where there is none.
        pooling: how the towers reduce tokens to one vector, in words.
        logit_scale: the model's multiplier of similarities; 1 where it has none.
        definitions: the findings that are known, with their prompts.
        pooled: (N, P) float32, from `Objective.pool_volumes`; None where no evaluator wants it.
        asap: (N, W) float32, standardized mean patch tokens, see `volume_features.KINDS`; None likewise.
        predicted: name of `Objective.predicts` to (N,) float32; {} where no evaluator wants them.
        truths: likewise, from `Objective.truths`: 1 true, -1 false, 0 unknown.
        ids: keyed hash of each volume; () where the records hold none.
    """

    name: str
    volumes: Embeddings
    studies: Int64[np.ndarray, " N"]
    patients: Int64[np.ndarray, " N"]
    labels: Mapping[str, Int8[np.ndarray, " N"]] = field(default_factory=dict)
    reported: Mapping[str, Int8[np.ndarray, " N"]] = field(default_factory=dict)
    measurements: Mapping[str, Float[np.ndarray, " N"]] = field(default_factory=dict)
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pooling: str = "not stated"
    logit_scale: float = 1.0
    definitions: Findings = BUILT_IN
    pooled: Float[np.ndarray, "N P"] | None = None
    asap: Float[np.ndarray, "N W"] | None = None
    ids: Sequence[str] = ()
    predicted: Mapping[str, Float[np.ndarray, " N"]] = field(default_factory=dict)
    truths: Mapping[str, Int8[np.ndarray, " N"]] = field(default_factory=dict)

    @property
    def counted(self) -> str:
        """How many volumes of how many patients, for the conditions of a table."""
        return (
            f"{len(self.patients)} volumes of {len(np.unique(self.patients))} patients, split {self.name!r}"
        )

    def take(self, rows: Int64[np.ndarray, " M"]) -> EmbeddedSplit:
        """Some of its volumes, in the order given.

        Args:
            rows: their numbers.
        """

        def chosen(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: column[rows] for name, column in columns.items()}

        return replace(
            self,
            volumes=self.volumes[rows],
            studies=self.studies[rows],
            patients=self.patients[rows],
            labels=chosen(self.labels),
            reported=chosen(self.reported),
            measurements=chosen(self.measurements),
            groups=chosen(self.groups),
            texts={name: [texts[row] for row in rows] for name, texts in self.texts.items()},
            pooled=None if self.pooled is None else self.pooled[rows],
            asap=None if self.asap is None else self.asap[rows],
            ids=tuple(self.ids[row] for row in rows) if self.ids else (),
            predicted=chosen(self.predicted),
            truths=chosen(self.truths),
        )

    def findings(self, source: str) -> Mapping[str, Int8[np.ndarray, " N"]]:
        """Columns to evaluate against.

        Args:
            source: "labels" for the ground truth, "findings" for what the reports say.

        Raises:
            ValueError: another source.
            NotEvaluable: nothing is known in any column.
        """
        if source not in ("labels", "findings"):
            raise ValueError(
                f'labels={source!r}: use "labels" (ground truth) or "findings" (from the report)'
            )
        columns = self.labels if source == "labels" else self.reported
        if not any(np.any(column) for column in columns.values()):
            other = "findings" if source == "labels" else "labels"
            raise NotEvaluable(
                f'split {self.name!r} has no known {source}: set labels="{other}", or prepare the shards '
                "from a corpus that gives them"
            )
        return columns


def embed_split(
    name: str,
    records: Sequence[Mapping[str, Any]],
    embedder: Embedder,
    *,
    findings: Sequence[str] = (),
    measurements: Sequence[str] = (),
    groups: Sequence[str] = (),
    definitions: Findings = BUILT_IN,
    kinds: Sequence[str] = (),
    kept_features: KeptFeatures | None = None,
    descriptions: Sequence[Mapping[str, Any]] | None = None,
) -> EmbeddedSplit:
    """Embed all volumes of a split and gather what else the evaluators need.

    Args:
        name: the split.
        records: random access to decoded records, from `medclip_jax.shards.read.open_split`.
        embedder: of the model.
        findings: names of the columns of a record's `findings` and `labels`.
        measurements: names of the entries of a record's `measurements`.
        groups: names in a record's `groups`.
        definitions: the findings that are known.
        kinds: features of `Embedder.features` to keep beside the embeddings.
        kept_features: gives the features of all volumes, of which it embeds those that it lacks; None to
            embed all.
        descriptions: the same records without what is embedded, for volumes that are not.

    Returns:
        The split.

    Raises:
        NotEvaluable: the split is empty.
    """
    kept: list[dict[str, Any]] = [{} for _ in range(len(records))]

    def read(index: int) -> VolumeInputs:
        record = records[index]
        kept[index] = {name: record[name] for name in (*DESCRIBES, *TEXT_FIELDS) if name in record}
        return embedder.inputs(record, index)

    def embed(rows: Sequence[int]) -> Iterator[Features]:
        label = f"embed {name}"
        return embedder.features(len(rows), lambda place: read(rows[place]), kinds, label=label)

    if kept_features is None:
        parts = list(embed(range(len(records))))
        found = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
    else:
        found = kept_features(len(records), embed)
        for index, one in enumerate(kept):
            if not one:
                record = (records if descriptions is None else descriptions)[index]
                one |= {key: record[key] for key in (*DESCRIBES, *TEXT_FIELDS) if key in record}
    kept = _gathered(kept)

    def columns(key: str, names: Sequence[str], dtype: type) -> dict[str, np.ndarray]:
        if not names or any(key not in record for record in kept):
            return {}
        table = np.stack([np.asarray(record[key], dtype) for record in kept])
        return {column: table[:, i] for i, column in enumerate(names)}

    labels, reported = columns("labels", findings, np.int8), columns("findings", findings, np.int8)
    measured = columns("measurements", measurements, np.float32)
    told = "predictions" in kinds
    return EmbeddedSplit(
        name=name,
        volumes=as_embeddings(found),
        studies=np.array([record["study"] for record in kept], np.int64),
        patients=np.array([record["patient"] for record in kept], np.int64),
        labels=labels,
        reported=reported,
        measurements=measured,
        groups={name: np.array([one.get("groups", {}).get(name, "") for one in kept]) for name in groups},
        texts={key: [_text(record[key]) for record in kept] for key in TEXT_FIELDS if key in kept[0]},
        pooling=embedder.pooling,
        logit_scale=embedder.logit_scale(),
        definitions=definitions,
        pooled=found.get("pooled"),
        asap=found.get("asap"),
        ids=tuple(_text(record["id"]) for record in kept) if all("id" in one for one in kept) else (),
        predicted=dict(zip(embedder.predicts, found["predictions"].T, strict=True)) if told else {},
        truths=embedder.objective.truths(labels, reported, measured) if told else {},
    )


def refuse_shared_patients(scored: EmbeddedSplit, *others: EmbeddedSplit) -> None:
    """Refuse to learn from patients that are scored.

    Args:
        scored: the split to score.
        others: splits to learn from.

    Raises:
        ValueError: a patient is in both.
    """
    for other in others:
        shared = np.intersect1d(other.patients, scored.patients)
        if shared.size:
            raise ValueError(
                f"{shared.size} patients of split {scored.name!r} are in {other.name!r}, too, which flatters "
                "every score: split by patient"
            )


def encode_prompts(encode_texts: EncodeTexts, prompts: Prompts) -> tuple[Embeddings, Embeddings]:
    """A single embedding of the positive prompts, and one of the negative.

    Args:
        encode_texts: the model's text side.
        prompts: of a finding.

    Raises:
        ValueError: there are no negative ones.
    """
    if not prompts.negative:
        raise ValueError(
            f"{prompts} has no negative prompt to compare with: take a template with both sides, or "
            "zero_shot with score='positive_only'"
        )
    vectors = encode_texts([*prompts.positive, *prompts.negative])
    count = len(prompts.positive)
    return averaged(vectors[:count]), averaged(vectors[count:])


def _gathered(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What all processes kept of the records, each of those that it read."""
    if jax.process_count() == 1:
        return kept
    from jax.experimental import multihost_utils

    own = pickle.dumps([(index, record) for index, record in enumerate(kept) if record])
    lengths = multihost_utils.process_allgather(np.asarray(len(own), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    found: dict[int, dict[str, Any]] = {}
    for length, data in zip(lengths, everyone, strict=True):
        found.update(pickle.loads(data[:length].tobytes()))
    return [found[index] for index in range(len(kept))]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def in_full_batches(
    patients: Int64[np.ndarray, " N"], batch_size: int
) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
    """An order of volumes in which the row before, in its batch, is hardly ever of the same patient.

    Args:
        patients: (N,) of the volumes.
        batch_size: rows of a batch.

    Returns:
        (M,) indices of volumes: each once, patients' second volumes after all first ones, and then again from
        the start until the last batch is full; and (M,) of each row the volume of the row before, that of a
        batch's first row being its last.
    """
    seen: dict[int, int] = {}
    earlier = np.zeros(len(patients), np.int64)
    for row, patient in enumerate(patients.tolist()):
        earlier[row] = seen.get(patient, 0)
        seen[patient] = earlier[row] + 1
    order = np.argsort(earlier, kind="stable")
    places = np.resize(order, -(-len(order) // batch_size) * batch_size)
    return places, np.roll(places.reshape(-1, batch_size), 1, axis=1).ravel()
