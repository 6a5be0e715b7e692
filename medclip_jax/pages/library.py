"""The searchable library on a page: a row for each query, with the studies that look like it."""

from __future__ import annotations

import numpy as np

from medclip_jax.evaluation.library import Case, Entry, LibraryResult
from medclip_jax.evaluation.pictures import View
from medclip_jax.evaluation.results import number
from medclip_jax.pages.figures import SOFT_TISSUE_HU, row_of_pictures
from medclip_jax.pages.html import Page

_LONGEST_TEXT = 500
"""Characters of a report that are shown."""

_AGREEMENT = {True: "agrees", False: "differs", None: "unknown"}


def add_library(page: Page, result: LibraryResult) -> None:
    """Add the table, and the queries with what was found for each.

    Args:
        page: to add to.
        result: of the evaluator.
    """
    page.table(result.table())
    if result.cases:
        page.heading("Studies that look alike")
        page.paragraph(
            "Each query beside the studies of other patients that are nearest to its pictures, with their "
            "impressions. Green: the same diagnosis, or, without diagnoses, a finding in common."
        )
    for place, case in enumerate(result.cases, 1):
        _add_case(page, case, f"Query {place}: {_names(case.query.present)}")


def study_picture(entry: Entry) -> bytes:
    """The pictures of a study beside one another, as a PNG.

    Args:
        entry: with or without views; without, a black square.
    """
    views = entry.views or (View("", np.zeros((2, 2), np.int16), (1.0, 1.0)),)
    return row_of_pictures([(view.pixels, _ratio(view), _window(view)) for view in views])


def _add_case(page: Page, case: Case, label: str) -> None:
    hits = []
    for place, entry in enumerate(case.found, 1):
        shared = [name for name in entry.present if name in case.query.present]
        more = [name for name in entry.present if name not in shared]
        less = [name for name in case.query.present if name not in shared]
        parts = [("shared", shared), ("only here", more), ("only the query", less)]
        words = [f"{title}: {_names(names)}" for title, names in parts if names]
        text = "\n".join([f"similarity {number(entry.similarity)}", *words, "", _short(entry.text)])
        hits.append(
            (study_picture(entry), f"{place}. {_AGREEMENT[entry.agrees]}", text.rstrip(), bool(entry.agrees))
        )
    query = case.query
    page.hits(_short(query.text), hits, label=label, picture=study_picture(query), wide=True)


def _names(findings: tuple[str, ...] | list[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in findings) or "no finding"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT].rsplit(maxsplit=1)[0]} ..."


def _ratio(view: View) -> float:
    rows, columns = view.pixels.shape
    return columns * view.spacing[1] / (rows * view.spacing[0])


def _window(view: View) -> tuple[float, float]:
    """That of soft tissue for HU, in which there is air below 0; else what the picture has."""
    if view.pixels.min() < 0:
        return SOFT_TISSUE_HU
    low, high = np.percentile(view.pixels, (1, 99))
    return float(low), float(max(high, low + 1))
