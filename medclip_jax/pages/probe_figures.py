"""Figures of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medclip_jax.evaluation.few_shot import FewShotResult
from medclip_jax.evaluation.knn import KnnResult
from medclip_jax.evaluation.probe_result import ProbeResult, Summary, percent, summarize
from medclip_jax.evaluation.tasks import GROUP
from medclip_jax.pages.figures import BLUE, FAINT, INK, ORANGE, new_figure, plain


def label_shares(result: ProbeResult) -> Figure:
    """AUROC against the share of the labels, with intervals: the mean, then each finding.

    Args:
        result: of the evaluator.
    """
    shares, names = list(result.trained), ["mean", *result.shown] if result.shown else []
    columns = min(4, max(1, len(names)))
    rows = -(-len(names) // columns) or 1
    figure = new_figure(2.5 * columns, 2.1 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(panels.flat, names, strict=False):
        for scores, color, style in ((result.random, FAINT, "--"), (result.trained, BLUE, "-")):
            if scores:
                chosen = result.shown if name == "mean" else [name]
                found = [summarize([scores[share][one] for one in chosen]) for share in shares]
                _curve(panel, shares, found, color, style)
        panel.axhline(0.5, color=FAINT, linestyle=":", linewidth=1)
        panel.set_title(name.replace("_", " "), fontsize=8, color=INK)
        panel.set_xscale("log")
        panel.set_xticks(shares, [percent(share) for share in shares])
        panel.minorticks_off()
        panel.set_ylim(0, 1.02)
        plain(panel)
    for row in panels:
        row[0].set_ylabel("AUROC", fontsize=8)
    figure.supxlabel("share of the training labels", fontsize=8)
    return figure


def shots(result: FewShotResult) -> Figure:
    """Accuracy of the classes and AUROC of the findings against the number of examples, mean over draws.

    Args:
        result: of the evaluator.
    """
    figure = new_figure(5.4, 3.0)
    panel = figure.subplots()
    lines = {}
    if result.group:
        lines["accuracy of the classes"] = [result.group.accuracy]
    if shown := [task.auroc for task in result.findings.values() if task.is_enough]:
        lines["mean AUROC of the findings"] = shown
    for (name, found), color in zip(lines.items(), (BLUE, ORANGE), strict=False):
        drawn = np.array([np.mean([one[count] for one in found], axis=0) for count in result.shots])
        mean, spread = drawn.mean(axis=1), drawn.std(axis=1)
        panel.plot(result.shots, mean, color=color, marker="o", markersize=3.5, linewidth=1.6, label=name)
        panel.fill_between(result.shots, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)
    panel.set_xscale("log", base=2)
    panel.set_xticks(result.shots, [str(count) for count in result.shots])
    panel.minorticks_off()
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("examples of each class", fontsize=8)
    if lines:
        panel.legend(fontsize=8, frameon=False, loc="lower right")
    plain(panel)
    return figure


def neighbors(result: KnnResult) -> Figure:
    """Accuracy of the classes and mean AUROC of the findings against the number of neighbors.

    Args:
        result: of the evaluator.
    """
    figure = new_figure(5.4, 3.0)
    panel = figure.subplots()
    lines = {}
    if result.has_group:
        task = result.task(GROUP)
        lines["accuracy of the classes"] = [one.values["accuracy"] for one in task.values()]
        intervals = [one.intervals.get("accuracy") for one in task.values()]
        if all(intervals):
            low, high = [x.low for x in intervals], [x.high for x in intervals]
            panel.fill_between(result.ks, low, high, color=BLUE, alpha=0.18, linewidth=0)
    tasks = map(result.task, result.findings)
    if shown := [task for task in tasks if task[result.ks[0]].is_enough]:
        aurocs = [[one.values["auroc"] for one in task.values()] for task in shown]
        lines["mean AUROC of the findings"] = np.mean(aurocs, axis=0)
    for (name, values), color in zip(lines.items(), (BLUE, ORANGE), strict=False):
        panel.plot(result.ks, values, color=color, marker="o", markersize=3.5, linewidth=1.6, label=name)
    panel.set_xscale("log")
    panel.set_xticks(result.ks, [str(k) for k in result.ks])
    panel.minorticks_off()
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("nearest volumes", fontsize=8)
    if lines:
        panel.legend(fontsize=8, frameon=False, loc="lower right")
    plain(panel)
    return figure


def _curve(panel: Any, shares: Sequence[float], found: Sequence[Summary], color: str, style: str) -> None:
    values = [summary.value for summary in found]
    panel.plot(shares, values, color=color, linestyle=style, marker="o", markersize=3.5, linewidth=1.6)
    intervals = [summary.interval for summary in found]
    if all(intervals):
        low, high = [x.low for x in intervals], [x.high for x in intervals]
        panel.fill_between(shares, low, high, color=color, alpha=0.18, linewidth=0)
