"""What callers of a model give: one thing or several, of which kind, and what is none of that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.inference.preparation import Scan
from medclip_jax.inference.studies import Study
from medclip_jax.reports.prompts import Prompts
from medclip_jax.volumes import Volume, is_image
from medclip_jax.volumes.images import is_array, to_array

Center = Sequence[float] | None
"""World RAS mm of the crop's middle; None for the scan's middle."""


Pair = tuple[str | Sequence[str], str | Sequence[str]]
"""A positive and a negative sentence, or several of each."""


def is_single(volumes: Any) -> bool:
    """Whether one scan or study is given, and no list of them."""
    if isinstance(volumes, str | os.PathLike | Volume | Mapping) or is_image(volumes):
        return True
    return is_array(volumes) and np.ndim(volumes) == 3


def as_list(volumes: Any) -> list[Scan]:
    """Scans of a scan, of several, or of an array of prepared ones.

    Raises:
        TypeError, ValueError: it is none of these, or there are none.
    """
    if is_single(volumes) and not isinstance(volumes, Mapping):
        return [volumes]
    if is_array(volumes):
        if np.ndim(volumes) != 4:
            raise ValueError(
                f"an array of {np.ndim(volumes)} axes: prepared volumes have three, several of them four"
            )
        return list(to_array(volumes))
    if isinstance(volumes, bytes | Mapping | Set) or not isinstance(volumes, Iterable):
        raise TypeError(f"give a scan or a list of scans, not {type(volumes).__name__}; see Model.prepare")
    scans = list(volumes)
    if not scans:
        raise NotEvaluable("no volumes were given")
    return scans


def as_studies(studies: Any) -> list[Study]:
    """Studies of a study or of several.

    Raises:
        TypeError, NotEvaluable: it is none of these, or there are none.
    """
    if isinstance(studies, str | os.PathLike | Mapping):
        return [studies]
    if not isinstance(studies, Iterable):
        raise TypeError(f"give a study or a list of studies, not {type(studies).__name__}")
    found = list(studies)
    if not found:
        raise NotEvaluable("no studies were given")
    return found


def as_text(text: Any) -> str:
    """The text, where it is a single one.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(text, str):
        raise TypeError(f"give one text, not {type(text).__name__}: call it for each of several")
    return text


def as_texts(texts: Any) -> list[str]:
    """Texts of a text or of several.

    Raises:
        TypeError, ValueError: something else, no text, or an empty one.
    """
    if isinstance(texts, bytes | Mapping | Set) or not isinstance(texts, Iterable):
        raise TypeError(f"give a text or a list of texts, not {type(texts).__name__}")
    found = [texts] if isinstance(texts, str) else list(texts)
    if not found:
        raise ValueError("no text was given")
    for text in found:
        if not isinstance(text, str):
            raise TypeError(f"a text is a string, not {type(text).__name__}: {text!r:.80}")
        if not text.strip():
            raise ValueError("a text is empty: its vector would say nothing")
    return found


def as_prompts(finding: Any) -> Prompts:
    """The prompts of a pair.

    Raises:
        ValueError: it is none.
    """
    sides = tuple(finding) if isinstance(finding, Sequence) else ()
    sides = tuple((side,) if isinstance(side, str) else side for side in sides)
    lists = all(isinstance(side, list | tuple) and side for side in sides)
    if len(sides) != 2 or not lists or not all(isinstance(text, str) for side in sides for text in side):
        raise ValueError(
            f"{finding!r}: give the name of a finding, or two sentences, (positive, negative), or two lists"
        )
    return Prompts(*map(tuple, sides))


def as_findings(findings: Any) -> dict[str, str | Pair]:
    """What the results call each finding, to its name or its prompts.

    Raises:
        TypeError, ValueError: no list of findings, or none in it, or two of one name.
    """
    if isinstance(findings, Mapping) or not isinstance(findings, Iterable):
        raise TypeError(f"give a list of findings, not {type(findings).__name__}")
    given = [findings] if isinstance(findings, str) else list(findings)
    if not given:
        raise ValueError("no finding was given")
    wanted: dict[str, str | Pair] = {}
    for finding in given:
        name = finding if isinstance(finding, str) else as_prompts(finding).positive[0]
        if wanted.setdefault(name, finding) != finding:
            raise ValueError(f"{name!r} stands for two different pairs: one of them would be lost")
    return wanted


def as_centers(center: Any, count: int) -> list[Center]:
    """One center for each scan.

    Args:
        center: one for all, or a list.
        count: of scans.

    Raises:
        ValueError: no center, or another number of them.
    """
    if center is not None and (isinstance(center, str) or not hasattr(center, "__len__")):
        raise ValueError(f"center must be three numbers, RAS mm, not {center!r}")
    is_one = center is None or (len(center) == 3 and all(np.isscalar(number) for number in center))
    centers = [center] * count if is_one else list(center)
    if len(centers) != count:
        raise ValueError(
            f"{len(centers)} centers for {count} scans: give one (x, y, z) for all, or a list with one for "
            "each, None where the scan's middle is meant"
        )
    return centers
