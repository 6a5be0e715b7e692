"""Figures for the pages, drawn without a display and without pyplot's global state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.ordinal import OrdinalResult
from medclip_jax.evaluation.results import TOO_FEW, number
from medclip_jax.evaluation.zero_shot_result import ZeroShotResult

SOFT_TISSUE_HU = (-160.0, 240.0)
"""Window that shows heart, vessels and calcium."""

LUNG_HU = (-1350.0, 150.0)
"""Window that shows vessels, nodules and airless parts of the lungs."""

WIDE_HU = (-1000.0, 600.0)
"""Window that shows lungs too."""

PLANES = ("axial", "coronal", "sagittal")

SIDES = ("RLAP", "RLSI", "APSI")
"""What lies left, right, above and below in a picture of each plane."""

INK, FAINT, BLUE, ORANGE = "#1d2126", "#8a929a", "#0b5c8a", "#c8641b"

Spacing = tuple[float, float, float]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last line cut short by a crash is left out.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
    """
    records = []
    for line in Path(path).read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def curves(records: Sequence[Mapping[str, Any]], names: Sequence[str], *, title: str = "") -> Figure:
    """Metrics over steps, each in its own panel: faint as logged, bold as a running mean.

    Args:
        records: with "step" and some of the names.
        names: what to draw; a name that no record has is left out.
        title: above all.
    """
    series = {
        name: np.array([(r["step"], r[name]) for r in records if _is_number(r.get(name))], float)
        for name in names
    }
    series = {name: points for name, points in series.items() if len(points)}
    figure = new_figure(4.3 * max(1, len(series)), 2.7)
    panels = figure.subplots(1, max(1, len(series)), squeeze=False)[0]
    for panel, (name, points) in zip(panels, series.items(), strict=False):
        steps, values = points.T
        panel.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1, marker="." if len(points) < 12 else "")
        width = max(1, len(values) // 20)
        if width > 1:
            # The window shrinks towards both ends, so that the curve reaches them.
            sums = np.cumsum(np.concatenate([[0.0], values]))
            low = np.maximum(np.arange(len(values)) - width, 0)
            high = np.minimum(np.arange(len(values)) + width + 1, len(values))
            panel.plot(steps, (sums[high] - sums[low]) / (high - low), color=BLUE, linewidth=1.8)
        panel.set_title(name, fontsize=9, color=INK)
        panel.set_xlabel("step", fontsize=8)
        plain(panel)
    if not series:
        panels[0].set_axis_off()
        panels[0].text(0.5, 0.5, "nothing was logged", ha="center", color=FAINT)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    return figure


def slices(
    volume: Num[np.ndarray, "D H W"],
    spacing: Spacing,
    *,
    at: Sequence[int] | None = None,
    window: tuple[float, float] = SOFT_TISSUE_HU,
    heat: Float[np.ndarray, "D H W"] | None = None,
    title: str = "",
) -> Figure:
    """Axial, coronal and sagittal slice in radiological convention, in mm, with heat on top.

    The patient's right is on the left of axial and coronal slices; anterior is up, or left. Letters say so.

    Args:
        volume: (D, H, W) HU.
        spacing: mm along depth, height, width.
        at: (d, h, w) index the slices cross; None for the peak of the heat, or the middle.
        window: (low, high) shown as black and white.
        heat: (D, H, W) relevance, drawn in color with a color bar; transparent where it is low.
        title: above all.
    """
    if at is None:
        at = [n // 2 for n in volume.shape] if heat is None else np.unravel_index(heat.argmax(), heat.shape)
    sizes = np.array(volume.shape) * spacing
    widths, heights = [sizes[2], sizes[2], sizes[1]], [sizes[1], sizes[0], sizes[0]]
    # One scale for the three planes: inches for each mm, limited by width and by height.
    scale = min(10.0 / sum(widths), 4.0 / max(heights))
    figure = new_figure(scale * sum(widths) + (1.0 if heat is not None else 0.2), scale * max(heights) + 0.6)
    panels = figure.subplots(1, 3, width_ratios=widths)
    top = float(heat.max()) if heat is not None and heat.max() > 0 else 1.0
    drawn = None
    for axis, (panel, name) in enumerate(zip(panels, PLANES, strict=True)):
        picture, extent = plane(volume, spacing, axis, at[axis])
        panel.imshow(
            picture, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear"
        )
        if heat is not None:
            overlay = plane(heat, spacing, axis, at[axis])[0] / top
            drawn = panel.imshow(
                overlay,
                cmap="inferno",
                vmin=0,
                vmax=1,
                extent=extent,
                # Low relevance stays see-through, the peak hides little of the anatomy.
                alpha=np.clip(overlay * 1.2, 0, 0.6),
                interpolation="bilinear",
            )
        mark_sides(panel, axis)
        panel.set_title(f"{name}, slice {at[axis] + 1} of {volume.shape[axis]}", fontsize=8, color=INK)
        panel.set_axis_off()
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=list(panels), fraction=0.025, pad=0.01)
        bar.set_label("relevance / its maximum", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.solids.set_alpha(1)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    return figure


def reconstruction(
    original: Float[np.ndarray, "D H W"],
    visible: Float[np.ndarray, "D H W"],
    completed: Float[np.ndarray, "D H W"],
    spacing: Spacing,
    *,
    title: str = "",
) -> Figure:
    """A masked autoencoder's work: original, what it saw, what it made of it, in three planes.

    Args:
        original: (D, H, W) windowed intensities in [-1, 1].
        visible: the same with hidden patches at NaN.
        completed: visible patches as they were, hidden ones as predicted.
        spacing: mm along depth, height, width.
        title: above all.
    """
    sizes = np.array(original.shape) * spacing
    heights = [sizes[1], sizes[0], sizes[0]]
    widths = [sizes[2], sizes[2], sizes[1]]
    unit = 2.6 / max(widths)
    figure = new_figure(3 * 2.6 + 0.4, unit * sum(heights) + 0.7)
    panels = figure.subplots(3, 3, height_ratios=heights)
    hidden = np.isnan(visible)
    for axis in range(3):
        at = original.shape[axis] // 2
        for panel, (name, array) in zip(
            panels[axis],
            (("original", original), ("seen by the model", original), ("completed", completed)),
            strict=True,
        ):
            picture, extent = plane(array, spacing, axis, at)
            panel.imshow(picture, cmap="gray", vmin=-1, vmax=1, extent=extent, interpolation="bilinear")
            if name == "seen by the model":
                # Over the picture and not instead of it: interpolation would blur the patches' borders.
                cover = np.ma.masked_equal(plane(hidden, spacing, axis, at)[0], False)
                panel.imshow(cover, cmap=ListedColormap(["#31506b"]), extent=extent, interpolation="nearest")
            mark_sides(panel, axis)
            panel.set_xticks([])
            panel.set_yticks([])
            if axis == 0:
                panel.set_title(name, fontsize=9, color=INK)
        panels[axis][0].set_ylabel(PLANES[axis], fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    return figure


def roc(result: ZeroShotResult) -> Figure:
    """One ROC curve for each finding with its AUROC and interval.

    Args:
        result: of the zero-shot evaluator.
    """
    findings = list(result.shown.items())
    columns = min(4, max(1, len(findings)))
    rows = -(-len(findings) // columns) or 1
    figure = new_figure(2.6 * columns, 2.75 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, (name, scores) in zip(panels.flat, findings, strict=False):
        panel.set_axis_on()
        panel.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
        text = TOO_FEW
        if scores.is_enough:
            panel.plot(*metrics.roc_curve(scores.labels, scores.scores), color=BLUE, linewidth=1.8)
            text = f"AUROC {number(scores.values['auroc'])}"
            interval = scores.intervals.get("auroc")
            if interval is not None and interval.defined:
                text += f"\n[{number(interval.low)}, {number(interval.high)}]"
        counts = f"{int(scores.labels.sum())} of {len(scores.labels)} present"
        panel.text(0.97, 0.05, f"{text}\n{counts}", ha="right", va="bottom", fontsize=7.5, color=INK)
        panel.set_title(name.replace("_", " "), fontsize=9, color=INK)
        panel.set_aspect("equal")
        panel.set_xlim(-0.02, 1.02)
        panel.set_ylim(-0.02, 1.02)
        plain(panel)
        panel.set_xlabel("1 - specificity", fontsize=7.5)
        panel.set_ylabel("sensitivity", fontsize=7.5)
    return figure


def auroc_bars(
    result: ZeroShotResult, baseline: Mapping[str, float] | None = None, baseline_name: str = "baseline"
) -> Figure:
    """AUROC of each finding as a bar with its interval, a baseline as a diamond, chance as a line.

    Args:
        result: of the zero-shot evaluator.
        baseline: finding to AUROC of something simpler.
        baseline_name: what that is.
    """
    names = list(result.shown)
    enough = [name for name in names if result.shown[name].is_enough]
    values = [result.shown[name].values["auroc"] if name in enough else np.nan for name in names]
    intervals = [result.shown[name].intervals.get("auroc") for name in names]
    values.append(result.shown_mean)
    intervals.append(result.mean_auroc_interval if len(enough) == len(names) else None)
    figure = new_figure(7.2, 0.36 * len(values) + 0.9)
    panel = figure.subplots()
    places = np.arange(len(values))[::-1]
    colors = [BLUE] * len(names) + [INK]
    panel.barh(places, np.nan_to_num(np.array(values)), color=colors, height=0.58, alpha=0.9)
    for place, value, interval in zip(places, values, intervals, strict=True):
        if interval is not None and interval.defined and not np.isnan(value):
            panel.plot([interval.low, interval.high], [place, place], color=FAINT, linewidth=2.2)
        text = TOO_FEW if np.isnan(value) else number(value)
        panel.text(1.015, place, text, va="center", fontsize=8, color=INK)
    if baseline:
        points = [
            (baseline[name], place) for name, place in zip(names, places, strict=False) if name in baseline
        ]
        mean = metrics.mean_of_defined(baseline.values())
        points.append((mean, places[-1]))
        panel.scatter(
            *zip(*points, strict=True), marker="D", s=26, color=ORANGE, zorder=3, label=baseline_name
        )
        panel.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    panel.axvline(0.5, color=FAINT, linestyle=":", linewidth=1)
    panel.set_yticks(places, [name.replace("_", " ") for name in names] + ["mean"])
    panel.set_xlim(0, 1)
    panel.set_xlabel("AUROC", fontsize=8)
    plain(panel)
    return figure


def grade_boxes(result: OrdinalResult) -> Figure:
    """Scores of each grade: every volume a dot, the median a line.

    Args:
        result: of the ordinal evaluator.
    """
    figure = new_figure(6.4, 2.8)
    panel = figure.subplots()
    generator = np.random.default_rng(0)
    for grade in np.unique(result.grades):
        scores = result.scores[result.grades == grade]
        # Sideways jitter only separates dots that would hide each other.
        places = grade + generator.uniform(-0.22, 0.22, len(scores))
        panel.scatter(places, scores, s=9, color=BLUE, alpha=0.45, linewidths=0)
        panel.plot([grade - 0.3, grade + 0.3], [np.median(scores)] * 2, color=ORANGE, linewidth=2)
    panel.set_xticks(np.unique(result.grades))
    panel.set_xlabel(f"grade ({result.name})", fontsize=8)
    panel.set_ylabel(result.conditions["score"], fontsize=8)
    plain(panel)
    return figure


def grid_effects(
    points: Sequence[Mapping[str, Any]], values: Sequence[float], keys: Sequence[str], *, metric: str
) -> Figure:
    """A metric against each key of a grid: every run a dot, the mean over all else a line.

    With two keys, each panel has one line for each value of the other key.

    Args:
        points: for each run, key to its value.
        values: the metric of each run.
        keys: one panel for each.
        metric: its name.
    """
    figure = new_figure(max(4.4, 3.6 * len(keys)), 3.0)
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    numbers = np.asarray(values, float)
    for panel, key in zip(panels, keys, strict=True):
        shown = list({json.dumps(point[key]): point[key] for point in points}.values())
        numeric = all(_is_number(value) and not isinstance(value, bool) for value in shown)
        shown.sort(key=None if numeric else json.dumps)
        place = {json.dumps(value): value if numeric else at for at, value in enumerate(shown)}
        if not numeric:
            panel.set_xticks(range(len(shown)), [str(value) for value in shown])
        elif min(shown) > 0 and max(shown) / min(shown) >= 10:
            panel.set_xscale("log")
        where = np.array([place[json.dumps(point[key])] for point in points])
        other = next(name for name in keys if name != key) if len(keys) == 2 else None
        groups = [json.dumps(point[other]) if other else "" for point in points]
        names = list(dict.fromkeys(groups))
        for rank, name in enumerate(names):
            color = BLUE if len(names) == 1 else colormaps["viridis"](0.85 * rank / (len(names) - 1))
            chosen = np.array([group == name for group in groups])
            panel.scatter(where[chosen], numbers[chosen], s=14, color=color, alpha=0.6, linewidths=0)
            places = np.unique(where[chosen])
            means = [numbers[chosen & (where == at)].mean() for at in places]
            panel.plot(places, means, color=color, linewidth=1.6, label=name)
        if other and len(names) <= 8:
            panel.legend(title=other.split(".")[-1], fontsize=7, title_fontsize=7, frameon=False)
        panel.set_xlabel(key, fontsize=8)
        plain(panel)
    panels[0].set_ylabel(metric, fontsize=8)
    return figure


def thumbnail(
    volume: Num[np.ndarray, "D H W"],
    spacing: Spacing,
    *,
    at: int | None = None,
    window: tuple[float, float] = SOFT_TISSUE_HU,
) -> bytes:
    """One axial slice as a small PNG without frame.

    Args:
        volume: (D, H, W) HU.
        spacing: mm along depth, height, width.
        at: slice; None for the middle.
        window: (low, high) shown as black and white.
    """
    picture, extent = plane(volume, spacing, 0, volume.shape[0] // 2 if at is None else at)
    return row_of_pictures([(picture, extent[1] / extent[3], window)])


def row_of_pictures(
    pictures: Sequence[tuple[Num[np.ndarray, "H W"], float, tuple[float, float]]], *, height: float = 1.6
) -> bytes:
    """Pictures beside one another as a small PNG without frame.

    Args:
        pictures: of each the pixels, its width over its height, and (low, high) shown as black and white.
        height: of the PNG, in inches; with a single picture its width.
    """
    from medclip_jax.pages.html import to_png

    ratios = [ratio for _, ratio, _ in pictures]
    if len(pictures) == 1:
        height /= ratios[0]
    figure = Figure(figsize=(height * sum(ratios), height))
    FigureCanvasAgg(figure)
    left = 0.0
    for (pixels, ratio, window), width in zip(pictures, np.array(ratios) / sum(ratios), strict=True):
        panel = figure.add_axes((left, 0, width, 1))
        panel.imshow(
            pixels,
            cmap="gray",
            vmin=window[0],
            vmax=window[1],
            extent=(0.0, ratio, 0.0, 1.0),
            aspect="auto",
            interpolation="bilinear",
        )
        panel.set_axis_off()
        left += width
    return to_png(figure, dpi=100, tight=False)


def plane(
    volume: np.ndarray, spacing: Spacing, axis: int, index: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A slice with superior or anterior up, the patient's right or anterior left, and its extent in mm.

    Args:
        volume: (D, H, W), or with further axes (D, H, W, ...).
        spacing: mm along depth, height, width.
        axis: 0 for an axial slice, 1 for a coronal, 2 for a sagittal one.
        index: of the slice.
    """
    picture = np.take(volume, index, axis=axis)[::-1, ::-1]
    vertical, horizontal = [s for i, s in enumerate(spacing) if i != axis]
    return picture, (0.0, picture.shape[1] * horizontal, 0.0, picture.shape[0] * vertical)


def mark_sides(panel: Any, axis: int) -> None:
    """The letters of a plane's four sides: right and left, anterior and posterior, superior and inferior.

    Args:
        panel: matplotlib axes.
        axis: of the plane, as of `plane`.
    """
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    ways = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for letter, place, (horizontal, vertical) in zip(SIDES[axis], places, ways, strict=True):
        panel.text(
            *place, letter, transform=panel.transAxes, color="#ffd479", fontsize=7, ha=horizontal, va=vertical
        )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Args:
        width: inches.
        height: inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(panel: Any) -> None:
    """The look of all panels: no frame above and to the right, a faint grid behind.

    Args:
        panel: matplotlib axes.
    """
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(which="both", labelsize=7.5, colors=INK)
    panel.grid(color="#e8eaec", linewidth=0.7)
    panel.set_axisbelow(True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and np.isfinite(value)
