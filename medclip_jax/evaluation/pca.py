"""What a tower tells apart: patch tokens along their first three principal components, as colors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

COMPONENTS = 3
"""Red, green and blue."""

_OUTLIERS = 0.01
"""Share of the tokens at either end of a component that get the outermost color."""


@dataclass(frozen=True)
class TokenColors:
    """From tokens to colors; tokens of all scans colored by one of these can be compared.

    Attributes:
        mean: (W,) token.
        axes: (3, W) directions of most variance, first to third, of length 1; 0 where there are fewer.
        low: (3,) place along each direction that is shown as 0.
        high: (3,) place that is shown as 1.
        shares: (3,) of the variance that each direction carries.
    """

    mean: Float[np.ndarray, " W"]
    axes: Float[np.ndarray, "3 W"]
    low: Float[np.ndarray, " 3"]
    high: Float[np.ndarray, " 3"]
    shares: Float[np.ndarray, " 3"]

    def __call__(self, tokens: Float[np.ndarray, "*places W"]) -> Float[np.ndarray, "*places 3"]:
        """Red, green and blue from 0 to 1; gray along a direction in which nothing differs."""
        along = (np.asarray(tokens, np.float64) - self.mean) @ self.axes.T
        width = self.high - self.low
        return np.where(width > 0, np.clip((along - self.low) / np.where(width > 0, width, 1.0), 0, 1), 0.5)


def token_colors(tokens: Float[np.ndarray, "*places W"]) -> TokenColors:
    """Principal components of tokens, of one scan or of several together.

    A component's sign means nothing, and is fixed so that the feature which weighs most in it weighs
    positively: equal tokens then give equal pictures.

    Args:
        tokens: (..., W), such as (scans, N, W).
    """
    flat = np.asarray(tokens, np.float64).reshape(-1, np.shape(tokens)[-1])
    mean = flat.mean(axis=0)
    centered = flat - mean
    variances, directions = np.linalg.eigh(centered.T @ centered)
    count = min(COMPONENTS, len(mean))
    axes, shares = np.zeros((COMPONENTS, len(mean))), np.zeros(COMPONENTS)
    axes[:count] = directions.T[::-1][:count]
    heaviest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes *= np.where(heaviest < 0, -1.0, 1.0)
    if variances.sum() > 0:
        shares[:count] = np.maximum(variances[::-1][:count], 0) / variances.sum()
    low, high = np.quantile(centered @ axes.T, [_OUTLIERS, 1 - _OUTLIERS], axis=0)
    return TokenColors(mean, axes, low, high, shares)


def nearest_tokens(
    centers: Sequence[Float[np.ndarray, " tokens"]], shape: Sequence[int]
) -> tuple[Int64[np.ndarray, " voxels"], ...]:
    """For each axis, the token nearest to every voxel: ``colors[np.ix_(*nearest)]`` lies on the voxel grid.

    The borders of patches stay visible, and with them what the map's true resolution is.

    Args:
        centers: coordinate of each token along each axis, in voxels from the first.
        shape: (D, H, W) of the volume.

    Returns:
        Arrays of D, H and W indices.
    """
    return tuple(
        np.abs(np.arange(size)[:, None] - np.asarray(places)).argmin(axis=1)
        for places, size in zip(centers, shape, strict=True)
    )
