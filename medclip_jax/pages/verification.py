"""What `medclip verify` found, as tables, as JSON and as a page with pictures and histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Num
from matplotlib.figure import Figure

from medclip_jax.evaluation.results import Table
from medclip_jax.pages.figures import (
    BLUE,
    FAINT,
    ORANGE,
    SOFT_TISSUE_HU,
    new_figure,
    plain,
    row_of_pictures,
)
from medclip_jax.pages.html import Page
from medclip_jax.shards.scan import ACCEPTED, NOTED, REJECTED
from medclip_jax.shards.verify import HU_EDGES, Picture, ScanFacts, Verification

_ROWS_SHOWN = 8

_FAR = 3.0
"""Interquartile ranges."""

_FEWEST = 8
"""Values of which one can be called unlike the others."""

_QUANTILES = (0, 5, 25, 50, 75, 95, 100)
"""Percent."""


def tables(found: Verification) -> list[Table]:
    """The numbers, each table with its title; none holds an id or a path.

    Args:
        found: of `shards.verify.verify`.
    """
    made = [_outcomes(found), _unmatched(found), _splits(found), _findings(found), _ranges(found)]
    made.append(_unusual(found))
    return [table for table in made if table.rows]


def to_json(found: Verification) -> dict[str, Any]:
    """The numbers for programs to read: counts, rows of the input, no ids, no paths, no text of reports.

    Args:
        found: of `shards.verify.verify`.
    """
    summary = found.summary
    counts = {
        f"{low} to {low + 25}": int(n) for low, n in zip(HU_EDGES, _hounsfield(found), strict=False) if n
    }
    return {
        "studies": found.studies,
        "unread": found.unread,
        "classes": {name: summary.classes.get(name, 0) for name in (ACCEPTED, NOTED, REJECTED)},
        "notes": dict(summary.notes),
        "rejected": {code: list(rows) for code, rows in summary.reasons.items()},
        "unmatched": {
            name: {"volumes_without_row": len(volumes), "rows_without_volume": len(rows)}
            for name, (volumes, rows) in found.unmatched.items()
        },
        "splits": {
            name: {"patients": found.patients[name], "studies": found.split_studies[name]}
            for name in found.patients
        },
        "labels": _named(found.labels, ("present", "absent", "unknown")),
        "reports": {
            "empty": int((found.words == 0).sum()),
            "different": found.texts,
            "repeated": found.repeated,
            "findings": _named(found.stated, ("stated", "denied", "not_mentioned")),
        },
        "quantiles": {
            name: {
                f"{q}%": float(x) for q, x in zip(_QUANTILES, np.percentile(values, _QUANTILES), strict=True)
            }
            for name, values in _measures(found).items()
        },
        "voxels_by_hu": counts,
    }


def page(found: Verification, title: str) -> Page:
    """The page. It shows images of patients, and no ids: studies are named by their row.

    Args:
        found: of `shards.verify.verify`.
        title: heading.
    """
    classes = found.summary.classes
    made = Page(title, "Read and checked as medclip prepare does; nothing was written.")
    made.tile(str(found.studies), "studies")
    for name in (ACCEPTED, NOTED, REJECTED):
        made.tile(str(classes.get(name, 0)), name.replace("-", " "))
    if found.unread:
        made.tile(str(found.unread), "not read (a sample was asked for)")
    outcomes, *others = tables(found)
    made.section(outcomes.title, "Rows count from 1, without the header of the table.")
    made.table(outcomes)
    for table in others:
        made.section(table.title)
        made.table(table)
        if table.title == _findings(found).title:
            made.figure(_prevalence(found), "share of studies with each finding")
        if table.title == _ranges(found).title:
            made.figure(_histograms(found), "histograms of spacing, slices, HU and words of reports")
    shown = [scan for scan in found.scans if scan.pictures]
    if shown:
        made.section(
            "Accepted scans",
            "Middle slices, as they were read: the patient's right on the left, head and front up. CT from "
            "-160 to 240 HU, others from each scan's 1st to 99th percentile.",
        )
        notes = {entry["row"]: entry["notes"] for entry in found.entries if entry["class"] != REJECTED}
        made.cards([_card(scan, notes.get(scan.row, ())) for scan in shown])
    if found.rejected:
        made.section(
            "Rejected studies",
            "Up to three of each reason, from the 1st to the 99th percentile of what the file holds; those "
            "without a picture do not open.",
        )
        for code, examples in found.rejected.items():
            made.heading(code)
            pictures = [(_draw(views, None), f"row {row}", "") for row, views in examples if views]
            if pictures:
                made.cards(pictures)
    return made


def _outcomes(found: Verification) -> Table:
    summary = found.summary
    rows = [(name, str(summary.classes.get(name, 0)), "") for name in (ACCEPTED, NOTED)]
    rows += [(f"note {note}", str(count), "") for note, count in Counter(summary.notes).most_common()]
    rows.append((REJECTED, str(summary.classes.get(REJECTED, 0)), ""))
    for code, hit in sorted(summary.reasons.items(), key=lambda pair: -len(pair[1])):
        shown = ", ".join(map(str, hit[:_ROWS_SHOWN])) + (", ..." if len(hit) > _ROWS_SHOWN else "")
        rows.append((f"rejected {code}", str(len(hit)), shown))
    if found.unread:
        rows.append(("not read", str(found.unread), ""))
    messages = {code: _message(found, code) for code in summary.reasons}
    return Table("What became of the studies", ("", "studies", "rows"), tuple(rows), messages)


def _message(found: Verification, code: str) -> str:
    return next(str(entry["message"]) for entry in found.entries if entry.get("reason") == code)


def _unmatched(found: Verification) -> Table:
    rows = [
        (name, str(len(volumes)), str(len(without))) for name, (volumes, without) in found.unmatched.items()
    ]
    header = ("table", "volumes without a row", "rows without a volume")
    return Table("Tables joined to the volumes", header, tuple(rows), {})


def _splits(found: Verification) -> Table:
    rows = [
        (name, str(count), str(found.split_studies[name])) for name, count in found.patients.items() if count
    ]
    drawn = "of studies that are not rejected; patients whose table names no split are drawn by the key"
    return Table("Splits", ("split", "patients", "studies"), tuple(rows), {"counted": drawn})


def _findings(found: Verification) -> Table:
    """No rows where the corpus has neither labels nor reports: a table of zeros says nothing."""
    rows = []
    known = any(present or absent for present, absent, _ in found.labels.values())
    for name, (present, absent, unknown) in found.labels.items() if known or found.words.any() else ():
        stated, denied, silent = found.stated[name]
        rows.append((name.replace("_", " "), *map(str, (present, absent, unknown, stated, denied, silent))))
    header = ("finding", "labeled present", "absent", "unknown", "stated", "denied", "not mentioned")
    conditions = {"labels": "of all studies", "reports": "of the studies that were read and accepted"}
    return Table("Labels, and what reports say", header, tuple(rows), conditions)


def _ranges(found: Verification) -> Table:
    rows = [
        (name, str(len(values)), *(f"{x:.4g}" for x in np.percentile(values, _QUANTILES)))
        for name, values in _measures(found).items()
    ]
    header = ("", "n", "least", *(f"{q} %" for q in _QUANTILES[1:-1]), "most")
    empty = int((found.words == 0).sum())
    conditions = {
        "reports": f"{empty} empty, {found.texts} different texts, {found.repeated} studies whose report "
        "another study has as well"
    }
    return Table("Scans and reports", header, tuple(rows), conditions)


def _unusual(found: Verification) -> Table:
    """Rows whose values are far from the others': a header with two axes swapped is no error by itself."""
    rows = []
    ratios = [scan.spacing[2] / scan.spacing[1] for scan in found.scans]
    for name, values in (_of_scans(found) | {"width of a pixel over its height": ratios}).items():
        far = far_from_others(np.asarray(values, np.float64))
        if far.any():
            hit = [found.scans[place].row for place in np.flatnonzero(far)]
            shown = ", ".join(map(str, hit[:_ROWS_SHOWN])) + (", ..." if len(hit) > _ROWS_SHOWN else "")
            rows.append((name, str(len(hit)), shown))
    rule = f"more than {_FAR:g} interquartile ranges outside the middle half (at least 5 % of the median)"
    return Table("Scans unlike the others", ("", "scans", "rows"), tuple(rows), {"far": rule})


def far_from_others(values: Num[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Which values lie far outside the middle half; none where there are fewer than eight.

    Args:
        values: of one measure.
    """
    if len(values) < _FEWEST:
        return np.zeros(len(values), bool)
    low, middle, high = np.percentile(values, (25, 50, 75))
    reach = _FAR * max(high - low, 0.05 * abs(middle))
    return (values < low - reach) | (values > high + reach)


def _measures(found: Verification) -> dict[str, Num[np.ndarray, " N"]]:
    """What is shown as a histogram, by its name with unit; nothing that is empty."""
    measures = _of_scans(found) | {"words of a report": found.words[found.words > 0]}
    return {name: np.asarray(values) for name, values in measures.items() if len(values)}


def _of_scans(found: Verification) -> dict[str, list[float]]:
    """What is measured of every scan, by its name with unit."""
    return {
        "mm between slices": [scan.spacing[0] for scan in found.scans],
        "mm between columns": [scan.spacing[2] for scan in found.scans],
        "slices": [scan.slices for scan in found.scans],
    }


def _hounsfield(found: Verification) -> Num[np.ndarray, " V"]:
    counts = [scan.counts for scan in found.scans if scan.counts is not None]
    return np.sum(counts, axis=0, dtype=np.int64) if counts else np.zeros(len(HU_EDGES) - 1, np.int64)


def _named(counts: Mapping[str, tuple[int, int, int]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    return {finding: dict(zip(names, values, strict=True)) for finding, values in counts.items()}


def _histograms(found: Verification) -> Figure:
    measures, hounsfield = _measures(found), _hounsfield(found)
    count = len(measures) + bool(hounsfield.any())
    figure = new_figure(9.6, 2.3 * -(-count // 3))
    panels = figure.subplots(-(-count // 3), 3, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.set_axis_off()
    for panel, (name, values) in zip(panels, measures.items(), strict=False):
        low, high = float(values.min()), float(values.max())
        edges = np.linspace(low, high, 25) if high > low else np.array([low - 0.5, low + 0.5])
        panel.hist(values, edges, color=BLUE)
        panel.set_xlabel(name, fontsize=8)
        panel.set_ylabel("studies" if "report" in name else "scans", fontsize=8)
        plain(panel)
    if hounsfield.any():
        panel = panels[count - 1]
        panel.stairs(100 * hounsfield / hounsfield.sum(), HU_EDGES, fill=True, color=BLUE)
        panel.set_yscale("log")
        panel.set_xlabel("HU of all CT voxels", fontsize=8)
        panel.set_ylabel("% of voxels", fontsize=8)
        plain(panel)
    return figure


def _prevalence(found: Verification) -> Figure:
    names = list(found.labels)
    figure = new_figure(7.2, 0.34 * len(names) + 0.9)
    panel = figure.subplots()
    places = np.arange(len(names))[::-1]
    for counts, color, offset, label in (
        (found.labels, ORANGE, 0.18, "labeled present, of those labeled"),
        (found.stated, BLUE, -0.18, "stated, of all reports read"),
    ):
        shares = []
        for name in names:
            positive, negative, rest = counts[name]
            total = positive + negative + (0 if counts is found.labels else rest)
            shares.append(100 * positive / total if total else np.nan)
        panel.barh(places + offset, np.nan_to_num(shares), height=0.32, color=color, label=label)
        for place, share in zip(places + offset, shares, strict=True):
            text = "no label" if np.isnan(share) else f"{share:.3g}"
            panel.text(101, place, text, va="center", fontsize=7, color=FAINT)
    panel.set_yticks(places, [name.replace("_", " ") for name in names])
    panel.set_xlim(0, 100)
    panel.set_xlabel("% of studies", fontsize=8)
    panel.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    plain(panel)
    return figure


def _card(scan: ScanFacts, notes: Sequence[str]) -> tuple[bytes, str, str]:
    name = "" if scan.series == "volume" else f", {scan.series}"
    size = f"{scan.slices} slices, {'×'.join(f'{step:.3g}' for step in scan.spacing)} mm"
    window = SOFT_TISSUE_HU if scan.modality == "CT" else None
    return _draw(scan.pictures, window), f"row {scan.row}{name}", "\n".join([size, *map(str, notes)])


def _draw(pictures: Sequence[Picture], window: tuple[float, float] | None) -> bytes:
    drawn = []
    for picture in pictures:
        low, high = window or np.nanpercentile(picture.pixels.astype(np.float64), (1, 99))
        drawn.append((picture.pixels, picture.ratio, (float(low), max(float(high), float(low) + 1e-6))))
    return row_of_pictures(drawn)
