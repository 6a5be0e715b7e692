"""Which column of a table means what, and which ones nobody reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medclip_jax.corpora.tables import TableError, plain_name
from medclip_jax.reports.definitions import BUILT_IN, Findings, plain_spelling
from medclip_jax.reports.findings_file import how_to_define
from medclip_jax.reports.names import UnknownFinding, finding_name, is_finding

COLUMNS: dict[str, tuple[str, ...]] = {
    "volume": (
        "volume",
        "volume_path",
        "volumename",
        "image",
        "image_path",
        "img_path",
        "scan",
        "path",
        "file",
        "nifti",
    ),
    "series": ("series", "series_uid", "series_instance_uid", "seriesinstanceuid", "series_number"),
    "study": ("study", "study_id", "accession", "accession_number", "exam", "exam_id"),
    "patient": ("patient", "patient_id", "subject", "subject_id"),
    "report": ("report", "report_text", "text", "report_en", "caption"),
    "findings": ("findings", "findings_text", "findings_en"),
    "impression": ("impression", "impressions", "impression_text", "impressions_en", "conclusion"),
    "split": ("split", "subset", "fold"),
    "organs": ("organs", "masks", "mask", "segmentation"),
    "organ_classes": ("organ_classes", "mask_classes", "class_map"),
    "label_map": ("label_map", "labelmap", "label_map_path"),
    "label_classes": ("label_classes", "label_map_classes"),
    "modality": ("modality",),
    "box": ("box", "crop_box"),
    "rescale_slope": ("rescale_slope", "rescaleslope", "slope"),
    "rescale_intercept": ("rescale_intercept", "rescaleintercept", "intercept"),
    "spacing": ("spacing", "spacing_mm"),
}
"""Column to the header names that are understood, in any case, with spaces or dashes for underscores."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ ./%()+-]{0,59}")
_LONG_NUMBER = re.compile(r"\d{5,}")


@dataclass(frozen=True)
class Columns:
    """Where a table holds what.

    Attributes:
        places: our name of a column to its index.
        names: our name of a column to the table's; also of ``label:``, ``measurement:`` and ``group:``
            columns.
        labels: finding to index.
        measurements: measurement to index.
        groups: group to index.
        alternatives: our name of a column to the indices of others that could mean it and are not read.
        ignored: names of columns that mean nothing here, with what to do where that is known.
    """

    places: Mapping[str, int]
    names: Mapping[str, str]
    labels: Mapping[str, int]
    measurements: Mapping[str, int]
    groups: Mapping[str, int]
    alternatives: Mapping[str, tuple[int, ...]]
    ignored: tuple[str, ...]


def known_names(columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Header name to column.

    Args:
        columns: as `COLUMNS`.
    """
    return {name: column for column, names in columns.items() for name in names}


KNOWN_NAMES = known_names(COLUMNS)
"""Header name to column."""


def find_columns(
    header: Sequence[str],
    path: Path,
    reports_elsewhere: bool,
    definitions: Findings = BUILT_IN,
    columns: Mapping[str, Sequence[str]] = COLUMNS,
) -> Columns:
    """Find out what the columns of a table mean.

    Args:
        header: names as the table writes them.
        path: of the table, for messages.
        reports_elsewhere: the table need not have reports.
        definitions: the findings that labels can be of. Of a user's own, their titles of columns need no
            ``label:`` before them.
        columns: that are understood, as `COLUMNS`.

    Raises:
        TableError: a column is missing or stands twice, or a label of an unknown finding.
    """
    found: dict[str, list[int]] = {}
    labels: dict[str, list[int]] = {}
    measurements: dict[str, list[int]] = {}
    groups: dict[str, list[int]] = {}
    ignored = []
    understood = known_names(columns)
    for place, name in enumerate(header):
        kind, _, rest = name.partition(":")
        kind, rest = plain_name(kind), rest.strip()
        if kind == "label" and rest:
            labels.setdefault(_finding(rest, path, definitions), []).append(place)
        elif kind == "measurement" and rest:
            measurements.setdefault(rest, []).append(place)
        elif kind == "group" and rest:
            groups.setdefault(rest, []).append(place)
        elif (finding := definitions.titles.get(plain_spelling(name))) is not None:
            labels.setdefault(finding, []).append(place)
        elif (column := understood.get(plain_name(name))) is not None:
            found.setdefault(column, []).append(place)
        elif name.strip():
            ignored.append(_ignored(name.strip(), definitions, understood))
    for column, places in found.items():
        # The column's own name before others that are understood, then in their order.
        places.sort(key=lambda place, column=column: columns[column].index(plain_name(header[place])))
    _check_missing(found, header, path, reports_elsewhere, columns.get("volume", ()))
    _check_names("measurement", measurements, path)
    _check_names("group", groups, path)
    for column, places in (*found.items(), *labels.items(), *measurements.items(), *groups.items()):
        first = plain_name(header[places[0]])
        same = [place for place in places if plain_name(header[place]) == first or column not in found]
        if len(same) > 1:
            where = " and ".join(f"{place + 1} ({header[place].strip()!r})" for place in same)
            raise TableError(
                f"'{path}' has several columns that mean {column!r}: columns {where}. Keep one, and take out "
                "or rename the other"
            )
    return Columns(
        places={column: places[0] for column, places in found.items()},
        names={column: header[places[0]].strip() for column, places in found.items()}
        | {f"label:{name}": header[places[0]].strip() for name, places in labels.items()}
        | {f"measurement:{name}": header[places[0]].strip() for name, places in measurements.items()}
        | {f"group:{name}": header[places[0]].strip() for name, places in groups.items()},
        labels={name: places[0] for name, places in labels.items()},
        measurements={name: places[0] for name, places in measurements.items()},
        groups={name: places[0] for name, places in groups.items()},
        alternatives={column: tuple(places[1:]) for column, places in found.items() if len(places) > 1},
        ignored=tuple(ignored),
    )


def _check_missing(
    found: Mapping[str, Sequence[int]],
    header: Sequence[str],
    path: Path,
    reports_elsewhere: bool,
    volume: Sequence[str],
) -> None:
    missing = []
    if volume and "volume" not in found:
        missing.append(f"{volume[0]} (or {', '.join(volume[1:])})")
    if not reports_elsewhere and not {"report", "findings", "impression"} & set(found):
        missing.append("report (or findings, impression)")
    if not missing:
        return
    if found or not header:
        written = ", ".join(repr(name.strip()) for name in header) or "nothing"
        fix = f"It has: {written}. Rename a column, see docs/how-to/data.md"
    else:
        # A table without a header: the line is a patient's, and must not be quoted.
        fix = "None of the names in its first line is known: does the table begin with a header line?"
    raise TableError(f"'{path}' lacks the column {' and the column '.join(missing)}. {fix}")


def _finding(name: str, path: Path, definitions: Findings) -> str:
    try:
        return finding_name(name, definitions=definitions)
    except UnknownFinding as error:
        define = "" if error.near else f". {how_to_define(name)}"
        raise TableError(f"'{path}' has a label of an {error}{define}") from None


def _check_names(kind: str, columns: Mapping[str, Sequence[int]], path: Path) -> None:
    for name, places in columns.items():
        if not _NAME.fullmatch(name) or _LONG_NUMBER.search(name):
            raise TableError(
                f"column {places[0] + 1} of '{path}': the name of a {kind} is written into the prepared "
                "set. It must begin with a letter, hold letters, digits and _ . / % ( ) + - alone, no number "
                "of five digits or more, and have at most 60 characters"
            )


def _ignored(name: str, definitions: Findings, understood: Mapping[str, str]) -> str:
    """A column's name, with what was perhaps meant."""
    plain = plain_name(name)
    rest = re.sub(r"^(labels?|findings?)[_:.]+", "", plain)
    if is_finding(rest, definitions=definitions):
        near = [finding_name(rest, definitions=definitions)]
    else:
        near = difflib.get_close_matches(rest, definitions, 1, 0.84)
    if near:
        return f"{name!r} (for ground truth, name it 'label:{near[0]}')"
    rest = re.sub(r"^(measurements?|measure)[_:.]+", "", plain)
    if rest != plain:
        return f"{name!r} (for a measurement, name it 'measurement:{rest}')"
    rest = re.sub(r"^(groups?|subgroups?)[_:.]+", "", plain)
    if rest != plain:
        return f"{name!r} (for a group of patients, name it 'group:{rest}')"
    near = difflib.get_close_matches(plain, understood, n=1, cutoff=0.8)
    return f"{name!r} (is it {near[0]!r}?)" if near else repr(name)
