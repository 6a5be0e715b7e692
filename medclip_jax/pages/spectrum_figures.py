"""Figures of the spectrum evaluator."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from medclip_jax.evaluation.pca import nearest_tokens
from medclip_jax.evaluation.spectrum import SpectrumResult
from medclip_jax.evaluation.token_maps import TokenMaps
from medclip_jax.pages.figures import (
    BLUE,
    FAINT,
    INK,
    LUNG_HU,
    ORANGE,
    PLANES,
    mark_sides,
    new_figure,
    plain,
    plane,
)


def decay(result: SpectrumResult) -> Figure:
    """Singular values of every layer over the first of them, on a logarithmic scale, darker with depth.

    Left of the tokens of all volumes together, right within a volume.

    Args:
        result: of the evaluator.
    """
    figure = new_figure(8.6, 3.3)
    panels = figure.subplots(1, 2, sharey=True)
    lowest = 1.0
    for rank, (name, layer) in enumerate(result.layers.items()):
        color = colormaps["viridis_r"](0.1 + 0.9 * rank / max(1, len(result.layers) - 1))
        together = layer.together / max(layer.together[0], np.finfo(float).tiny)
        for panel, values in zip(panels, (together, layer.decay), strict=True):
            shown = values[values > 0]
            panel.plot(np.arange(1, len(shown) + 1), shown, color=color, linewidth=1.4, label=name)
            lowest = min(lowest, *shown) if len(shown) else lowest
    for panel, title in zip(panels, ("all volumes together", "within a volume, mean"), strict=True):
        panel.set_yscale("log")
        panel.set_title(title, fontsize=9, color=INK)
        panel.set_xlabel("index of the singular value", fontsize=8)
        plain(panel)
    # What lies further down is rounding, and would squeeze the rest.
    panels[0].set_ylim(max(lowest / 1.5, 1e-5), 1.5)
    panels[0].set_ylabel("singular value / first", fontsize=8)
    panels[1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def ranks(result: SpectrumResult) -> Figure:
    """Over the layers: effective rank of all tokens together, of each volume's, and their mean cosine.

    Args:
        result: of the evaluator.
    """
    names, layers = list(result.layers), list(result.layers.values())
    places = np.arange(len(layers))
    values = [layer.metrics() for layer in layers]
    figure = new_figure(max(5.0, 1.6 + 0.42 * len(layers)), 5.4)
    together, within, cosine = figure.subplots(3, 1, sharex=True)
    together.plot(places, [v["effective_rank"] for v in values], color=BLUE, marker="o", markersize=4)
    together.plot(
        places,
        [v["participation_ratio"] for v in values],
        color=ORANGE,
        marker="s",
        markersize=3.5,
        linewidth=1.2,
    )
    together.set_ylabel("directions,\nall volumes", fontsize=8)
    together.legend(
        ["effective rank", "participation ratio"], fontsize=7.5, frameon=False, loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )  # fmt: skip
    _spread(within, places, [layer.ranks for layer in layers])
    within.set_ylabel("effective rank\n/ highest possible,\neach volume", fontsize=8)
    _spread(cosine, places, [layer.cosines for layer in layers])
    cosine.set_ylabel("cosine between\ntokens of a volume", fontsize=8)
    cosine.set_xticks(places, [name.replace("_", " ") for name in names], rotation=45, ha="right")
    for panel in (together, within):
        panel.set_ylim(bottom=0)
    for panel in (together, within, cosine):
        plain(panel)
    return figure


def token_maps(maps: TokenMaps) -> Figure:
    """Each scan a row: three planes in a lung window, and beside each the same with its tokens in color.

    Args:
        maps: of the evaluator.
    """
    shape = maps.volumes.shape[1:]
    nearest = nearest_tokens(maps.centers, shape)
    sizes = np.max(np.array(shape) * np.array(maps.spacings), axis=0)
    widths = np.repeat([sizes[2], sizes[2], sizes[1]], 2)
    heights = [sizes[1], sizes[0], sizes[0]]
    scale = min(12.0 / sum(widths), 3.0 / max(heights))
    rows = len(maps.volumes)
    figure = new_figure(scale * sum(widths) + 0.4, rows * (scale * max(heights) + 0.1) + 0.3)
    panels = figure.subplots(rows, 6, width_ratios=widths, squeeze=False)
    scans = zip(panels, maps.volumes, maps.colors, maps.spacings, strict=True)
    for row, volume, colors, spacing in scans:
        for axis in range(3):
            at = shape[axis] // 2
            picture, extent = plane(volume, spacing, axis, at)
            # Only the tokens of this slice: a full volume of colors would take far more memory.
            places = [index[at : at + 1] if i == axis else index for i, index in enumerate(nearest)]
            tokens, _ = plane(colors[np.ix_(*places)], spacing, axis, 0)
            for panel in row[2 * axis : 2 * axis + 2]:
                panel.imshow(
                    picture,
                    cmap="gray",
                    vmin=LUNG_HU[0],
                    vmax=LUNG_HU[1],
                    extent=extent,
                    interpolation="bilinear",
                )
                panel.set_axis_off()
            mark_sides(row[2 * axis], axis)
            row[2 * axis + 1].imshow(tokens, extent=extent, alpha=0.7, interpolation="nearest")
    for axis, name in enumerate(PLANES):
        panels[0][2 * axis].set_title(name, fontsize=8, color=INK)
        panels[0][2 * axis + 1].set_title(f"{name}, tokens", fontsize=8, color=INK)
    return figure


def _spread(panel, places, samples) -> None:
    """Mean over the volumes as a line, and the 5th to 95th percentile of them."""
    low, high = np.array([np.nanquantile(sample, [0.05, 0.95]) for sample in samples]).T
    panel.fill_between(places, low, high, color=FAINT, alpha=0.25, linewidth=0)
    panel.plot(places, [np.nanmean(sample) for sample in samples], color=BLUE, marker="o", markersize=4)
