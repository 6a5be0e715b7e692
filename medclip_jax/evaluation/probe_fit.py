"""The regressions of a linear probe: features standardized, the penalty by validation, one for each draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int8

from medclip_jax.evaluation import bootstrap, metrics
from medclip_jax.evaluation.logistic import fit_logistic
from medclip_jax.evaluation.probe_draws import Cut
from medclip_jax.evaluation.probe_result import FindingProbe, mean_of_defined_draws


@dataclass(frozen=True)
class Sides:
    """The features of one model to learn from, to choose on and to score, in float64."""

    learned: Float[np.ndarray, "N P"]
    chosen: Float[np.ndarray, "M P"]
    scored: Float[np.ndarray, "K P"]

    def standardized(self, cut: Cut) -> Sides:
        """The rows of a cut, by mean and standard deviation of what is learned from.

        What is constant there is left out.

        Args:
            cut: rows of each side.
        """
        inputs = self.learned[cut.learned]
        mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
        varies = spread > 1e-6 * np.maximum(np.abs(mean), 1e-12)  # else it is what float32 rounds
        parts = inputs, self.chosen[cut.chosen], self.scored[cut.scored]
        return Sides(*((part[:, varies] - mean[varies]) / spread[varies] for part in parts))


def probe_finding(
    sides: Sides,
    columns: Sequence[Int8[np.ndarray, " N"]],
    draws: Sequence[Int[np.ndarray, " rows"]],
    penalties: Sequence[float],
    weights: bootstrap.Weights,
) -> FindingProbe:
    """Fit a logistic regression for every draw of labels, and score it.

    Args:
        sides: standardized.
        columns: 1 present, -1 absent, 0 unknown, of the volumes of each side.
        draws: rows of what is learned from.
        penalties: to choose from, strongest first.
        weights: from `bootstrap.draw_patients`, of the volumes that are scored.
    """
    train, validation, test = columns
    known, scored = validation != 0, test != 0
    truth, weights = test[scored] == 1, weights[:, scored]
    scores, chosen = [], []
    for rows in draws:
        # Without features, as of a collapsed tower, there is nothing to tell volumes apart by.
        found = np.zeros((1, 1))
        if sides.learned.shape[1]:
            found = fit_logistic(sides.learned[rows], train[rows], [p * len(rows) for p in penalties])
        margins = sides.chosen[known] @ found[:, :-1].T + found[:, -1]
        losses = np.logaddexp(0, -validation[known, None] * margins).mean(axis=0)
        best = int(np.argmin(losses))  # of equal ones the strongest
        chosen.append(penalties[best])
        scores.append(sides.scored[scored] @ found[best, :-1] + found[best, -1])
    rows = draws[0]
    return FindingProbe(
        labels=len(rows),
        labels_present=int((train[rows] == 1).sum()),
        penalties=tuple(chosen),
        rows=np.flatnonzero(scored),
        truth=truth,
        scores=np.stack(scores),
        auroc=np.array([metrics.auroc(truth, s) for s in scores]),
        average_precision=np.array([metrics.average_precision(truth, s) for s in scores]),
        resampled_auroc=np.mean([bootstrap.auroc(truth, s, weights) for s in scores], axis=0),
        resampled_average_precision=np.mean(
            [bootstrap.average_precision(truth, s, weights) for s in scores], axis=0
        ),
    )


def joined_folds(parts: Sequence[FindingProbe], cuts: Sequence[Cut]) -> FindingProbe:
    """One finding over all folds: values of each fold, and the scores of all volumes.

    Args:
        parts: what was found in each fold.
        cuts: the folds; rows of `parts` are places in what each scores.

    Returns:
        `auroc` and `average_precision` have an entry for each fold, the mean over the draws of labels, and
        bootstrap draws are means over the folds that hold both classes. `labels` are those of the first fold.
    """
    rows = np.concatenate([cut.scored[part.rows] for part, cut in zip(parts, cuts, strict=True)])
    order = np.argsort(rows)
    return FindingProbe(
        labels=parts[0].labels,
        labels_present=parts[0].labels_present,
        penalties=tuple(penalty for part in parts for penalty in part.penalties),
        rows=rows[order],
        truth=np.concatenate([part.truth for part in parts])[order],
        scores=np.concatenate([part.scores for part in parts], axis=1)[:, order],
        auroc=np.array([part.auroc.mean() for part in parts]),
        average_precision=np.array([part.average_precision.mean() for part in parts]),
        resampled_auroc=mean_of_defined_draws([part.resampled_auroc for part in parts]),
        resampled_average_precision=mean_of_defined_draws(
            [part.resampled_average_precision for part in parts]
        ),
    )
