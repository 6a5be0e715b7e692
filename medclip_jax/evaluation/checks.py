"""Checks of the arrays that metrics take; their messages say where the fault is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Shaped

Labels = Shaped[np.ndarray, " n"]
Scores = Float[np.ndarray, " n"]
Groups = Shaped[np.ndarray, " n"]


def labels_and_scores(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as booleans, scores as float64.

    Args:
        labels: (n,) booleans or 0/1.
        scores: (n,) numbers.

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, or a score is NaN.
    """
    positive = binary(labels, "labels")
    scores = np.asarray(scores, np.float64)
    same_length(positive, scores, "scores")
    refuse_nan(scores, "scores")
    return positive, scores


def binary(values: np.ndarray, name: str) -> Bool[np.ndarray, " n"]:
    """Values as booleans.

    Args:
        values: (n,) booleans or 0/1.
        name: of them, for the message.

    Raises:
        ValueError: an entry is neither 0 nor 1, or there are further axes.
    """
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, not {values.shape}")
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if wrong.size:
        raise ValueError(
            f"{name}[{some(wrong)}] = {values[wrong[0]]}: {name} must be 0 or 1; leave unknown entries out "
            "and write -1 (absent) as 0"
        )
    return values.astype(bool)


def same_length(labels: np.ndarray, other: np.ndarray, name: str) -> None:
    """Refuse arrays that do not go together.

    Args:
        labels: (n, ...).
        other: (n,).
        name: of the other, for the message.

    Raises:
        ValueError: lengths differ.
    """
    if labels.shape[:1] != other.shape or other.ndim != 1:
        raise ValueError(f"{labels.shape[0]} labels but {name} of shape {other.shape}: give one for each")


def refuse_nan(values: np.ndarray, name: str) -> None:
    """Refuse NaN, with the places where it stands.

    Args:
        values: of any shape.
        name: of them, for the message.

    Raises:
        ValueError: any of them is NaN.
    """
    broken = np.flatnonzero(np.isnan(values.ravel()))
    if broken.size:
        where = [tuple(int(i) for i in np.unravel_index(b, values.shape)) for b in broken[:5]]
        places = ", ".join(str(w[0]) if len(w) == 1 else str(w) for w in where)
        raise ValueError(
            f"{name} hold NaN at {places}{', ...' if broken.size > 5 else ''} ({broken.size} of "
            f"{values.size}): find the volume or text whose embedding is not finite"
        )


def some(indices: np.ndarray) -> str:
    """The first five of some indices, as text.

    Args:
        indices: (k,) numbers.
    """
    return ", ".join(str(int(i)) for i in indices[:5]) + (", ..." if indices.size > 5 else "")
