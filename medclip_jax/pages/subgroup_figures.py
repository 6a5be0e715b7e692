"""Scores of subgroups on a page: a section, and its figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from medclip_jax.evaluation.results import number
from medclip_jax.evaluation.subgroups import MEAN, Division, SubgroupsResult
from medclip_jax.pages.figures import BLUE, FAINT, INK, new_figure, plain
from medclip_jax.pages.result_sections import Place, add_section, add_tile


@add_tile.register
def _(result: SubgroupsResult, at: Place) -> None:
    widest = [one for one in result.divisions if not np.isnan(one.widest)]
    if widest:
        one = max(widest, key=lambda one: one.widest)
        at.page.tile(number(one.widest), f"{one.evaluator}, {one.metric}: best less worst {one.column}")


@add_section.register
def _(result: SubgroupsResult, at: Place) -> None:
    at.page.section(
        at.title("Subgroups", "subgroups"),
        "Does a score hold for every group? One good number can be the mean of a good and a bad one.",
    )
    by_scores: dict[tuple[str, str], list[Division]] = {}
    for one in result.divisions:
        by_scores.setdefault((one.evaluator, one.metric), []).append(one)
    for (evaluator, metric), divisions in by_scores.items():
        if any(one.in_mean for one in divisions):
            at.page.figure(
                groups_figure(divisions),
                f"{metric} of {evaluator} in each group, with intervals",
                "Filled: mean over the tasks with enough volumes in every group, with its 95 % bootstrap "
                "interval over patients. Open: each of these tasks.",
            )
    for table in result.tables():
        at.page.table(table)


def groups_figure(divisions: Sequence[Division]) -> Figure:
    """Mean and tasks of each group, a panel for each column that has groups with enough volumes.

    Args:
        divisions: of one evaluator and metric.
    """
    shown = [one for one in divisions if one.in_mean]
    lines = [len(one.groups) for one in shown]
    figure = new_figure(6.6, sum(0.3 * count + 0.35 for count in lines) + 0.4)
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True, height_ratios=lines)[:, 0]
    for panel, one in zip(panels, shown, strict=True):
        for place, tasks in enumerate(one.groups.values()):
            values = [tasks[name].value for name in one.in_mean]
            panel.scatter(values, [place] * len(values), s=14, facecolors="white", edgecolors=FAINT, zorder=2)
            mean = tasks[MEAN]
            panel.plot([mean.interval.low, mean.interval.high], [place] * 2, color=BLUE, linewidth=2)
            panel.plot(mean.value, place, marker="o", markersize=6, color=BLUE, zorder=3)
            panel.text(
                1.01,
                place,
                f"{number(mean.value)}   {mean.volumes} volumes",
                transform=panel.get_yaxis_transform(),
                va="center",
                fontsize=7.5,
                color=INK,
            )
        panel.set_yticks(range(len(one.groups)), list(one.groups))
        panel.set_ylim(len(one.groups) - 0.5, -0.5)
        panel.set_title(one.column, fontsize=8.5, color=INK, loc="left")
        plain(panel)
    panels[-1].set_xlabel(f"{shown[0].metric.replace('auroc', 'AUROC')} of {shown[0].evaluator}", fontsize=8)
    return figure
