"""How a result of an evaluator appears on a page: each kind says it where its pictures are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from medclip_jax.pages.html import Page


@dataclass(frozen=True)
class Place:
    """Where a result stands on a page.

    Attributes:
        page: to add to.
        name: of the evaluator, which may be one of the user's own for the same kind.
        baseline: finding to AUROC of something simpler, drawn beside the model's.
        baseline_name: what that is.
    """

    page: Page
    name: str
    baseline: Mapping[str, float] = field(default_factory=dict)
    baseline_name: str = "baseline"

    def title(self, title: str, usual: str) -> str:
        """The title, with the evaluator's name where it is not the usual one."""
        return title if self.name == usual else f"{title}: {self.name}"


@singledispatch
def add_tile(result: Any, at: Place) -> None:
    """Add the figure that stands for a result at the top of the page. By default none.

    Args:
        result: of an evaluator.
        at: where.
    """


@singledispatch
def add_section(result: Any, at: Place) -> None:
    """Add a section: tables and pictures.

    Args:
        result: of an evaluator.
        at: where.

    Raises:
        TypeError: no module registers a section for results of this kind.
    """
    raise TypeError(
        f"no page knows results of {type(result).__name__}: register its section with "
        "medclip_jax.pages.result_sections.add_section.register"
    )
