"""What a score must beat: a logistic regression on ten numbers that know nothing of anatomy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from medclip_jax.evaluation.logistic import fit_logistic
from medclip_jax.evaluation.metrics import auroc

STATISTICS = ("mean", "std", "p1", "p5", "p25", "p50", "p75", "p95", "p99", "p99.9")
"""The ten global intensity statistics, in order."""


def intensity_statistics(volume: Int16[np.ndarray, "D H W"]) -> Float[np.ndarray, " 10"]:
    """Mean, standard deviation and eight percentiles of a volume's HU, see `STATISTICS`."""
    percentiles = np.percentile(volume, [1, 5, 25, 50, 75, 95, 99, 99.9])
    return np.array([volume.mean(dtype=np.float64), volume.std(dtype=np.float64), *percentiles])


def statistics_baseline(
    train: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]], findings: Sequence[str]
) -> dict[str, float]:
    """AUROC on `test` of a logistic regression on ten intensity statistics, fitted on `train`.

    It uses the ground-truth labels of the training split, which the contrastive model never sees.

    Args:
        train: records with `volume` and `labels` (1, -1, 0 unknown).
        test: likewise.
        findings: names of the label columns.

    Returns:
        Finding to AUROC; NaN where a class is missing.
    """

    def gather(records: Iterable[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [(intensity_statistics(record["volume"]), record["labels"]) for record in records]
        return np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs]).astype(np.int64)

    (inputs, labels), (held_out, truth) = gather(train), gather(test)
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
    inputs, held_out = (inputs - mean) / scale, (held_out - mean) / scale
    found = {}
    for column, name in enumerate(findings):
        known, measured = labels[:, column] != 0, truth[:, column] != 0
        if len(np.unique(labels[known, column])) < 2:
            found[name] = float("nan")
            continue
        (weights,) = fit_logistic(inputs[known], labels[known, column])
        found[name] = auroc(truth[measured, column] == 1, held_out[measured] @ weights[:-1])
    return found
