"""Frames that move, with what a model looks at: an animation, and a curve over the sequence."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int16, UInt8

from medclip_jax.pages import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALE = 3
"""Pixels on the screen for a pixel of a frame."""

COLORS = 64
"""Of an animation: enough for gray and one scale of colors, and a file a quarter as large as with 256."""

MILLISECONDS = 70
"""That a frame is shown."""

STRENGTH = 0.55
"""Of the color where attention is highest."""


@dataclass(frozen=True)
class Beat:
    """Frames of one series as a model saw them.

    Attributes:
        frames: (P, H, W) intensities.
        attention: (P, h, w) how much the model looks at each patch of each frame.
    """

    frames: Int16[np.ndarray, "P H W"]
    attention: Float[np.ndarray, "P h w"]


def animation(series: Sequence[Beat]) -> bytes:
    """A GIF: a row for each series, frames on the left and with attention in color on the right.

    All series have the length of the longest; shorter ones begin anew.

    Args:
        series: one or more, of frames of one size.
    """
    from PIL import Image

    length = max(len(one.frames) for one in series)
    rows = [_rows(one) for one in series]
    pictures = [
        Image.fromarray(np.concatenate([row[place % len(row)] for row in rows])).quantize(
            COLORS, dither=Image.Dither.NONE
        )
        for place in range(length)
    ]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0
    )
    return buffer.getvalue()


def _rows(series: Beat) -> UInt8[np.ndarray, "P h w 3"]:
    from matplotlib import colormaps
    from PIL import Image

    low, high = np.percentile(series.frames, (1, 99))
    gray = np.clip((series.frames - low) / max(high - low, 1e-6), 0, 1)
    height, width = (SCALE * size for size in series.frames.shape[1:])
    highest = max(float(series.attention.max()), 1e-12)
    found = []
    for frame, attention in zip(gray, series.attention, strict=True):
        sized = [
            np.asarray(Image.fromarray(np.float32(x)).resize((width, height), Image.Resampling.BILINEAR))
            for x in (frame, attention / highest)
        ]
        plain = np.repeat(sized[0][..., None], 3, axis=2)
        heat = np.clip(sized[1], 0, 1)[..., None]
        color = np.asarray(colormaps["inferno"](heat[..., 0]))[..., :3]
        mixed = plain * (1 - STRENGTH * heat) + color * STRENGTH * heat
        found.append((np.concatenate([plain, mixed], axis=1) * 255).astype(np.uint8))
    return np.stack(found)


def attention_over_time(series: Mapping[str, Beat]) -> Figure:
    """How much of the attention each frame of the sequence gets, one series after the other.

    Args:
        series: name to frames.
    """
    figure = figures.new_figure(7.0, 2.4)
    panel = figure.add_subplot()
    start = 0
    for name, one in series.items():
        share = one.attention.sum(axis=(1, 2))
        panel.plot(np.arange(start, start + len(share)), share, marker="o", markersize=3, label=name)
        start += len(share)
    panel.set_xlabel("frame of the sequence")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_ylabel("share of attention")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=8)
    figures.plain(panel)
    return figure
