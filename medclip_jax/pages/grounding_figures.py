"""Figures of what models tell of patches: those that a sentence selects, and organs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medclip_jax.evaluation.grounding import ShownScan, ShownSentence
from medclip_jax.evaluation.organs import ShownOrgans
from medclip_jax.evaluation.results import number
from medclip_jax.pages.figures import (
    INK,
    LUNG_HU,
    PLANES,
    SOFT_TISSUE_HU,
    WIDE_HU,
    Spacing,
    mark_sides,
    new_figure,
    plane,
)
from medclip_jax.pages.label_outlines import COLORS
from medclip_jax.pages.occupancy import draw_occupancy
from medclip_jax.reports.places import PLACES
from medclip_jax.reports.regions import key_of

SELECTED, PLACE = "#00e5ff", "#7dff6a"
"""Outlines of the selected patches, and of those in which the place lies."""

_AIRY = frozenset({"lung", "lobe", "trachea", "bronchi"})
"""Words of regions that are looked at in a lung window."""

_IN_PLACE = 0.1
"""Share of a patch from which on it is outlined as one in which the place lies."""


def window_of(place: str) -> tuple[float, float]:
    """The window in which a finding or a region is looked at, HU.

    Args:
        place: a finding's name, or a region's.
    """
    words = frozenset().union(*map(key_of, PLACES.get(place) or (place.replace("_", " "),)))
    return LUNG_HU if words & _AIRY else SOFT_TISSUE_HU


def selection(scan: ShownScan, sentence: ShownSentence) -> Figure:
    """Three planes through the patches that a sentence selects, colored by their cosine with it.

    Args:
        scan: its volume.
        sentence: of its report.
    """
    shape, grid = scan.volume.shape, sentence.selected.shape
    voxels = np.array(shape) // grid
    layers = _densest(sentence)
    at = [layer * step + step // 2 for layer, step in zip(layers, voxels, strict=True)]
    figure, panels = _planes(scan.volume, scan.spacing, at, window_of(sentence.place), beside=1.0)
    # Of the selected alone: all of them lie near the top of the cosines of a volume.
    colored = sentence.similarity[sentence.selected] if sentence.selected.any() else sentence.similarity
    low, high = colored.min(), colored.max()
    size = tuple(voxels * scan.spacing)
    drawn = None
    for axis, panel in enumerate(panels):
        similarity, extent = plane(sentence.similarity, size, axis, layers[axis])
        selected, _ = plane(sentence.selected, size, axis, layers[axis])
        inside, _ = plane(sentence.shares > _IN_PLACE, size, axis, layers[axis])
        drawn = panel.imshow(
            similarity,
            cmap="inferno",
            vmin=low,
            vmax=max(high, low + 1e-6),
            extent=extent,
            alpha=np.where(selected, 0.4, 0.0),
            interpolation="nearest",
        )
        panel.add_collection(
            LineCollection(_outline(inside, extent), colors=PLACE, linewidths=1.0, linestyles=":")
        )
        panel.add_collection(LineCollection(_outline(selected, extent), colors=SELECTED, linewidths=1.2))
    bar = figure.colorbar(drawn, ax=list(panels), fraction=0.025, pad=0.01)
    bar.set_label("cosine with the sentence", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.solids.set_alpha(1)
    text = textwrap.fill(f"\u201c{sentence.text}\u201d", 110)
    figure.suptitle(f"{text}\n{describe(sentence)}", fontsize=9, color=INK)
    return figure


def organ_maps(scan: ShownOrgans, names: Sequence[str]) -> Figure:
    """Shares of patches that organs fill, as they are and as the model tells them, on the same three slices.

    Args:
        scan: of the evaluator.
        names: of the organs.
    """
    many = [to_hex(color) for color in colormaps["tab20"].colors]
    palette = COLORS if len(names) <= len(COLORS) else many
    colors = [palette[index % len(palette)] for index in range(len(names))]
    drawn = [draw_occupancy(scan.volume, scan.shares, colors, spacing=scan.spacing, window=WIDE_HU)]
    layers = [view.layer for view in drawn[0]]
    drawn.append(
        draw_occupancy(scan.volume, scan.told, colors, spacing=scan.spacing, window=WIDE_HU, layers=layers)
    )
    sizes = [view.image.shape for view in drawn[0]]
    widths, height = [size[1] for size in sizes], max(size[0] for size in sizes)
    scale = 9.0 / sum(widths)
    figure = new_figure(9.4 + 1.8, 2 * (scale * height + 0.25) + 0.2)
    panels = figure.subplots(2, 3, width_ratios=widths)
    for row, views, what in zip(panels, drawn, ("masks", "told by the model"), strict=True):
        for axis, (panel, view) in enumerate(zip(row, views, strict=True)):
            panel.imshow(view.image, interpolation="nearest")
            mark_sides(panel, axis)
            panel.set_axis_off()
            title = f"{view.name}, layer {view.layer + 1} of {view.layers}: {what}"
            panel.set_title(title, fontsize=8, color=INK)
    patches = [
        Patch(color=color, label=name.replace("_", " ")) for color, name in zip(colors, names, strict=True)
    ]
    figure.legend(handles=patches, fontsize=7, frameon=False, loc="outside right center")
    return figure


def describe(sentence: ShownSentence) -> str:
    """How many patches a sentence selects, and how they lie.

    Args:
        sentence: of the evaluator.
    """
    count = f"{int(sentence.selected.sum())} of {sentence.selected.size} patches"
    place = sentence.place.replace("_", " ")
    if np.isnan(sentence.score.ratio):
        return f"{count}; no organ of the set shows the place of: {place}"
    ratio = f"{number(sentence.score.ratio, 1)} times chance, at most {number(sentence.score.most, 1)}"
    return f"{count}; in the place of {place}: {ratio}"


def _planes(
    volume: Int16[np.ndarray, "D H W"],
    spacing: Spacing,
    at: Sequence[int],
    window: tuple[float, float],
    *,
    beside: float,
) -> tuple[Figure, Sequence[Any]]:
    """Axial, coronal and sagittal slice on one scale, with `beside` inches for a color bar."""
    sizes = np.array(volume.shape) * spacing
    widths, heights = [sizes[2], sizes[2], sizes[1]], [sizes[1], sizes[0], sizes[0]]
    scale = min(10.0 / sum(widths), 3.6 / max(heights))
    figure = new_figure(scale * sum(widths) + beside, scale * max(heights) + 0.9)
    panels = figure.subplots(1, 3, width_ratios=widths)
    for axis, (panel, name) in enumerate(zip(panels, PLANES, strict=True)):
        picture, extent = plane(volume, spacing, axis, at[axis])
        panel.imshow(
            picture, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear"
        )
        mark_sides(panel, axis)
        panel.set_title(f"{name}, slice {at[axis] + 1} of {volume.shape[axis]}", fontsize=8, color=INK)
        panel.set_axis_off()
    return figure, panels


def _densest(sentence: ShownSentence) -> tuple[int, int, int]:
    """Along each axis the layer with most selected patches, of equal ones that with the most similar."""
    weight = np.where(sentence.selected, 1.0 + 1e-3 * np.clip(sentence.similarity, -1, 1), 0.0)
    return tuple(int(weight.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3))


def _outline(
    mask: Bool[np.ndarray, "rows columns"], extent: tuple[float, float, float, float]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Lines between the patches of a mask and the others, of a picture whose first row is the upper one."""
    rows, columns = mask.shape
    width, height = extent[1] / columns, extent[3] / rows
    padded = np.pad(mask, 1)
    lines = []
    for row, column in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1]), strict=True):
        y = extent[3] - row * height
        lines.append(((column * width, y), ((column + 1) * width, y)))
    for row, column in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1]), strict=True):
        x = column * width
        lines.append(((x, extent[3] - row * height), (x, extent[3] - (row + 1) * height)))
    return lines
