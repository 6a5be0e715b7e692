"""Two systems on the same volumes: is the difference between their scores more than chance?

A system is one run, or several of other seeds, whose metrics are averaged. All tests take whole patients: two
volumes of one patient are no independent evidence.

* **Permutation.** If the systems were alike, it would not matter which of them a patient's scores are from.
  So half of the patients, drawn anew each time, have theirs exchanged; p is the share of exchanges after
  which the metric differs at least as much as it does, the given order counted among them. Metrics of the
  order of the scores are computed from ranks within each model, so that models on different scales can be
  exchanged (Venkatraman and Begg 1996); metrics of calls from calls at each model's threshold.
* **Bootstrap.** Patients are drawn with replacement, the same for both systems, and the interval is that of
  the difference; of a mean over tasks also with tasks drawn.
* **Signed ranks** (Wilcoxon 1945) of what each patient adds to the metric, of the metrics of the tasks, and
  of runs of the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int64

from medclip_jax.evaluation.bootstrap import draw_patients
from medclip_jax.evaluation.metrics import Interval, mean_of_defined, percentile_interval
from medclip_jax.evaluation.scored import ScoredTask
from medclip_jax.evaluation.signed_ranks import SignedRanks, signed_ranks
from medclip_jax.evaluation.task_metrics import drawn, exchangeable, of_each, stacked, value
from medclip_jax.progress import track_each

_NAN = float("nan")
_NOTHING = Interval(_NAN, _NAN, 0)


@dataclass(frozen=True)
class Pair:
    """One task, scored by two systems on the same volumes: all have the same rows and the same truth.

    Attributes:
        first: of each run of the first system.
        second: of each run of the second.
    """

    first: tuple[ScoredTask, ...]
    second: tuple[ScoredTask, ...]

    @property
    def task(self) -> ScoredTask:
        """Any of them, for what they share."""
        return self.first[0]


@dataclass(frozen=True)
class Difference:
    """One metric of one task.

    Attributes:
        first: of the first system, the mean over its runs.
        second: of the second.
        first_runs: of each run.
        second_runs: likewise.
        interval: bootstrap interval of second - first; NaN ends where no draw was defined.
        p: of the permutation test, two-sided; NaN where the metric is undefined.
        patients: signed ranks of what each patient adds to the metric; None where `task_metrics.of_each`
            knows nothing.
    """

    first: float
    second: float
    first_runs: tuple[float, ...]
    second_runs: tuple[float, ...]
    interval: Interval
    p: float
    patients: SignedRanks | None

    @property
    def value(self) -> float:
        """Second - first."""
        return self.second - self.first


@dataclass(frozen=True)
class MeanDifference(Difference):
    """The mean of a metric over tasks.

    Attributes:
        tasks: signed ranks of the tasks' differences.
        interval_of_tasks: interval of the mean with patients and tasks drawn, for other tasks of the kind.
        runs: signed ranks of the differences of runs, the first with the first and so on; None where the
            systems have one run each, or not as many.
    """

    tasks: SignedRanks
    interval_of_tasks: Interval
    runs: SignedRanks | None


@dataclass(frozen=True)
class Comparison:
    """Two systems by one metric.

    Attributes:
        tasks: name to difference.
        mean: over the tasks that are in it and defined for both.
    """

    tasks: Mapping[str, Difference]
    mean: MeanDifference


@dataclass(frozen=True)
class _Resampled:
    """What draws and exchanges make of one task's difference, and what patients add to it."""

    drawn: Float[np.ndarray, " draws"]
    exchanged: Float[np.ndarray, " permutations"]
    patients: Float[np.ndarray, " P"] | None


def compare(
    pairs: Mapping[str, Pair],
    patients: Int64[np.ndarray, " N"],
    metric: str = "auroc",
    *,
    mean_of: Collection[str] | None = None,
    draws: int = 10_000,
    permutations: int = 2_000,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Compare two systems by one metric, task by task and in the mean.

    Args:
        pairs: name of a task to both systems' scores.
        patients: (N,) of all volumes, which the tasks' `rows` count.
        metric: that all tasks have, see `task_metrics.metric_of`.
        mean_of: tasks that are in the mean; None for all.
        draws: bootstrap resamples of patients.
        permutations: random exchanges; where there are no more of them altogether, each is taken once and p
            is exact.
        seed: of both.
        progress: whether to show how far it is, where it takes more than a second.

    Returns:
        The comparison.

    Raises:
        ValueError: a NaN score, or no draws.
    """
    if draws < 1 or permutations < 1:
        raise ValueError(f"draws {draws}, permutations {permutations}: both must be at least 1")
    known, patient = np.unique(patients, return_inverse=True)
    weights = draw_patients(patients, draws, seed)
    exchanges = _exchanges(len(known), permutations, seed)
    found: dict[str, Difference] = {}
    in_mean: dict[str, _Resampled] = {}
    shown = track_each(
        pairs.items(), total=len(pairs), unit="task", label=f"compare {metric}", show=progress, delay=1.0
    )
    for name, pair in shown:
        runs = tuple(tuple(value(task, metric) for task in side) for side in (pair.first, pair.second))
        means = tuple(float(np.mean(side)) for side in runs)
        if np.isnan(means).any():
            found[name] = Difference(*means, *runs, _NOTHING, _NAN, None)
            continue
        one = _resampled(pair, metric, weights, exchanges, patient)
        found[name] = Difference(
            *means,
            *runs,
            percentile_interval(one.drawn),
            _p_value(means[1] - means[0], one.exchanged, len(known), permutations),
            None if one.patients is None else signed_ranks(one.patients),
        )
        if mean_of is None or name in mean_of:
            in_mean[name] = one
    chosen = {name: found[name] for name in in_mean}
    return Comparison(found, _mean(chosen, list(in_mean.values()), len(known), permutations, seed))


def _mean(
    found: Mapping[str, Difference],
    resampled: Sequence[_Resampled],
    patients: int,
    permutations: int,
    seed: int,
) -> MeanDifference:
    if not found:
        nothing = SignedRanks(0, _NAN)
        return MeanDifference(_NAN, _NAN, (), (), _NOTHING, _NAN, None, nothing, _NOTHING, None)
    differences = list(found.values())
    first, second = (mean_of_defined(getattr(x, key) for x in differences) for key in ("first", "second"))
    runs = tuple(
        tuple(np.mean([getattr(x, key) for x in differences], axis=0).tolist())
        for key in ("first_runs", "second_runs")
    )
    stacked_draws = np.stack([x.drawn for x in resampled])
    chosen = np.random.default_rng(seed).integers(len(differences), size=stacked_draws.shape)
    exchanged = np.mean([x.exchanged for x in resampled], axis=0)
    added = [x.patients for x in resampled if x.patients is not None]
    by_runs = None
    if len(runs[0]) == len(runs[1]) > 1:
        by_runs = signed_ranks(np.subtract(runs[1], runs[0]))
    return MeanDifference(
        first,
        second,
        *runs,
        percentile_interval(_mean_of_known(stacked_draws)),
        _p_value(second - first, exchanged, patients, permutations),
        signed_ranks(_mean_of_known(np.stack(added))) if added else None,
        signed_ranks(np.array([x.value for x in differences])),
        percentile_interval(_mean_of_known(np.take_along_axis(stacked_draws, chosen, axis=0))),
        by_runs,
    )


def _resampled(
    pair: Pair, metric: str, weights: np.ndarray, exchanges: np.ndarray, patient: np.ndarray
) -> _Resampled:
    rows = pair.task.rows
    own = weights[:, rows]
    first, second = (
        np.mean([drawn(task, metric, own) for task in side], axis=0) for side in (pair.first, pair.second)
    )
    swap = np.ascontiguousarray(exchanges.T)[patient[rows]]
    exchanged = np.mean([_exchanged(*runs, metric, swap) for runs in _run_pairs(pair)], axis=0)
    sides = [[of_each(task, metric) for task in side] for side in (pair.first, pair.second)]
    added = None
    if not any(one is None for side in sides for one in side):
        each = np.mean(sides[1], axis=0) - np.mean(sides[0], axis=0)
        known = ~np.isnan(each)
        counts, sums = (
            np.bincount(patient[rows][known], column[known], minlength=exchanges.shape[1])
            for column in (np.ones(len(rows)), each)
        )
        with np.errstate(invalid="ignore"):
            added = sums / counts
    return _Resampled(second - first, exchanged, added)


def _run_pairs(pair: Pair) -> Iterator[tuple[ScoredTask, ScoredTask]]:
    """Which runs exchange scores with each other: in turn, until every one has done so equally often."""
    sides = [
        [replace(task, scores=run[None]) for task in side for run in task.scores]
        for side in (pair.first, pair.second)
    ]
    for turn in range(math.lcm(*map(len, sides))):
        yield sides[0][turn % len(sides[0])], sides[1][turn % len(sides[1])]


def _exchanged(
    first: ScoredTask, second: ScoredTask, metric: str, swap: Bool[np.ndarray, "n permutations"]
) -> Float[np.ndarray, " permutations"]:
    """Second - first after each exchange.

    Both models' scores stand in one column. An exchange decides which of a volume's two counts, as a draw of
    the bootstrap decides how often, so that one order of the scores serves all exchanges.
    """
    both = stacked(exchangeable(first, metric), exchangeable(second, metric))
    one, two = (drawn(both, metric, np.concatenate(kept).T) for kept in ((~swap, swap), (swap, ~swap)))
    return two - one


def _mean_of_known(table: Float[np.ndarray, "tasks n"]) -> Float[np.ndarray, " n"]:
    """Mean over tasks of what is defined."""
    counts = (~np.isnan(table)).sum(axis=0)
    return np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)


def _exchanges(patients: int, permutations: int, seed: int) -> Bool[np.ndarray, "permutations patients"]:
    """Whose scores are exchanged, each time: all ways where there are no more than asked for."""
    if _is_exact(patients, permutations):
        return (np.arange(2**patients)[:, None] >> np.arange(patients) & 1).astype(bool)
    return np.random.default_rng(seed).integers(0, 2, (permutations, patients), dtype=np.uint8).astype(bool)


def lowest_exchange_p(patients: int, permutations: int) -> float:
    """The lowest p of exchanges: no random one is as far off, or of all ways the mirror image alone.

    Args:
        patients: number of them.
        permutations: asked for.
    """
    return min(1.0, 2.0 ** (1 - patients)) if _is_exact(patients, permutations) else 1 / (1 + permutations)


def _is_exact(patients: int, permutations: int) -> bool:
    return patients < 30 and 2**patients <= permutations


def _p_value(difference: float, exchanged: np.ndarray, patients: int, permutations: int) -> float:
    # Rounding must not decide whether an exchange is as far off.
    extreme = int(np.sum(np.abs(exchanged) >= abs(difference) - 1e-12))
    if _is_exact(patients, permutations):
        return extreme / len(exchanged)
    return (1 + extreme) / (1 + len(exchanged))
