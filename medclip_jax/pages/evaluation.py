"""The page of `medclip evaluate --page`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclip_jax.evaluation.results import Table
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.pages import (  # noqa: F401  They register their sections.
    pointing_figures,
    score_sections,
    segmentation_figures,
    subgroup_figures,
    token_sections,
)
from medclip_jax.pages.html import Page
from medclip_jax.pages.result_sections import Place, add_section, add_tile


def write_evaluation_page(
    path: str | Path,
    evaluation: Evaluation,
    config: Mapping[str, Any] | None = None,
    *,
    baseline: Mapping[str, float] | None = None,
    baseline_name: str = "baseline",
    published: Table | None = None,
) -> Path:
    """Write the tables and curves of an evaluation as one HTML file.

    Args:
        path: of the file.
        evaluation: from `medclip_jax.evaluation.run.evaluate_all`.
        config: of the run, printed at the end.
        baseline: finding to AUROC of something simpler, drawn beside the model's.
        baseline_name: what that is.
        published: values of articles, from `evaluation.presets.published_table`.

    Returns:
        The path.
    """
    page = Page(
        f"Evaluation on {evaluation.split}", f"{evaluation.count} volumes, {evaluation.seconds:.0f} s"
    )
    for name, result in evaluation.results.items():
        add_tile(result, Place(page, name))
    add_results(page, evaluation, baseline=baseline, baseline_name=baseline_name)
    if published is not None:
        page.section(
            published.title,
            "What articles report under these protocols, on their data. None of it was computed here.",
        )
        page.table(published)
    if config is not None:
        page.section("Configuration")
        page.code(json.dumps(config, indent=1, default=str))
    return page.write(path)


def add_results(
    page: Page,
    evaluation: Evaluation,
    *,
    baseline: Mapping[str, float] | None = None,
    baseline_name: str = "baseline",
) -> None:
    """Add a section for each result, and one for what was skipped.

    Args:
        page: to add to.
        evaluation: from `evaluate_all`.
        baseline: finding to AUROC of something simpler.
        baseline_name: what that is.
    """
    for name, result in evaluation.results.items():
        add_section(result, Place(page, name, baseline or {}, baseline_name))
    if evaluation.skipped:
        page.section("Not evaluated")
        for name, reason in evaluation.skipped.items():
            page.paragraph(f"{name}: {reason}", note=True)
