"""``medclip inspect``: are the shards complete, and do they show what they should?"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Verify prepared shards and draw a contact sheet.

Every record is read and compared with its checksum. Then come counts, HU percentiles and a page with
axial, coronal and sagittal slices, outlines of organs and of the classes of label maps, organ occupancy
on the patch grid, reports and findings. Look at it before you train:
a flipped axis, a wrong window or reports that belong to other scans show at a glance. The page holds
report texts and images of patients; keep it as private as the scans."""

EPILOG = """\
example:
  medclip inspect shards --count 24 --out sheet.html
  medclip inspect shards --patch 8 24 24     # organ occupancy as a model with these patches sees it

The exit status is 1 when something is damaged.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("folder", help="written by medclip prepare, or the URL of a set in an object store")
    parser.add_argument("--count", type=int, default=12, help="volumes to draw (%(default)s)")
    parser.add_argument(
        "--patch",
        nargs=3,
        type=int,
        metavar=("D", "H", "W"),
        help="also draw organ occupancy on the grid of a model's patches of this size",
    )
    parser.add_argument(
        "--out", type=Path, help="page to write (FOLDER.html, beside the folder; of a URL, in this one)"
    )


def run(args: argparse.Namespace) -> int:
    """Inspect. Returns 1 where a record is damaged."""
    from medclip_jax.pages.contact_sheet import contact_sheet
    from medclip_jax.shards.check import PERCENTILES, check
    from medclip_jax.shards.manifest import count_shared_studies, read_manifest, summarize
    from medclip_jax.shards.read import open_shards
    from medclip_jax.shards.urls import is_url
    from medclip_jax.volumes.modality import modality_of

    info = open_shards(args.folder)
    entries = read_manifest(info.folder)
    summary = summarize(entries)
    found = check(info)
    counts = _counts(info.findings, found)
    percentiles = [["percentile", *(f"{p:g}" for p in PERCENTILES)]]
    for series in info.series:
        values = found.percentiles.get(series.name, dict.fromkeys(PERCENTILES, float("nan"))).values()
        unit = modality_of(series.modality).unit
        percentiles.append([f"{_of(series)}{unit}", *map("{:.0f}".format, values)])
    print(summary.text())
    smaller = f"{found.voxel_bytes / max(found.bytes, 1):.2f}x smaller than int16"
    print(f"{found.records} records verified, {found.bytes / 1e6:.1f} MB, {smaller}")
    for series in info.series:
        print(f"{_of(series)}{_size(series, found)} voxels, {_mm(series, found)} mm per voxel")
    organs = _organ_counts(info.organs, found)
    classes = _class_counts(info.label_classes, found)
    groups = _group_counts(found.groups)
    shown = [*([organs] if info.organs else []), *([classes] if info.label_classes else [])]
    shown += [groups] if info.groups else []
    for rows in (percentiles, counts, *shown):
        print(aligned(rows))
    for problem in found.problems:
        print(f"DAMAGED: {problem}")
    if shared := count_shared_studies(entries):
        print(
            f"{shared} studies belong to several patients, who count as one in training: the set was "
            "prepared by an earlier version, which did not tell equal study ids apart. Prepare it again"
        )
    # What is in a store lies in a cache on this machine, which is no place for a page.
    place = Path(args.folder.rstrip("/").rpartition("/")[2]) if is_url(args.folder) else info.folder
    out = args.out or place.absolute().with_name(place.absolute().name + ".html")
    facts = {
        "records": str(found.records),
        "splits": ", ".join(f"{name} {count}" for name, count in info.splits.items()),
        **{
            f"{_of(series)}{what}": value
            for series in info.series
            for what, value in (
                ("voxels (H, W)" if series.frames else "voxels (D, H, W)", _size(series, found)),
                ("mm per voxel", _mm(series, found)),
            )
        },
        "on disk": f"{found.bytes / 1e6:.0f} MB ({found.voxel_bytes / max(found.bytes, 1):.1f}× smaller)",
        **{
            name: str(summary.classes.get(name, 0))
            for name in ("accepted", "accepted-with-note", "rejected-with-reason")
        },
    }
    tables = {"Findings in reports, and labels": counts, "Percentiles of voxels": percentiles}
    if info.organs:
        tables["Organs"] = organs
    if info.label_classes:
        tables["Label maps"] = classes
    if info.groups:
        tables["Groups"] = groups
    if summary.notes or summary.reasons:
        kinds = [[f"note {name}", str(count)] for name, count in summary.notes.items()]
        kinds += [[f"rejected {name}", str(len(rows))] for name, rows in summary.reasons.items()]
        tables["Notes and rejections"] = [["", "studies"], *kinds]
    page = contact_sheet(
        f"Prepared set {place.absolute().name}",
        facts,
        tables,
        found.problems,
        _samples(info, entries, args.count),
        series=info.series,
        findings=info.findings,
        organs=info.organs,
        cell=info.cell,
        patch=tuple(args.patch) if args.patch else None,
        label_classes=info.label_classes,
    )
    out.write_text(page, encoding="utf-8")
    print(f"contact sheet: {out}")
    return 1 if found.problems else 0


def _of(series) -> str:
    """The beginning of a caption about one series: nothing where it can only be one."""
    from medclip_jax.shards.record import VOLUME

    return "" if series.name == VOLUME else f"{series.name}, "


def _times(sizes) -> str:
    return "×".join("own" if size is None else f"{size:g}" for size in sizes)


def _size(series, found) -> str:
    """A series' voxels; of frames, how many slices and phases of how many voxels."""
    if not series.frames:
        return _times(series.shape)
    if series.name not in found.frames:
        return f"no frames of {_times(series.shape[1:])}"
    slices, phases = _ranges(found.frames[series.name])
    return f"{slices} slices × {phases} phases of {_times(series.shape[1:])}"


def _mm(series, found) -> str:
    """A series' spacing; where scans have each their own, from the smallest to the largest."""
    if series.name not in found.spacings:
        return _times(series.spacing)
    return "×".join(_ranges(found.spacings[series.name]))


def _ranges(found) -> list[str]:
    return [
        f"{low:.3g}" if low == high else f"{low:.3g}–{high:.3g}" for low, high in zip(*found, strict=True)
    ]


def _samples(info, entries: list[dict], count: int) -> list[dict]:
    """Evenly spread over each split, in proportion to its size; damaged records are left out."""
    from medclip_jax.shards.read import open_split
    from medclip_jax.shards.record import ShardError

    notes = {entry["id"]: entry.get("notes", ()) for entry in entries}
    total = sum(info.splits.values())
    samples = []
    for split, size in info.splits.items():
        wanted = min(size, max(1, round(count * size / max(total, 1))))
        try:
            source = open_split(info, split)
        except ShardError:
            continue
        for step in range(wanted):
            try:
                sample = source[step * size // wanted]
            except ShardError:
                continue
            samples.append({**sample, "split": split, "notes": notes.get(sample["id"], ())})
    return samples[:count]


def _counts(findings: tuple[str, ...], found) -> list[list[str]]:
    header = ["finding", "stated", "denied", "not mentioned", "labeled present", "labeled absent"]
    return [header] + [
        [name.replace("_", " "), str(said[2]), str(said[0]), str(said[1]), str(label[2]), str(label[0])]
        for name, said, label in zip(findings, found.findings, found.labels, strict=True)
    ]


def _organ_counts(organs: tuple[str, ...], found) -> list[list[str]]:
    header = ["organ", "shown", "described", "both", "said to be normal"]
    return [header] + [
        [name, *map(str, counts)] for name, counts in zip(organs, found.organs.tolist(), strict=True)
    ]


def _class_counts(classes: tuple[str, ...], found) -> list[list[str]]:
    """Of each class of label maps, how many volumes show it, and how much of what is labeled it fills."""
    maps, labeled, outside = found.labeled
    rows = [["class", "volumes", "% of labeled voxels"]]
    for name, (volumes, voxels) in zip(classes, found.classes.tolist(), strict=True):
        if volumes:
            rows.append([name, str(volumes), f"{100 * voxels / max(labeled, 1):.3g}"])
    if absent := len(classes) + 1 - len(rows):
        rows.append([f"({absent} more classes)", "0", "0"])
    share = 100 * outside / max(labeled + outside, 1)
    return [*rows, [f"(outside of the scan or not labeled: {share:.3g} % of all voxels)", str(maps), ""]]


def _group_counts(groups) -> list[list[str]]:
    return [["group", "value", "volumes"]] + [
        [name, value or "(unknown)", str(counts[value])]
        for name, counts in groups.items()
        for value in sorted(counts, key=lambda value: (not value, value))
    ]


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells as text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
