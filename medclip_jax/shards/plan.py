"""Decide, before any volume is opened, which record goes where: hashes, splits, order, shards.

The plan depends on the studies, the settings and the key alone: every machine that has them makes the same
one. So the set is the same for any number of workers and machines, and a run that was cut off finds its
finished shards again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from medclip_jax.corpora.study import Series, Study
from medclip_jax.shards.arrays import ShardError
from medclip_jax.shards.files import content_state, earlier_state, files_state, is_missing, names_state
from medclip_jax.shards.keys import hashed_integer, hashed_text, keyed_hash
from medclip_jax.shards.record import VOLUME
from medclip_jax.shards.settings import SPLITS, PrepareSettings

ID_RULE = 2
"""How ids are hashed. In sets of rule 1, which do not name a rule, the hash of a study knew nothing of the
patient: studies of one number were one study, whoever's they were."""

MISSING_FILE = "missing-file"
"""Code of a study whose volume is not there."""

REPEATED_REPORT = "repeated-report"
"""Code of a volume that `one_per_report` leaves out. It is a choice, and no fault of the data."""

_SAYS_NOTHING = re.compile(r"(not given|not available|none|nan|n/?a|null|nil|-+|\.+)?[\s.]*", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One study on its way into the set.

    Attributes:
        row: of the table, or place of the study in the input, from 1: tells the user which one it was, and
            nobody else.
        study: raw; never written.
        id: keyed hash of the volume's id.
        study_hash: keyed hash of the patient's and the study's id.
        patient_hash: keyed hash of the patient's id.
        split: where it goes.
        notes: found without opening the volume.
        rejection: (code, message) where no file needs to be looked at.
    """

    row: int
    study: Study
    id: str
    study_hash: int
    patient_hash: int
    split: str
    notes: tuple[str, ...] = ()
    rejection: tuple[str, str] | None = None


@dataclass(frozen=True)
class ShardPlan:
    """The items that make one shard, in order: what one worker does and commits at a time.

    Attributes:
        split: of all of them.
        index: of the shard in its split.
        items: at least one; all scans of a study are in one shard.
        digest: keyed hash of all that the table and the settings say about the items.
    """

    split: str
    index: int
    items: tuple[Item, ...]
    digest: str

    @property
    def name(self) -> str:
        """Stem of the shard's files while others are missing."""
        return f"{self.split}-{self.index:05d}"


def says_nothing(text: str) -> bool:
    """Whether a text is empty or a placeholder such as "Not given." or "NaN"."""
    return _SAYS_NOTHING.fullmatch(text.strip()) is not None


def report_of(study: Study) -> str:
    """The report, put together from its sections where only they are given; "" where it says nothing."""
    if not says_nothing(study.report):
        return study.report.strip()
    sections = [
        f"{name.capitalize()}: {text.strip()}"
        for name, text in study.sections.items()
        if not says_nothing(text)
    ]
    return "\n".join(sections)


def make_plan(studies: Sequence[Study], settings: PrepareSettings, key: bytes) -> list[ShardPlan]:
    """Hash the ids, settle the splits, order the items and cut them into shards, without a look at the disk.

    Args:
        studies: in the order of the input.
        settings: resolved.
        key: of the hashes.

    Raises:
        ShardError: a patient is in two splits, or a split has an unknown name.
    """
    splits = _patient_splits(studies, settings, key)
    table = _Table.of(studies)
    seen: set[str] = set()
    # By keyed hash: random, so that train[:10%] is a fair sample, and not the order of the archive.
    groups: dict[str, dict[str, list[Item]]] = {name: defaultdict(list) for name in SPLITS}
    items: list[Item] = []
    for place, study in enumerate(studies, start=1):
        owner = (study.patient_id, study.study_id)
        item = Item(
            row=study.row or place,
            study=study,
            id=hashed_text(key, "volume", study.record_id),
            study_hash=hashed_integer(key, "study", json.dumps(owner)),
            patient_hash=hashed_integer(key, "patient", study.patient_id),
            split=splits[study.patient_id],
        )
        report = report_of(study)
        notes = []
        if not report:
            notes.append("empty-report")
        elif len(table.owners[report]) > 1:
            notes.append("duplicate-report")
        if len(table.reports[owner]) > 1:
            notes.append("study-with-several-reports")
        notes.extend(note for note in study.notes if settings.keeps_note(note))
        notes.extend(_series_notes(study, settings))
        rejection = _rejection(study, report, settings, seen, table)
        seen.add(study.record_id)
        if table.rows[study.record_id] > 1 and rejection is None:
            notes.append("duplicate-row-dropped")
        item = replace(item, notes=tuple(notes), rejection=rejection)
        items.append(item)
    for item in _one_per_report(items) if settings.one_per_report else items:
        owner = (item.study.patient_id, item.study.study_id)
        several = table.scans[owner] > 1
        group = hashed_text(key, "study", "/".join(owner)) if several else item.id
        groups[item.split][group].append(item)
    shards = []
    for split in SPLITS:
        ordered = [
            sorted(groups[split][place], key=lambda item: (item.id, item.row))
            for place in sorted(groups[split])
        ]
        for index, items in enumerate(_cut(ordered, settings.per_shard)):
            shards.append(ShardPlan(split, index, items, _digest(items, settings, key)))
    return shards


def same_report(study: Study) -> str:
    """What two reports have in common that say the same words: lower case, single spaces."""
    return " ".join(report_of(study).lower().split())


def count_repeated(studies: Sequence[Study]) -> tuple[int, int]:
    """How many volumes repeat the report of another one.

    Args:
        studies: a row each.

    Returns:
        Of the same study, as reconstructions of one scan do, and of other studies: those beyond the first.
    """
    owners: dict[str, set[tuple[str, str]]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for study in studies:
        if report := same_report(study):
            owners[report].add((study.patient_id, study.study_id))
            counts[report] += 1
    other = sum(len(found) - 1 for found in owners.values())
    return counts.total() - len(counts) - other, other


def _one_per_report(items: Sequence[Item]) -> list[Item]:
    """The items, of which those are rejected that repeat the report of one before, by id, in their split."""
    reports = [same_report(item.study) if item.rejection is None else "" for item in items]
    first: dict[tuple[str, str], int] = {}
    for place in sorted(
        range(len(items)), key=lambda place: (items[place].study.record_id, items[place].row)
    ):
        if reports[place]:
            first.setdefault((items[place].split, reports[place]), place)
    kept = set(first.values())
    rejection = (
        REPEATED_REPORT,
        "Another volume of the split has this report, and --one-per-report keeps one.",
    )
    return [
        replace(item, rejection=rejection) if reports[place] and place not in kept else item
        for place, item in enumerate(items)
    ]


@dataclass(frozen=True)
class _Table:
    """What can only be told from all studies together.

    Attributes:
        rows: record to its number of rows.
        record_owners: record to the patients and studies that claim it.
        scans: patient and study to the number of rows.
        owners: report to the patients and studies that have it.
        reports: patient and study, of several rows, to their different reports.
    """

    rows: Mapping[str, int]
    record_owners: Mapping[str, set[tuple[str, str]]]
    scans: Mapping[tuple[str, str], int]
    owners: Mapping[str, set[tuple[str, str]]]
    reports: Mapping[tuple[str, str], set[str]]

    @classmethod
    def of(cls, studies: Sequence[Study]) -> _Table:
        record_owners, owners, reports = defaultdict(set), defaultdict(set), defaultdict(set)
        scans = Counter((study.patient_id, study.study_id) for study in studies)
        for study in studies:
            owner, report = (study.patient_id, study.study_id), report_of(study)
            record_owners[study.record_id].add(owner)
            owners[report].add(owner)
            if report and scans[owner] > 1:
                reports[owner].add(same_report(study))
        rows = Counter(study.record_id for study in studies)
        return cls(rows, record_owners, scans, owners, reports)


def _cut(groups: Iterable[Sequence[Item]], size: int) -> Iterator[tuple[Item, ...]]:
    """Shards of up to `size` items; a study that is larger has a shard for itself."""
    items: list[Item] = []
    for group in groups:
        if items and len(items) + len(group) > size:
            yield tuple(items)
            items = []
        items.extend(group)
    if items:
        yield tuple(items)


@dataclass(frozen=True)
class Examined:
    """A shard's plan after a look at the disk.

    Attributes:
        shard: as planned, and missing files are rejected.
        fingerprint: keyed hash that changes with anything that the shard's bytes depend on.
        earlier: the same as it was when less was read of folders (see `files.earlier_state`).
    """

    shard: ShardPlan
    fingerprint: str
    earlier: str

    def matches(self, fingerprint: str) -> bool:
        """Whether a shard of this fingerprint was made from what is there, as far as it tells."""
        return fingerprint in (self.fingerprint, self.earlier)


def examine(shard: ShardPlan, settings: PrepareSettings, key: bytes) -> Examined:
    """See which files of a shard are there, and by a small part of each whether they are the same as before.

    Args:
        shard: of `make_plan`.
        settings: resolved.
        key: of the hashes.
    """
    items, states, earlier = [], [], []
    for item in shard.items:
        study = item.study
        items.append(reject_missing(item))
        masks = sorted(study.organs) if settings.uses_masks else ()
        scans = [(series.path, series.files) for series in study.series]
        places = [*scans, *((study.organs[name], ()) for name in masks)]
        if settings.label_maps == "corpus" and study.label_map is not None:
            places.append((study.label_map.path, ()))
        found = [files_state(files) if files else content_state(path) for path, files in places]
        states.append(found)
        earlier.append(
            [
                state if files else earlier_state(path) or state
                for (path, files), state in zip(places, found, strict=True)
            ]
        )
    seen = replace(shard, items=tuple(items))
    fingerprint = _fingerprint(items, states, settings, key)
    changed = earlier != states
    return Examined(
        seen, fingerprint, _fingerprint(items, earlier, settings, key) if changed else fingerprint
    )


def reject_missing(item: Item) -> Item:
    """The same, rejected where a file of the study is not there."""
    if item.rejection is None and any(is_missing(series.path) for series in item.study.series):
        missing = "There is no such file or folder: check the path in the table and --root."
        return replace(item, rejection=(MISSING_FILE, missing))
    return item


def _fingerprint(
    items: Sequence[Item], states: Sequence[list[str]], settings: PrepareSettings, key: bytes
) -> str:
    # Keyed, because it goes over raw ids and reports.
    parts = [_written(settings)]
    for item, state in zip(items, states, strict=True):
        parts.append(f"{_described(item)[:-1]}, {state!r})")
        parts.extend(_added_fields(item.study))
    return _hash_all(key, "part", parts)


def _digest(items: Sequence[Item], settings: PrepareSettings, key: bytes) -> str:
    parts = [_described(item) for item in items]
    parts += [part for item in items for part in _added_fields(item.study)]
    return _hash_all(key, "shard", [_written(settings), *parts])


def _described(item: Item) -> str:
    """What the table says of an item. Fingerprints of finished sets go over these very words, written when a
    study was one volume: they stay as they are, and what came later stands in `_added_fields`."""
    study, first = item.study, item.study.series[0]
    said = {"volume": first.path, "volume_id": study.record_id}
    for name in ("study_id", "patient_id", "report", "sections", "labels", "measurements"):
        said[name] = getattr(study, name)
    for name in ("organs", "organ_classes", "split"):
        said[name] = getattr(study, name)
    said |= {"rescale": first.rescale, "modality": first.modality, "notes": study.notes}
    words = ", ".join(f"{name}={value!r}" for name, value in said.items())
    return f"({item.row!r}, {item.split!r}, {item.notes!r}, {item.rejection!r}, Study({words}))"


def _added_fields(study: Study) -> list[str]:
    """What a study says beyond `_described`, where it does."""
    first, *others = study.series
    fields = [repr(sorted(study.sentences.items()))] if study.sentences else []
    fields += [f"spacing {first.spacing}"] if first.spacing else []
    fields += [f"series {first.uid}"] if first.uid else []
    fields += [f"name {first.name}"] if first.name != VOLUME else []
    fields += _added_to_series(first)
    fields += [repr(study.label_map)] if study.label_map is not None else []
    fields += [f"groups {sorted(study.groups.items())}"] if study.groups else []
    return fields + [word for series in others for word in (repr(series), *_added_to_series(series))]


def _added_to_series(series: Series) -> list[str]:
    """What came after the fields that a series' repr shows, where it is said."""
    channel = [] if series.channel is None else [f"channel {series.channel}"]
    said = [f"axes {series.axes}"] * bool(series.axes) + ["raw"] * series.raw + channel
    return said + ([f"files {names_state(series.files)}"] if series.files else [])


def _hash_all(key: bytes, kind: str, parts: Sequence[str]) -> str:
    return keyed_hash(key, kind, hashlib.sha256("\n".join(parts).encode()).hexdigest()).hex()


def _written(settings: PrepareSettings) -> str:
    """The settings that a record depends on."""
    written = settings.to_json() | {"id_rule": ID_RULE}
    for name in ("tokenizer", "vocabulary_size", "vocabulary_patients", "fractions", "seed", "per_shard"):
        del written[name]
    if not settings.schema.has_organs:
        del written["organ_text"]  # so that sets without organs keep the fingerprint they always had
    for name in ("kernel", "series_rule", "percentiles", "series"):  # and sets made before they could be told
        if written[name] == getattr(PrepareSettings, name):
            del written[name]
    return json.dumps(written, sort_keys=True)


def _rejection(
    study: Study, report: str, settings: PrepareSettings, seen: set[str], table: _Table
) -> tuple[str, str] | None:
    if len(table.record_owners[study.record_id]) > 1:
        return (
            "volume-in-several-studies",
            "The volume stands in rows of different patients or studies, and nobody can tell which is right: "
            "correct the table.",
        )
    if study.rejection is not None:
        return study.rejection
    if study.record_id in seen:
        return "duplicate-volume-id", "This volume stands in the input more than once: the first row is kept."
    if not study.has_scan:
        return (
            "report-without-volume",
            "The row has a report but no volume: add the file or leave the row out.",
        )
    if rejection := _series_rejection(study, settings):
        return rejection
    if not report and settings.empty_report == "reject":
        return (
            "empty-report",
            "The report says nothing: leave the row out, or keep such volumes with --empty-report note.",
        )
    return None


def _series_notes(study: Study, settings: PrepareSettings) -> list[str]:
    """Which series the record lacks, and which of the study's are not prepared."""
    wanted, given = ([series.name for series in found] for found in (settings.all_series, study.series))
    return [f"series-missing:{name}" for name in wanted if name not in given] + [
        f"series-left-out:{name}" for name in given if name not in wanted
    ]


def _series_rejection(study: Study, settings: PrepareSettings) -> tuple[str, str] | None:
    """Why the series that a study names cannot make a record of the set."""
    wanted = {series.name: series for series in settings.all_series}
    names = [series.name for series in study.series]
    if twice := next((name for name in names if names.count(name) > 1), None):
        return "several-series", f"The study names several series '{twice}': leave one, or name them apart."
    missing = [name for name, series in wanted.items() if series.required and name not in names]
    if missing or not set(names) & set(wanted):
        return (
            "missing-series",
            f"The study has no series {' or '.join(map(repr, missing or wanted))}: give its path, or leave "
            "the study out.",
        )
    for series in study.series:
        if series.name in wanted and series.modality != wanted[series.name].modality:
            return (
                "wrong-modality",
                f"The study is {series.modality}, the set is {wanted[series.name].modality}: prepare it with "
                "--modality.",
            )
    return None


def _patient_splits(studies: Sequence[Study], settings: PrepareSettings, key: bytes) -> Mapping[str, str]:
    given: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        given[study.patient_id].update({study.split} - {None})
    if unknown := sorted({name for names in given.values() for name in names} - set(SPLITS)):
        raise ShardError(f"unknown splits {', '.join(unknown)}: a split is one of {', '.join(SPLITS)}")
    if torn := sum(len(names) > 1 for names in given.values()):
        raise ShardError(
            f"{torn} patients stand in more than one split, so that the test would be no test: give all "
            "rows of a patient the same split, or leave the split column out to have patients divided "
            "at random"
        )
    free = sorted(patient for patient, names in given.items() if not names)
    # A patient keeps the place when others are added later: nobody moves from train to test.
    places = {
        patient: int.from_bytes(keyed_hash(key, "split", f"{settings.seed}/{patient}", 8), "big") / 2**64
        for patient in free
    }
    train, validation, _ = settings.fractions
    bounds = {
        "train": (0.0, train),
        "validation": (train, train + validation),
        "test": (train + validation, 1.0),
    }
    wanted = [name for name in SPLITS if bounds[name][1] - bounds[name][0] > 1e-9]
    chosen = {
        patient: next((n for n in wanted if place < bounds[n][1]), wanted[-1])
        for patient, place in places.items()
    }
    if len(free) >= len(wanted):
        # A small set can leave a split empty by chance; it then gets the patient nearest to it.
        for name in wanted:
            counts = Counter(chosen.values())
            if not counts[name]:
                low, high = bounds[name]
                movable = [p for p in free if counts[chosen[p]] > 1]
                chosen[min(movable, key=lambda p: (max(low - places[p], places[p] - high), p))] = name
    elif len(free) == len(given):
        # Too few for every split: without train there is nothing to begin with, then comes test.
        first = [name for name in ("train", "test", "validation") if name in wanted]
        chosen = dict(zip(sorted(free, key=lambda p: (places[p], p)), first, strict=False))
    return {patient: next(iter(names), None) or chosen[patient] for patient, names in given.items()}
