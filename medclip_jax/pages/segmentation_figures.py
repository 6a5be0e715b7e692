"""What models tell of voxels, on a page: a section, and its figures."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medclip_jax.evaluation.results import number
from medclip_jax.evaluation.segmentation import SegmentationResult, ShownSegmentation
from medclip_jax.pages.figures import INK, PLANES, WIDE_HU, mark_sides, new_figure, plane
from medclip_jax.pages.label_outlines import COLORS, fullest_slice
from medclip_jax.pages.result_sections import Place, add_section, add_tile


@add_tile.register
def _(result: SegmentationResult, at: Place) -> None:
    at.page.tile(number(result.mean("dice")), "mean Dice over classes")


@add_section.register
def _(result: SegmentationResult, at: Place) -> None:
    at.page.section(
        at.title("Segmentation", "segmentation"),
        "Does the model tell the class of each voxel as the label maps do?",
    )
    at.page.table(result.table())
    for place, scan in enumerate(result.scans, 1):
        at.page.figure(
            segmentation_figure(scan),
            "Outlines of classes on three slices: label maps above, told by the model below",
            f"Scan {place}. Each slice is the one with the most labeled voxels.",
        )


def segmentation_figure(scan: ShownSegmentation) -> Figure:
    """Outlines of classes on an axial, a coronal and a sagittal slice: of the label map, and as told.

    Args:
        scan: of the evaluator.
    """
    sizes = np.array(scan.volume.shape) * scan.spacing
    widths, heights = [sizes[2], sizes[2], sizes[1]], [sizes[1], sizes[0], sizes[0]]
    scale = min(9.0 / sum(widths), 3.0 / max(heights))
    figure = new_figure(scale * sum(widths) + 1.8, 2 * (scale * max(heights) + 0.3) + 0.2)
    panels = figure.subplots(2, 3, width_ratios=widths)
    slices = [fullest_slice(scan.true, axis) for axis in range(3)]
    for row, labels, what in zip(panels, (scan.true, scan.told), ("label map", "told"), strict=True):
        for axis, (panel, name) in enumerate(zip(row, PLANES, strict=True)):
            at = slices[axis]
            picture, extent = plane(scan.volume, scan.spacing, axis, at)
            panel.imshow(picture, cmap="gray", vmin=WIDE_HU[0], vmax=WIDE_HU[1], extent=extent)
            shown, _ = plane(labels, scan.spacing, axis, at)
            y, x = (
                (np.arange(count) + 0.5) / count * length
                for count, length in zip(shown.shape, (extent[3], extent[1]), strict=True)
            )
            for value in scan.values.values():
                mask = shown == value
                if mask.any() and not mask.all() and min(shown.shape) > 1:
                    color = COLORS[(value - 1) % len(COLORS)]
                    panel.contour(x, y[::-1], mask, levels=[0.5], colors=color, linewidths=1.1)
            mark_sides(panel, axis)
            panel.set_axis_off()
            title = f"{name}, slice {at + 1} of {scan.volume.shape[axis]}: {what}"
            panel.set_title(title, fontsize=8, color=INK)
    lines = [
        Line2D([], [], color=COLORS[(value - 1) % len(COLORS)], label=name.replace("_", " "))
        for name, value in scan.values.items()
    ]
    figure.legend(handles=lines, fontsize=7, frameon=False, loc="outside right center")
    return figure
