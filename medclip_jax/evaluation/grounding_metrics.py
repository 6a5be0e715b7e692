"""From similarities of patches to which ones are selected, and how much of an organ lies in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8

from medclip_jax.evaluation.results import NotEvaluable


class Score(NamedTuple):
    """What a sentence selects, against one place in the body.

    Attributes:
        ratio: mean share of the place in the patches selected / its mean share in all patches, see
            `ratio_to_chance`.
        most: the highest ratio that as many patches can have.
    """

    ratio: float
    most: float


def patch_shares(
    organs: UInt8[np.ndarray, "O d h w"], grid: tuple[int, int, int]
) -> Float[np.ndarray, "O N"]:
    """Share of each patch that each organ fills.

    Args:
        organs: shares of cells x 255, as prepared.
        grid: patches along depth, height, width.

    Returns:
        (O, N) in [0, 1], patches in the order of the grid.

    Raises:
        NotEvaluable: patches hold no whole number of cells.
    """
    cells = organs.shape[1:]
    if any(count % patches for count, patches in zip(cells, grid, strict=True)):
        raise NotEvaluable(
            f"{cells} organ cells do not divide into {tuple(grid)} patches: prepare with a smaller "
            "--organ-cell, or a cell that divides the patch"
        )
    (d, h, w), steps = grid, [count // patches for count, patches in zip(cells, grid, strict=True)]
    cut = organs.reshape(len(organs), d, steps[0], h, steps[1], w, steps[2])
    return cut.mean(axis=(2, 4, 6), dtype=np.float64).reshape(len(organs), -1) / 255


def most_similar(
    similarity: Num[np.ndarray, "*batch N"], count: Int[np.ndarray, "*batch"]
) -> Bool[np.ndarray, "*batch N"]:
    """Mark the most similar patches, of equally similar ones the earlier.

    Args:
        similarity: (..., N).
        count: (...) how many; more than there are means all.
    """
    order = np.argsort(-similarity, axis=-1, kind="stable")
    selected = np.zeros(similarity.shape, bool)
    places = np.arange(similarity.shape[-1]) < np.asarray(count)[..., None]
    np.put_along_axis(selected, order, places, axis=-1)
    return selected


def ratio_to_chance(shares: Float[np.ndarray, " N"], selected: Bool[np.ndarray, " N"]) -> Score:
    """How much more of a place lies in the selected patches than in as many drawn at random.

    Args:
        shares: of each patch that the place fills.
        selected: patches.

    Returns:
        Mean share of the selected patches / mean share of all; NaN where the place does not show, or nothing
        is selected.
    """
    chance, count = shares.mean(), int(selected.sum())
    if chance == 0 or count == 0:
        return Score(float("nan"), float("nan"))
    best = np.sort(shares)[len(shares) - count :].mean()
    return Score(float(shares[selected].mean() / chance), float(best / chance))
