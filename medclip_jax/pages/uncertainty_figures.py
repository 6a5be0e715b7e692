"""Figures of the uncertainty evaluator."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from medclip_jax.evaluation.degradation import UNITS
from medclip_jax.evaluation.results import number
from medclip_jax.evaluation.uncertainty import Answers, Inclusion, UncertaintyResult
from medclip_jax.evaluation.uncertainty_metrics import risk_coverage
from medclip_jax.pages.figures import BLUE, FAINT, INK, ORANGE, new_figure, plain

_SHOWN_SAMPLES = 40
"""Lines of single samples in a panel, at most: more hide each other."""


def degradation(result: UncertaintyResult) -> Figure:
    """Uncertainty against the level of each kind of damage: median, quartiles, and single samples faintly.

    Args:
        result: with at least one kind of damage.
    """
    count = len(result.degradations)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = new_figure(3.2 * columns, 2.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    for panel, (kind, found) in zip(panels.flat, result.degradations.items(), strict=False):
        low, middle, high = np.quantile(found.uncertainty, [0.25, 0.5, 0.75], axis=0)
        step = max(1, len(found.uncertainty) // _SHOWN_SAMPLES)
        panel.plot(found.levels, found.uncertainty[::step].T, color=FAINT, linewidth=0.6, alpha=0.35)
        panel.fill_between(found.levels, low, high, color=BLUE, alpha=0.22, linewidth=0)
        panel.plot(found.levels, middle, color=BLUE, linewidth=1.8, marker="o", markersize=3.5)
        if found.uncertainty.min() > 0 and found.uncertainty.max() > 20 * found.uncertainty.min():
            panel.set_yscale("log")
        correlation = f"Spearman {number(found.pooled, 2)} (within {number(found.within, 2)})"
        panel.set_title(f"{kind.replace('_', ' ')}: {correlation}", fontsize=8.5, color=INK)
        panel.set_xlabel(f"level,{UNITS[kind]}".replace(", of", ", share of"), fontsize=7.5)
        plain(panel)
    for row in panels:
        row[0].set_ylabel("trace of the covariance", fontsize=7.5)
    return figure


def selective(answers: Answers) -> Figure:
    """Risk-coverage curves of zero-shot answers: each order, the best possible one and a random one.

    Args:
        answers: of the evaluator.
    """
    wrong = ((answers.probabilities >= 0.5) != answers.labels).astype(float)
    best = risk_coverage(wrong, wrong)
    figure = new_figure(5.4, 3.2)
    panel = figure.subplots()
    label = f"random: {number(best.random)}"
    panel.axhline(best.random, color=FAINT, linestyle=":", linewidth=1.2, label=label)
    for name, color in (("variance", BLUE), ("margin", ORANGE)):
        if name in answers.orders:
            curve = answers.orders[name]
            label = f"by {name}: area {number(curve.area)}"
            panel.plot(curve.coverage, curve.risk, color=color, linewidth=1.8, label=label)
    label = f"oracle: {number(best.oracle)}"
    panel.plot(best.coverage, best.risk, color=INK, linewidth=1, linestyle="--", label=label)
    panel.set_xlim(0, 1)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("coverage: share of the questions answered", fontsize=8)
    panel.set_ylabel("risk: share of wrong answers", fontsize=8)
    plain(panel)
    panel.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def reliability(answers: Answers) -> Figure:
    """Observed frequency against predicted probability, with the number of answers of each bin below.

    Args:
        answers: of the evaluator.
    """
    found = answers.calibration
    bins = len(found.counts)
    filled = found.counts > 0
    figure = new_figure(3.6, 4.3)
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    panel.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
    probability, frequency = found.probability[filled], found.frequency[filled]
    panel.vlines(probability, probability, frequency, color=ORANGE, linewidth=1.4, alpha=0.7)
    panel.plot(probability, frequency, color=BLUE, marker="o", markersize=4.5, linewidth=1.4)
    panel.text(0.03, 0.97, f"calibration error {number(found.error)}", va="top", fontsize=8, color=INK)
    panel.set_ylim(-0.02, 1.02)
    panel.set_ylabel("observed frequency", fontsize=8)
    plain(panel)
    below.bar(np.arange(bins) / bins, found.counts, width=0.94 / bins, align="edge", color=BLUE, alpha=0.6)
    below.set_xlim(-0.02, 1.02)
    below.set_xlabel("predicted probability that it is present", fontsize=8)
    below.set_ylabel("answers", fontsize=8)
    below.yaxis.get_major_locator().set_params(integer=True)
    plain(below)
    return figure


def inclusion(found: Inclusion) -> Figure:
    """Histogram of how far organs lie inside their volume; what is inside is positive.

    Args:
        found: of the evaluator.
    """
    scores, inside = found.scores[found.present], found.inside[found.present]
    figure = new_figure(5.4, 2.7)
    panel = figure.subplots()
    low, high = min(float(scores.min()), 0.0), max(float(scores.max()), 0.0)
    step = (high - low or 1.0) / 30
    # A bin edge at 0: no bar has both colors. One bin more at either end, for what rounding puts there.
    edges = step * np.arange(np.floor(low / step) - 1, np.ceil(high / step) + 2)
    for chosen, color, name in ((inside, BLUE, "inside"), (~inside, ORANGE, "not inside")):
        panel.hist(scores[chosen], bins=edges, color=color, alpha=0.85, label=f"{name}: {int(chosen.sum())}")
    panel.axvline(0, color=INK, linewidth=1)
    panel.set_xlabel("inclusion of the organ in its volume, summed over dimensions", fontsize=8)
    panel.set_ylabel("pairs", fontsize=8)
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    plain(panel)
    return figure
