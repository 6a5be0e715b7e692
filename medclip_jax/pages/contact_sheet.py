"""A page to look over a prepared set: slices of each volume or strips of frames, organ outlines, findings."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int16, UInt8

from medclip_jax.pages.frame_strips import strips
from medclip_jax.pages.label_outlines import COLORS, ShownClass, class_outline, fullest_slice, shown_classes
from medclip_jax.pages.occupancy import draw_occupancy, patch_shares
from medclip_jax.shards.record import LABEL_MAP, VOLUME
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.volumes.modality import modality_of

WINDOW_HU = (-160.0, 240.0)
"""Soft tissue: center 40, width 400."""

_IMAGE_HEIGHT = 225
"""CSS pixels of the tallest view."""

_FRAME_HEIGHT = 110
"""CSS pixels of a picture in a strip of frames."""

# How each view is cut from a (D, H, W) volume and laid down as radiologists hang it: the patient's right
# on the left, front at the top of axial slices and at the left of sagittal ones, head up.
_VIEWS = (("axial", 0, "A", "R"), ("coronal", 1, "S", "R"), ("sagittal", 2, "S", "A"))

_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1d2430; --soft: #5c6675; --line: #d8dde5; --paper: #f6f7f9; --card: #fff;
  --good: #0a7d4f; --bad: #b3261e; --mark: #ffe3d8; --mark-ink: #7a2400;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ee; --soft: #9aa5b4; --line: #323a46; --paper: #14181e; --card: #1c222b;
    --good: #4cd39a; --bad: #ff8a80; --mark: #4a2a1d; --mark-ink: #ffc9b0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1500px; padding: 28px; background: var(--paper); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 22px; margin: 0 0 4px; }
h2 { font-size: 16px; margin: 26px 0 10px; }
.soft { color: var(--soft); }
.good { color: var(--good); }
.bad { color: var(--bad); }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 0; }
.fact { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; }
.fact b { display: block; font-size: 17px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--soft); }
.tables { display: flex; flex-wrap: wrap; gap: 0 48px; align-items: flex-start; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(660px, 100%), 1fr)); gap: 18px; }
.study { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.views { display: flex; justify-content: center; gap: 4px; background: #000; padding: 8px 8px 4px; }
.views figure { margin: 0; flex: 0 1 auto; min-width: 0; }
.views svg, .views img { display: block; max-width: 100%; height: auto; }
figcaption { color: #9aa5b4; font-size: 11px; text-align: center; padding-top: 3px; }
.series { margin: 0; padding: 6px 14px; }
.text { padding: 10px 14px 14px; }
.text p { margin: 6px 0 8px; white-space: pre-line; max-height: 15em; overflow-y: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px; color: var(--soft); }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: middle; }
.tag {
  display: inline-block; border: 1px solid var(--line); border-radius: 10px; padding: 0 8px;
  margin: 2px 4px 2px 0; font-size: 12px;
}
.tag.yes { background: var(--mark); color: var(--mark-ink); }
.tag.no { color: var(--soft); }
details { margin-top: 8px; }
summary { cursor: pointer; color: var(--soft); }
td.said { text-align: left; white-space: normal; }
code { font-size: 12px; }
"""


def contact_sheet(
    title: str,
    facts: Mapping[str, str],
    tables: Mapping[str, Sequence[Sequence[str]]],
    problems: Sequence[str],
    samples: Sequence[Mapping[str, object]],
    *,
    series: Sequence[SeriesSettings],
    findings: Sequence[str],
    organs: Sequence[str],
    cell: int,
    patch: tuple[int, int, int] | None = None,
    label_classes: Sequence[str] = (),
) -> str:
    """Draw the page. It needs no other file and no network.

    Args:
        title: heading.
        facts: name to value, shown as a row of boxes.
        tables: heading to rows, the first row the header; at least one table.
        problems: lines shown in red; () when all is well.
        samples: decoded records; ``split`` and ``notes`` are shown if there.
        series: what the scans of a record are (`PreparedInfo.series`): CT is drawn in one window, others
            from each scan's 1st to 99th percentile.
        findings: names of the columns of `findings` and `labels`.
        organs: names of the channels of `organs`.
        cell: voxels per organ cell.
        patch: voxels per patch of a model along depth, height, width, on whose grid organ occupancy is
            drawn as well; None leaves it out.
        label_classes: names of the classes 1, 2, ... of `label_map`.

    Returns:
        HTML.

    Raises:
        ValueError: cells do not divide the patch, or it does not divide the volume.
    """
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
    ]
    if not problems:
        parts.append("<p class='good'>Every record agrees with its checksum.</p>")
    else:
        lines = "<br>".join(html.escape(line) for line in problems)
        parts.append(f"<p class='bad'><b>{len(problems)} problems</b><br>{lines}</p>")
    boxes = (
        f"<div class='fact'><span class='soft'>{html.escape(k)}</span><b>{html.escape(v)}</b></div>"
        for k, v in facts.items()
    )
    parts.append(f"<div class='facts'>{''.join(boxes)}</div><div class='tables'>")
    first, *rest = (f"<h2>{html.escape(heading)}</h2>{_table(rows)}" for heading, rows in tables.items())
    parts.append(f"<div>{first}</div><div>{''.join(rest)}</div></div>")
    modalities = {modality_of(scan.modality) for scan in series}
    windows = ", ".join(
        "soft tissue -160 to 240 HU" if modality.absolute else "1st to 99th percentile of each scan"
        for modality in sorted(modalities, key=lambda modality: modality.name)
    )
    slices = "Slices with most labeled voxels" if label_classes else "Middle slices"
    kinds = [slices] * any(not scan.frames for scan in series)
    kinds += ["Phases of the middle slice, and slices"] * any(scan.frames for scan in series)
    legend = (
        f"{'. '.join(kinds)}; {windows}; the patient's right on the left. "
        "+ stated, − denied, ? not mentioned."
    )
    if organs and patch:
        legend += (
            f" Below them: the layer of patches ({'×'.join(map(str, patch))} voxels) with most of the "
            "organs, each patch as deep in an organ's color as the organ fills it."
        )
    heading = "Studies" if any(scan.frames for scan in series) else "Volumes"
    parts.append(f"<h2>{heading}</h2><p class='soft'>{legend}</p><div class='sheet'>")
    for sample in samples:
        parts.append(_study(sample, series, findings, organs, cell, patch, label_classes))
    parts.append("</div></body></html>")
    return "".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in body)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _study(
    sample: Mapping[str, object],
    series: Sequence[SeriesSettings],
    findings: Sequence[str],
    organs: Sequence[str],
    cell: int,
    patch: tuple[int, int, int] | None,
    label_classes: Sequence[str],
) -> str:
    # All that the volume shows: the middle slices and the layers of patches meet different ones.
    shown = {
        organ: COLORS[index % len(COLORS)]
        for index, organ in enumerate(organs)
        if "organs" in sample and np.any(sample["organs"][index])
    }
    labels = sample.get(LABEL_MAP)
    classes = shown_classes(labels, label_classes, len(organs))
    rows = []
    for scan in (scan for scan in series if scan.name in sample):
        volume, outlined = sample[scan.name], shown if scan.name == VOLUME else {}
        spacing = sample[scan.spacing_array] if scan.spacing_array else scan.spacing
        if scan.frames:
            rows.append(strips(scan.name, volume, sample[scan.frames_array], spacing, _FRAME_HEIGHT))
            continue
        absolute = modality_of(scan.modality).absolute
        window = WINDOW_HU if absolute else tuple(np.percentile(volume[::2, ::2, ::2], (1, 99)))
        maps = {organ: sample["organs"][list(organs).index(organ)] for organ in outlined}
        over = (labels, classes) if scan.name == VOLUME and labels is not None else None
        views = _views(volume, spacing, window, maps, outlined, cell, over)
        title = "" if scan.name == VOLUME else f"<p class='soft series'>{html.escape(scan.name)}</p>"
        rows.append(f"{title}<div class='views'>{views}</div>")
        if scan.name == VOLUME:
            rows.append(_occupancy(sample, spacing, organs, cell, patch, window))
    legend = "".join(
        f"<span><i style='background:{color}'></i>{html.escape(name)}</span>"
        for name, color in (*shown.items(), *((each.name, each.color) for each in classes))
    )
    tags = [
        _tag(name, int(value), int(label))
        for name, value, label in zip(findings, sample["findings"], sample["labels"], strict=True)
    ]
    notes = ", ".join(map(str, sample.get("notes", ())))
    heading = " · ".join(
        filter(
            None,
            (
                f"<code>{html.escape(str(sample['id'])[:12])}</code>",
                html.escape(str(sample.get("split", ""))),
                html.escape(notes),
            ),
        )
    )
    report = html.escape(str(sample["report"])) or "<span class='bad'>no report</span>"
    text = (
        f"<div class='soft'>{heading}</div><div class='legend'>{legend}</div><p>{report}</p>{''.join(tags)}"
        f"{_organ_texts(sample, organs)}"
    )
    return f"<div class='study'>{''.join(rows)}<div class='text'>{text}</div></div>"


def _views(
    volume: Int16[np.ndarray, "D H W"],
    spacing: Sequence[float],
    window: tuple[float, float],
    maps: Mapping[str, UInt8[np.ndarray, "d h w"]],
    colors: Mapping[str, str],
    cell: int,
    labeled: tuple[UInt8[np.ndarray, "D H W"], Sequence[ShownClass]] | None = None,
) -> str:
    """A slice along each axis, with outlines of organs and of the classes of a label map."""
    extent = np.array(volume.shape) * np.array(spacing)
    scale = _IMAGE_HEIGHT / max(extent[1], extent[0])
    figures = []
    for name, axis, top, left in _VIEWS:
        height, width = (extent[other] * scale for other in range(3) if other != axis)
        middle = volume.shape[axis] // 2 if labeled is None else fullest_slice(labeled[0], axis)
        image = _png(_window(_hang(np.take(volume, middle, axis)), window))
        outlines = []
        for organ, cells in maps.items():
            path = _outline(cells, axis, middle, cell, volume.shape, (height, width))
            if path:
                outlines.append(
                    f"<path d='{path}' fill='none' stroke='{colors[organ]}' stroke-width='1.3'>"
                    f"<title>{html.escape(organ)}</title></path>"
                )
        if labeled is not None:
            plane = _hang(np.take(labeled[0], middle, axis))
            for each in labeled[1]:
                if path := class_outline(plane, each.value, (height, width)):
                    outlines.append(
                        f"<path d='{path}' fill='none' stroke='{each.color}' stroke-width='1.3'>"
                        f"<title>{html.escape(each.name)}</title></path>"
                    )
        figures.append(
            f"<figure><svg width='{width:.0f}' height='{height:.0f}' viewBox='0 0 {width:.1f} {height:.1f}'>"
            f"<image href='data:image/png;base64,{image}' width='{width:.1f}' height='{height:.1f}' "
            f"preserveAspectRatio='none'/>{''.join(outlines)}"
            f"<g fill='#fff' fill-opacity='.75' font-size='10' font-family='sans-serif'>"
            f"<text x='{width / 2:.0f}' y='10' text-anchor='middle'>{top}</text>"
            f"<text x='3' y='{height / 2:.0f}'>{left}</text></g></svg>"
            f"<figcaption>{name if labeled is None else f'{name} slice {middle + 1}'}</figcaption></figure>"
        )
    return "".join(figures)


def _occupancy(
    sample: Mapping[str, object],
    spacing: tuple[float, float, float],
    organs: Sequence[str],
    cell: int,
    patch: tuple[int, int, int] | None,
    window: tuple[float, float],
) -> str:
    """The row of views with organ occupancy on the patch grid, "" without a patch or any organ."""
    if patch is None or "organs" not in sample or not np.any(sample["organs"]):
        return ""
    shares = patch_shares(sample["organs"], cell, patch)
    colors = [COLORS[index % len(COLORS)] for index in range(len(organs))]
    views = draw_occupancy(
        sample["volume"], shares, colors, spacing=spacing, window=window, height=_IMAGE_HEIGHT
    )
    figures = "".join(
        f"<figure><img alt='organ occupancy, {view.name}' width='{view.image.shape[1]}' "
        f"height='{view.image.shape[0]}' src='data:image/png;base64,{_png(view.image)}'>"
        f"<figcaption>patches, {view.name} layer {view.layer + 1} of {view.layers}</figcaption></figure>"
        for view in views
    )
    return f"<div class='views'>{figures}</div>"


def _organ_texts(sample: Mapping[str, object], organs: Sequence[str]) -> str:
    """What is said of each organ, folded away."""
    said = sample.get("organ_sentences") or {}
    if not said:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='said'>{html.escape(said[name]['text'])}</td>"
        f"<td>{'normal' if said[name]['normal'] else ''}</td></tr>"
        for name in organs
        if name in said
    )
    return f"<details><summary>text about {len(said)} organs</summary><table>{rows}</table></details>"


def _tag(name: str, value: int, label: int) -> str:
    said = {1: "yes", -1: "no", 0: ""}[int(np.sign(value))]
    signs = {1: "+", -1: "−", 0: "?"}
    truth = f" (label {signs[int(np.sign(label))]})" if label else ""
    shown = f"{signs[int(np.sign(value))]} {name.replace('_', ' ')}{truth}"
    return f"<span class='tag {said}'>{html.escape(shown)}</span>"


def _hang(plane: Int16[np.ndarray, "A B"]) -> Int16[np.ndarray, "A B"]:
    # Indices grow towards Superior, Anterior and Right; pages grow down and to the right.
    return plane[::-1, ::-1]


def _window(plane: Int16[np.ndarray, "A B"], window: tuple[float, float]) -> UInt8[np.ndarray, "A B"]:
    low, high = window
    return (np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def _png(image: UInt8[np.ndarray, "A B *channels"]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _outline(
    cells: UInt8[np.ndarray, "d h w"],
    axis: int,
    index: int,
    cell: int,
    shape: tuple[int, int, int],
    size: tuple[float, float],
) -> str:
    """SVG path around where an organ fills half a cell, or "" where the slice does not meet it.

    An organ too thin to fill half of any cell is outlined at half of the most that it fills.
    """
    import contourpy

    position = np.clip((index + 0.5) / cell - 0.5, 0, cells.shape[axis] - 1)
    below = int(position)
    above = min(below + 1, cells.shape[axis] - 1)
    weight = position - below
    plane = (1 - weight) * np.take(cells, below, axis) + weight * np.take(cells, above, axis)
    level = min(127.5, cells.max() / 2)
    if plane.max() <= level:
        return ""
    rows, columns = (shape[other] for other in range(3) if other != axis)
    # A rim of empty cells closes outlines that reach the border.
    plane = np.pad(_hang(plane), 1)
    y, x = ((np.arange(n) - 0.5) * cell for n in plane.shape)
    lines = contourpy.contour_generator(
        np.clip(x, 0, columns) / columns * size[1], np.clip(y, 0, rows) / rows * size[0], plane
    ).lines(level)
    return " ".join("M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in line) for line in lines)
