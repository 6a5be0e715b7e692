"""Metrics of several findings on one split, and what the same draws of patients make of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int8, Int64

from medclip_jax.evaluation import bootstrap, metrics
from medclip_jax.evaluation.bootstrap import Weights, draw_patients
from medclip_jax.evaluation.confusion import CALLED, Confusion, count_calls, crg
from medclip_jax.evaluation.metrics import Interval, percentile_interval
from medclip_jax.evaluation.zero_shot_result import METRICS, FindingScores


class FindingMetrics:
    """Values of findings one after the other, with bootstrap draws that all of them share.

    Args:
        patients: (N,) of the volumes of the split.
        draws: bootstrap resamples of patients; 0 for none.
        seed: of the resampling.
    """

    def __init__(self, patients: Int64[np.ndarray, " N"], draws: int, seed: int):
        self._patients, self._draws, self._seed = patients, draws, seed
        self._weights = draw_patients(patients, draws, seed) if draws else None
        self._drawn: dict[str, dict[str, np.ndarray]] = {}
        self._confusions: dict[str, Confusion] = {}
        self._confusion_draws: dict[str, Confusion] = {}

    def measure(
        self,
        name: str,
        column: Int8[np.ndarray, " N"],
        raw: Float[np.ndarray, " N"],
        used: Int64[np.ndarray, " n"],
        cut: float,
    ) -> tuple[dict[str, float], dict[str, Interval]]:
        """Values and intervals of one finding.

        Its own intervals draw the patients of the volumes that are used; those of means draw all patients.

        Args:
            name: of the finding.
            column: its labels, 1 present, -1 absent.
            raw: its scores.
            used: the volumes that count.
            cut: threshold; NaN for none.
        """
        labels, scores = column[used] == 1, raw[used]
        values = {
            "auroc": metrics.auroc(labels, scores),
            "average_precision": metrics.average_precision(labels, scores),
        }
        has_cut = not np.isnan(cut)
        if has_cut:
            self._confusions[name] = count_calls(labels, scores >= cut)
        values |= {
            metric: float(getattr(self._confusions[name], metric)) if has_cut else float("nan")
            for metric in CALLED
        }
        if not self._draws:
            return values, {}
        shared = self._weights[:, used]
        self._drawn[name] = self._metrics(name, labels, scores, cut, shared)
        own = self._drawn[name]
        if len(np.unique(self._patients[used])) != len(np.unique(self._patients)):
            weights = draw_patients(self._patients[used], self._draws, self._seed)
            own = self._metrics("", labels, scores, cut, weights)
        return values, {
            metric: percentile_interval(own[metric]) for metric in own if not np.isnan(values[metric])
        }

    def _metrics(
        self,
        name: str,
        labels: Bool[np.ndarray, " n"],
        scores: Float[np.ndarray, " n"],
        cut: float,
        weights: Weights,
    ) -> dict[str, Float[np.ndarray, " draws"]]:
        found = {
            "auroc": bootstrap.auroc(labels, scores, weights),
            "average_precision": bootstrap.average_precision(labels, scores, weights),
        }
        if not np.isnan(cut):
            confusion = count_calls(labels, scores >= cut, weights)
            if name:
                self._confusion_draws[name] = confusion
            found |= {metric: getattr(confusion, metric) for metric in CALLED}
        return found

    def mean_intervals(self, scored: Mapping[str, FindingScores]) -> dict[str, Interval]:
        """Of the means over findings: patients are drawn once for all, which are not independent.

        A finding whose metric is undefined on the full split is in no draw, as it is not in the mean itself.
        """
        found = {}
        for metric in METRICS if self._draws else ():
            kept = [
                self._drawn[name][metric] for name, one in scored.items() if not np.isnan(one.values[metric])
            ]
            if kept:
                stacked = np.stack(kept)
                defined = ~np.isnan(stacked)
                total = np.where(defined, stacked, 0).sum(axis=0)
                counts = defined.sum(axis=0)
                found[metric] = percentile_interval(
                    np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
                )
        return found

    def crg_value(self) -> float:
        """CRG of all findings that have a threshold."""
        return float(crg(self._confusions.values()))

    def crg_interval(self) -> Interval | None:
        """Its interval."""
        return percentile_interval(crg(self._confusion_draws.values())) if self._confusion_draws else None
