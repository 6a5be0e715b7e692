"""INSPECT: 23,248 CT pulmonary angiograms of 19,402 patients with impressions, embolism and outcomes.

References:
    Huang et al., INSPECT: A Multimodal Dataset for Pulmonary Embolism Diagnosis and Prognosis, NeurIPS 2023,
    arXiv:2311.10798; som-shahlab/INSPECT_public.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medclip_jax.corpora.archive import check_root, list_files, volumes_by_name
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.id_tables import (
    NOT_IN_ARCHIVE,
    SEVERAL_REPORTS,
    IdTable,
    check_spelling,
    few,
    find_by_name,
    read_by_id,
)
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import Row, TableError, plain_name

KEY = ("impression_id",)
_DATED = r"(?:.*[ _])?{}(?:_\d{{8}})?\.(?:tsv|csv|xlsx)"
"""Name of a table with the date of its release, such as labels_20250611.tsv."""

EMBOLISM: Mapping[str, tuple[str, ...]] = {
    "pulmonary_embolism": ("pe_positive_nlp", "pe_positive"),
    "acute_pulmonary_embolism": ("pe_acute",),
    "subsegmental_pulmonary_embolism": ("pe_subsegmentalonly",),
}
"""Finding to the columns of the labels that say it, the one that the benchmark uses first."""

OUTCOMES: Mapping[str, str] = {
    "death_within_1_month": "1_month_mortality",
    "death_within_6_months": "6_month_mortality",
    "death_within_12_months": "12_month_mortality",
    "readmission_within_1_month": "1_month_readmission",
    "readmission_within_6_months": "6_month_readmission",
    "readmission_within_12_months": "12_month_readmission",
    "pulmonary_hypertension_within_12_months": "12_month_ph",
}
"""Finding to the column of the labels that says it."""

_LABELS = {"true": 1, "1": 1, "1.0": 1, "false": -1, "0": -1, "0.0": -1, "censored": 0, "censor": 0, "": 0}
_FLAGS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
_FOLLOWED = re.compile(r"(tte|is_censored)_(\w{1,40})")
MINUTES_PER_MONTH = 365.25 / 12 * 24 * 60
_BY_THEN = re.compile(r"(\d+)_month_(\w+)")


def inspect_ctpa(root: str | os.PathLike) -> StudyTable:
    """Read INSPECT's CT pulmonary angiograms as they lie on the disk.

    Args:
        root: holds, itself or in folders below, the volumes (`CTPA/IMAGE_ID.nii.gz`) and the tables
            `study_mapping_DATE.tsv`, `impressions_DATE.tsv`, `labels_DATE.tsv` and `splits_DATE.tsv`, of
            which the latest counts.

    Returns:
        One study for each volume, of the patient ``person_id`` and with the published split; the report is
        the impression alone. Labels are of embolism and of outcomes; what is "Censored" or empty is unknown.
        Measurements are ``tte_NAME``, the time to an event or to the end of follow-up as the table writes
        it, and ``is_censored_NAME`` (1, 0); and the same as survival analysis takes it: ``months_NAME``, that
        time from minutes to months, and ``event_NAME`` (1 where it came, 0 where follow-up ended before).

    Raises:
        TableError: no volumes, a table is missing, ids do not match, or a cell cannot be understood.
    """
    root = check_root(root, "INSPECT")
    files = list_files(root)
    volumes = volumes_by_name(
        root, files, "CTPA/*.nii.gz", "give --root the folder that INSPECT was downloaded to"
    )
    tables = _read_tables(root, files)
    mapping = tables.mapping
    remarks: list[str] = []
    keys = _impressions_of_images(mapping, remarks)
    check_spelling(volumes, f"the volumes in '{root}'", keys, f"'{mapping.path}', column 'image_id'")
    unmapped = {}
    for name, table in tables.named():
        check_spelling(table.rows, f"'{table.path}'", mapping.rows, f"'{mapping.path}'")
        if lost := tuple(one for one in table.rows if one not in mapping.rows):
            unmapped[f"{name}, not in the study mapping"] = ((), lost)
            remarks.append(f"{name}: {len(lost)} ids are not in the study mapping ({few(lost)})")
    known = {image: keys[image] for image in volumes if image in keys}
    joining = join(
        list(volumes),
        {
            name: {image: table.rows[one] for image, one in keys.items() if one in table.rows}
            for name, table in tables.named()
        },
    )
    if not known:
        raise TableError(
            f"none of the {len(volumes)} volumes in '{root}' is an image_id of '{mapping.path}': are both of "
            "one archive? Volumes are named such as PE45239c2.nii.gz"
        )
    _remark_on_labels(tables.labels, remarks)
    followed = _followed(tables.labels)
    _remark_on_times(tables.labels, followed, remarks)
    studies = [
        _study(root / path, image, known.get(image), tables, followed) for image, path in volumes.items()
    ]
    _check_people(tables)
    return StudyTable(
        tuple(studies),
        (*joining.remarks, *(remark for _, table in tables.named() for remark in table.remarks), *remarks),
        "absent",
        {**joining.unmatched, **unmapped},
    )


@dataclass(frozen=True)
class _Tables:
    mapping: IdTable
    impressions: IdTable
    labels: IdTable
    splits: IdTable

    def named(self) -> Iterator[tuple[str, IdTable]]:
        yield "study mapping", self.mapping
        yield "impressions", self.impressions
        yield "labels", self.labels
        yield "splits", self.splits


def _read_tables(root: Path, files: Sequence[str]) -> _Tables:
    def read(name: str, what: str, columns: Mapping[str, Sequence[str]], needed: Sequence[str]) -> IdTable:
        path = find_by_name(root, files, _DATED.format(name), f"{name}_DATE.tsv", what)
        return read_by_id(path, KEY, columns, needed=needed)

    person = {"person": ("person_id", "patientid", "patient_id")}
    labels = find_by_name(root, files, _DATED.format("labels"), "labels_DATE.tsv", "embolism and outcomes")
    titles = [plain_name(title) for title in read_by_id(labels, KEY, {}).others]
    return _Tables(
        read(
            "study_mapping", "image_id and person_id", {"image": ("image_id",), **person}, ("image", "person")
        ),
        read("impressions", "the reports", {"impression": ("impressions", "impression")}, ("impression",)),
        read_by_id(labels, KEY, {title: (title,) for title in titles}),
        read("splits", "train, valid and test", {"split": ("split",), **person}, ("split",)),
    )


def _impressions_of_images(mapping: IdTable, remarks: list[str]) -> dict[str, str]:
    """Image to impression; an image or an impression of several is no one's."""
    images: dict[str, set[str]] = {}
    for one, first in mapping.rows.items():
        for row in mapping.repeated.get(one, (first,)):
            if image := mapping.cell(row, "image"):
                images.setdefault(image.removesuffix(".gz").removesuffix(".nii"), set()).add(one)
    if several := [image for image, ones in images.items() if len(ones) > 1]:
        remarks.append(
            f"{len(several)} images have several impressions ({few(several)}): nobody knows which one is "
            "meant, so that they have none"
        )
    return {image: next(iter(ones)) for image, ones in images.items() if len(ones) == 1}


def _study(path: Path, image: str, one: str | None, tables: _Tables, followed: Sequence[str]) -> Study:
    mapping, splits = tables.mapping.rows.get(one), tables.splits.rows.get(one)
    labels = tables.labels.rows.get(one)
    impression = tables.impressions.longest(one, "impression") if one is not None else ""
    person = tables.mapping.cell(mapping, "person") or tables.splits.cell(splits, "person")
    contradicted = one in tables.labels.repeated
    several = one in tables.impressions.repeated
    return Study(
        series=(Series(path),),
        record_id=image,
        study_id=one or image,
        patient_id=person or image,
        sections={"impression": impression} if impression else {},
        labels={} if labels is None or contradicted else _labels(tables.labels, labels),
        measurements={} if labels is None or contradicted else _numbers(tables.labels, labels, followed),
        split=tables.splits.split_of(one) if one is not None else None,
        notes=(SEVERAL_REPORTS,) if several else (),
        rejection=NOT_IN_ARCHIVE if one is None else None,
    )


def _labels(table: IdTable, row: Row) -> dict[str, int]:
    """1 present, -1 absent, 0 where the table says nothing or that the patient was lost to follow-up."""
    labels = {}
    for finding, columns in (*EMBOLISM.items(), *((name, (column,)) for name, column in OUTCOMES.items())):
        labels[finding] = 0
        for column in columns:
            if text := table.cell(row, column).lower():
                if text not in _LABELS:
                    raise table.fail(row, column)("must be TRUE, FALSE (or 1, 0), Censored or empty")
                labels[finding] = _LABELS[text]
                break
    return labels


def _followed(table: IdTable) -> list[str]:
    return [column for column in table.places if _FOLLOWED.fullmatch(column)]


def _numbers(table: IdTable, row: Row, columns: Sequence[str]) -> dict[str, float]:
    found = {}
    for column in columns:
        text = table.cell(row, column)
        if not text:
            continue
        number = _FLAGS.get(text.lower()) if column.startswith("is_") else _number(text)
        if number is None:
            what = "must be TRUE or FALSE" if column.startswith("is_") else "must be a number, or empty"
            raise table.fail(row, column)(what)
        found[column] = number
    for column in columns:
        kind, name = _FOLLOWED.fullmatch(column).groups()
        if kind == "tte" and column in found:
            found[f"months_{name}"] = found[column] / MINUTES_PER_MONTH
        elif kind == "is_censored" and column in found:
            found[f"event_{name}"] = 1 - found[column]
    return found


def _remark_on_times(table: IdTable, followed: Sequence[str], remarks: list[str]) -> None:
    """Whether the labels by a month are what the times say; they are not where those are not in minutes."""
    compared = torn = 0
    for row in table.rows.values():
        numbers = _numbers(table, row, followed)
        for column in OUTCOMES.values():
            month, name = _BY_THEN.fullmatch(column).groups()
            status = _LABELS.get(table.cell(row, column).lower(), 0)
            months, event = numbers.get(f"months_{name}"), numbers.get(f"event_{name}")
            if status and months is not None and event is not None:
                compared += 1
                # Months have 28 to 31 days: near to their end both are right.
                late, early = months > 1.1 * int(month), months < 0.9 * int(month)
                torn += (late or not event) if status > 0 else early
    if torn:
        remarks.append(
            f"labels: {torn} of {compared} outcomes by a month contradict the time to the event, read as "
            "minutes: if they are many, the times are in another unit, and months_... are wrong"
        )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _remark_on_labels(table: IdTable, remarks: list[str]) -> None:
    wanted = {
        **{name: columns for name, columns in EMBOLISM.items()},
        **{n: (c,) for n, c in OUTCOMES.items()},
    }
    missing = [columns[0] for columns in wanted.values() if not any(c in table.places for c in columns)]
    if len(missing) == len(wanted):
        has = ", ".join(map(repr, table.header))
        raise TableError(
            f"'{table.path}' has no column of embolism or outcomes, such as 'pe_positive_nlp'. Its columns "
            f"are {has}: is it the right file?"
        )
    if missing:
        remarks.append(f"'{table.path.name}' has no column {', '.join(missing)}; unknown for all studies")
    read = {column for columns in wanted.values() for column in columns} | set(_followed(table))
    if others := [column for column in table.places if column not in read and column != "person_id"]:
        remarks.append(f"'{table.path.name}': columns that are not read: {', '.join(others)}")
    if table.repeated:
        remarks.append(
            f"labels: {len(table.repeated)} ids have rows that differ ({few(list(table.repeated))}); all "
            "their labels count as unknown"
        )
    first, second = EMBOLISM["pulmonary_embolism"]
    pairs = ((table.cell(row, first), table.cell(row, second)) for row in table.rows.values())
    torn = sum(bool(a and b) and _LABELS.get(a.lower()) != _LABELS.get(b.lower()) for a, b in pairs)
    if torn:
        remarks.append(f"labels: {first} and {second} differ in {torn} rows; {first} counts")
    censored = sum(
        table.cell(row, column).lower().startswith("censor")
        for row in table.rows.values()
        for column in OUTCOMES.values()
    )
    if censored:
        remarks.append(f"labels: {censored} outcomes are 'Censored', and count as unknown")


def _check_people(tables: _Tables) -> None:
    """One impression is of one person, whichever table says so."""
    torn = [
        one
        for one, row in tables.splits.rows.items()
        if (person := tables.splits.cell(row, "person"))
        and (other := tables.mapping.cell(tables.mapping.rows.get(one), "person"))
        and person != other
    ]
    if torn:
        raise TableError(
            f"{len(torn)} impressions are of one person in '{tables.mapping.path}' and of another in "
            f"'{tables.splits.path}': take both tables from one release"
        )
