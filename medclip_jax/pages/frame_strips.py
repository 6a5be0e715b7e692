"""Strips of pictures of a series of frames: its phases, and its slices."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16, UInt8

MOST = 8
"""Pictures of a strip, evenly spread over what there is."""


def strips(
    title: str,
    frames: Int16[np.ndarray, "N H W"],
    counts: Sequence[int],
    spacing: Sequence[float],
    height: int,
) -> str:
    """HTML of a strip of the middle slice's phases, and of one of the slices; either where there are several.

    Args:
        title: of the series.
        frames: pictures of all phases of the first slice, then of the second, and so on.
        counts: slices, phases.
        spacing: mm between slices, rows, columns.
        height: of a picture, in CSS pixels.
    """
    slices, phases = (int(count) for count in counts)
    pictures = frames.reshape(slices, phases, *frames.shape[1:])
    low, high = np.percentile(frames[:, ::2, ::2], (1, 99))
    gray = (np.clip((pictures - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    width = height * frames.shape[2] * spacing[2] / (frames.shape[1] * spacing[1])
    middle = slices // 2
    rows = []
    if phases > 1:
        places = _spread(phases)
        heading = f"{title}, {phases} phases of slice {middle + 1}"
        rows.append(_strip(heading, gray[middle, places], "phase", places, height, width))
    if slices > 1 or phases == 1:
        places = _spread(slices)
        heading = f"{title}, {slices} slices" + " at phase 1" * (phases > 1)
        rows.append(_strip(heading, gray[places, 0], "slice", places, height, width))
    return "".join(rows)


def _spread(count: int) -> list[int]:
    """Up to `MOST` places from the first to the last."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, MOST))).astype(int)).tolist()


def _strip(
    heading: str,
    pictures: UInt8[np.ndarray, "K H W"],
    kind: str,
    places: Sequence[int],
    height: float,
    width: float,
) -> str:
    from PIL import Image

    figures = []
    for picture, place in zip(pictures, places, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        figures.append(
            f"<figure><img alt='{kind} {place + 1}' height='{height:.0f}' width='{width:.0f}' "
            f"src='data:image/png;base64,{data}'><figcaption>{kind} {place + 1}</figcaption></figure>"
        )
    return f"<p class='soft series'>{html.escape(heading)}</p><div class='views'>{''.join(figures)}</div>"
