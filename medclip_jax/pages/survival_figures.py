"""Figures of the prognosis evaluator."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from medclip_jax.evaluation.prognosis_result import PrognosisResult, describe_p
from medclip_jax.evaluation.results import number
from medclip_jax.evaluation.survival_metrics import kaplan_meier
from medclip_jax.pages.figures import BLUE, FAINT, INK, ORANGE, new_figure, plain

_TICKS = 7
"""Times on the axis of the curves, at most, and in the table of numbers at risk."""


def survival_curves(result: PrognosisResult) -> Figure:
    """Kaplan-Meier curve of each risk group with its interval; below, how many are still under observation.

    Args:
        result: of the evaluator.
    """
    groups = {place: name for place, name in result.groups().items() if np.any(result.group == place)}
    figure = new_figure(6.0, 3.4 + 0.22 * len(groups))
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 0.1 + 0.28 * len(groups)))
    ticks = _ticks(float(result.time.max()))
    for place, name in groups.items():
        own = result.group == place
        curve, color = kaplan_meier(result.time[own], result.event[own]), _color(place, result.group_count)
        times = np.append(0.0, curve.times)
        panel.step(times, np.append(1.0, curve.survival), where="post", color=color, linewidth=1.7)
        low, high = (np.append(1.0, end) for end in (curve.low, curve.high))
        panel.fill_between(times, low, high, step="post", color=color, alpha=0.15, linewidth=0)
        censored = curve.survival[np.searchsorted(curve.times, result.time[own & ~result.event])]
        panel.plot(
            result.time[own & ~result.event], censored, color=color, marker="|", linestyle="", markersize=4
        )
        row = len(groups) - 1 - place
        for tick in ticks:
            below.text(
                tick,
                row,
                str(curve.number_at_risk(tick)),
                ha="center",
                va="center",
                fontsize=7.5,
                color=color,
            )
        panel.plot([], [], color=color, label=f"{name} risk" if result.group_count == 3 else name)
    panel.text(0.02, 0.04, f"log-rank {describe_p(result.log_rank.p)}", transform=panel.transAxes, fontsize=8)
    panel.set_ylim(0, 1.02)
    panel.set_ylabel("without the event", fontsize=8)
    panel.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    plain(panel)
    below.set_ylim(-0.6, max(result.groups()) + 0.6)
    below.set_xlim(0, float(result.time.max()) * 1.02)
    below.set_xticks(ticks)
    below.set_yticks([])
    below.set_ylabel("at risk", fontsize=8)
    below.set_xlabel(f"{result.unit} from the scan", fontsize=8)
    plain(below)
    return figure


def calibration(result: PrognosisResult) -> Figure:
    """Observed frequency against predicted probability at each horizon, with intervals.

    Args:
        result: of the evaluator.
    """
    shown = result.horizons
    figure = new_figure(2.7 * len(shown), 2.9)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (horizon, one) in zip(panels, shown.items(), strict=True):
        found = one.calibration
        known = ~np.isnan(found.frequency)
        end = 1.1 * max(0.05, *found.probability, *found.frequency[known])
        panel.plot([0, end], [0, end], color=FAINT, linestyle=":", linewidth=1)
        x, y = found.probability[known], found.frequency[known]
        low, high = (np.where(np.isnan(side[known]), y, side[known]) for side in (found.low, found.high))
        panel.vlines(x, low, np.minimum(high, end), color=FAINT, linewidth=1.2)
        panel.plot(x, y, color=BLUE, marker="o", markersize=4.5, linewidth=1.3)
        panel.set_xlim(0, end)
        panel.set_ylim(0, end)
        panel.set_title(
            f"{horizon:g} {result.unit}: {one.events} events, error {number(found.error)}",
            fontsize=8,
            color=INK,
        )
        panel.set_xlabel("predicted", fontsize=8)
        plain(panel)
    panels[0].set_ylabel("observed (1 - Kaplan-Meier)", fontsize=8)
    return figure


def auc_over_time(result: PrognosisResult) -> Figure:
    """AUC of the model's risk, and of what is set beside it, at many times.

    Args:
        result: of the evaluator.
    """
    figure = new_figure(5.4, 3.0)
    panel, curve = figure.subplots(), result.curve
    panel.axhline(0.5, color=FAINT, linestyle=":", linewidth=1)
    styles = ((ORANGE, "-"), (INK, "--"), (FAINT, "-."))
    for place, (name, values) in enumerate(curve.auc.items()):
        color, style = (BLUE, "-") if name == "model" else styles[(place - 1) % len(styles)]
        label = name.replace("_", " ")
        panel.plot(curve.times, values, color=color, linestyle=style, linewidth=1.7, label=label)
    panel.fill_between(curve.times, curve.low, curve.high, color=BLUE, alpha=0.15, linewidth=0)
    for horizon in result.horizons:
        panel.axvline(horizon, color=FAINT, linewidth=0.6, alpha=0.6)
    panel.set_ylim(min(0.45, *(np.nanmin(x) for x in curve.auc.values())), 1.01)
    panel.set_xlabel(f"{result.unit} from the scan", fontsize=8)
    panel.set_ylabel("AUC", fontsize=8)
    panel.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    plain(panel)
    return figure


def _ticks(end: float) -> np.ndarray:
    """Round times from 0 on."""
    for step in (x * 10.0**power for power in range(-3, 7) for x in (1, 2, 3, 6)):
        if end / step < _TICKS:
            return np.arange(0, end + 1e-9, step)
    return np.array([0.0, end])


def _color(place: int, count: int) -> str:
    colors = (BLUE, FAINT, ORANGE) if count >= 3 else (BLUE, ORANGE)
    return colors[round(place * (len(colors) - 1) / max(count - 1, 1))]
