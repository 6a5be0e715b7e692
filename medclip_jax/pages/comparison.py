"""The page of `medclip compare --page`, and its forest plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from medclip_jax.evaluation.compared_tables import MEAN, Compared
from medclip_jax.evaluation.results import Table
from medclip_jax.evaluation.signed_ranks import LEVEL
from medclip_jax.pages.figures import BLUE, FAINT, INK, ORANGE, new_figure, plain
from medclip_jax.pages.html import Page, to_svg

_COLORS = (BLUE, ORANGE, "#4b7f3a", "#7a4b8f", "#9a7b1f", "#3a7f7f")
"""Of the systems, in order; from the seventh on they begin again, with open marks."""

_INCHES_A_LINE = 0.25


def write_comparison_page(
    path: str | Path, compared: Sequence[Compared], tables: Sequence[Table], over: Table | None
) -> Path:
    """Write forest plots and tables as one HTML file.

    Args:
        path: of the file.
        compared: all metrics.
        tables: of each of them, in the same order.
        over: the table over tasks; None where there is none.

    Returns:
        The path.
    """
    first = compared[0]
    page = Page(
        f"{', '.join(first.others)} against {first.reference}",
        f"{first.matched.words['n']}; differences with 95 % intervals over patients",
    )
    for one in compared:
        for system, comparison in one.others.items():
            if one.shown and not math.isnan(comparison.mean.value):
                page.tile(f"{comparison.mean.value:+.3f}", f"{one.title}, mean difference of {system}")
    for one, table in zip(compared, tables, strict=False):
        page.section(
            one.title,
            f"Right of the line a system is above {one.reference}. Intervals are not corrected for the "
            "number of tests; what is filled is, by Holm.",
        )
        if one.shown:
            page.figure(to_svg(forest_plot([one])), f"Forest plot of {one.title}", _caption(one))
        page.table(table)
    if over is not None:
        page.section(
            over.title, "Does a system differ over all tasks, and over runs? Each task, or run, is a pair."
        )
        page.table(over)
    return page.write(path)


def forest_plot(compared: Sequence[Compared]) -> Figure:
    """Differences of the tasks that are shown, then their mean, with intervals; a panel for each metric.

    Args:
        compared: metrics; those without a task to show are left out.
    """
    compared = [one for one in compared if one.shown]
    lines = [_lines(one) for one in compared] or [1]
    figure = new_figure(8.6, sum(_INCHES_A_LINE * count + 0.85 for count in lines))
    panels = figure.subplots(len(lines), 1, squeeze=False, height_ratios=lines)[:, 0]
    if not compared:
        panels[0].set_axis_off()
        panels[0].text(0.5, 0.5, "too few volumes of every task", ha="center", color=FAINT)
    for panel, one in zip(panels, compared, strict=False):
        _forest(panel, one)
    return figure


def _lines(one: Compared) -> float:
    return (len(one.shown) + 1) * (len(one.others) + _gap(one))


def _gap(one: Compared) -> float:
    """Between tasks, where each has several lines."""
    return 0.6 if len(one.others) > 1 else 0.0


def _forest(panel: Any, one: Compared) -> None:
    place, ticks, names = 0.0, [], []
    beside = blended_transform_factory(panel.transAxes, panel.transData)
    for name in (*one.shown, MEAN):
        ticks.append(place - (len(one.others) - 1) / 2)
        names.append(name.replace("_", " "))
        if name == MEAN:
            panel.axhspan(place + 0.5, place - len(one.others) + 0.5, color="#f3f5f6", linewidth=0, zorder=0)
        for rank, (system, comparison) in enumerate(one.others.items()):
            found = comparison.mean if name == MEAN else comparison.tasks[name]
            p = one.corrected[system, name].exchanges if (system, name) in one.corrected else math.nan
            color = _COLORS[rank % len(_COLORS)]
            text = "undefined"
            if not math.isnan(found.value):
                low, high, _ = found.interval
                panel.plot([low, high], [place, place], color=color, linewidth=1.8, solid_capstyle="butt")
                panel.plot(
                    found.value,
                    place,
                    marker="D" if name == MEAN else "o",
                    markersize=7 if name == MEAN else 5.5,
                    color=color,
                    markerfacecolor=color if p < LEVEL else "white",
                    markeredgewidth=1.4,
                    linestyle="",
                    label=system if name == MEAN else None,
                    zorder=3,
                )
                text = f"{found.value:+.3f} [{low:+.3f}, {high:+.3f}]"
                text += "" if math.isnan(p) else f"   p {'< .001' if p < 0.001 else f'{p:.3f}'}"
            weight = "bold" if name == MEAN else "normal"
            panel.text(
                1.02, place, text, transform=beside, va="center", fontsize=7.5, color=INK, fontweight=weight
            )
            place -= 1.0
        place -= _gap(one)
    panel.axvline(0, color=INK, linewidth=1.0)
    panel.set_yticks(ticks, names)
    panel.get_yticklabels()[-1].set_fontweight("bold")
    panel.set_ylim(place + _gap(one) + 0.4, 0.8)
    panel.set_title(one.title, fontsize=9.5, color=INK, loc="left")
    metric = one.metric.replace("_", " ").replace("auroc", "AUROC")
    panel.set_xlabel(f"difference in {metric} to {one.reference}", fontsize=8)
    plain(panel)
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    if len(one.others) > 1:
        panel.legend(
            fontsize=7.5, frameon=False, ncols=len(one.others), loc="lower right", bbox_to_anchor=(1.0, 1.0)
        )


def _caption(one: Compared) -> str:
    return (
        f"Each system's value less that of {one.reference}, with its 95 % interval over patients. At the "
        "right p of the permutation test after Holm's correction; marks are filled where it is below "
        f"{LEVEL:g}. Diamond: mean over the tasks shown."
    )
