"""Ordered grades from one similarity: does a volume with more calcium lie nearer to the prompt?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import Interval, OrdinalAuroc, mean_of_defined
from medclip_jax.evaluation.results import TOO_FEW, NotEvaluable, Table, is_enough, needs, with_interval
from medclip_jax.evaluation.scored import FindingTask, Scored
from medclip_jax.evaluation.similarity import averaged, describe, similarity
from medclip_jax.reports.prompts import prompts_of


@dataclass(frozen=True)
class OrdinalResult:
    """AUROC of one score at every cut of an ordered scale.

    Attributes:
        name: of the scale, e.g. "cac".
        grades: (n,) known grades.
        scores: (n,) similarities to the prompt, see `similarity.similarity`.
        auroc: at each cut, and the mean.
        intervals: cut to bootstrap interval; empty when none was requested.
        mean_interval: of the mean; None when none was requested.
        conditions: n, prompts, pooling, threshold source, in words.
        ids: keyed hashes of all N volumes of the split.
        patients: (N,) keyed hash of the patient of each of them.
        rows: (n,) which of the N have a known grade.
    """

    name: str
    grades: Float[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    auroc: OrdinalAuroc
    intervals: Mapping[float, Interval]
    mean_interval: Interval | None
    conditions: Mapping[str, str]
    ids: Sequence[str]
    patients: Int64[np.ndarray, " N"]
    rows: Int64[np.ndarray, " n"]

    def scored(self) -> dict[str, Scored]:
        """The score of every volume of known grade, at each cut."""
        tasks = {
            f"grade >= {cut:g}": FindingTask(self.rows, self.grades >= cut, self.scores[None])
            for cut in self.auroc.by_threshold
        }
        return {self.name: Scored(self.ids, self.patients, tasks)}

    def metrics(self) -> dict[str, float]:
        """Keys ``cac/auroc_mean`` and ``cac/auroc/2`` for "grade >= 2", and so on."""
        flat = {f"{self.name}/auroc_mean": self.auroc.mean}
        return flat | {f"{self.name}/auroc/{cut:g}": v for cut, v in self.auroc.by_threshold.items()}

    def table(self) -> Table:
        """One line for each cut that separates any volumes, then the mean of what is shown."""
        rows, enough = [], []
        for cut, value in self.auroc.by_threshold.items():
            above = int((self.grades >= cut).sum())
            below = len(self.grades) - above
            if not (above and below):
                continue
            cell = TOO_FEW
            if is_enough(above, below):
                enough.append(value)
                cell = with_interval(value, self.intervals.get(cut))
            rows.append((f"grade >= {cut:g}", str(above), str(below), cell))
        # The interval is of the mean of all cuts that are defined.
        interval = self.mean_interval if len(enough) == len(rows) else None
        mean = with_interval(mean_of_defined(enough), interval) if enough else TOO_FEW
        rows.append(("mean", "", "", mean))
        header = ("cut", "at or above", "below", "AUROC")
        return Table(f"Ordered grades: {self.name}", header, tuple(rows), self.conditions)

    def __str__(self) -> str:
        return str(self.table())


@needs("text")
def evaluate_ordinal(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    name: str = "cac",
    measurement: str = "cac_grade",
    finding: str = "coronary_calcification",
    thresholds: Sequence[float] = (1, 2, 3, 4),
    template: str = "there_is",
    draws: int = 1000,
    seed: int = 0,
) -> OrdinalResult:
    """Rank volumes by the similarity to the finding's positive prompt, and cut the grades at each threshold.

    Args:
        data: the split.
        encode_texts: the model's text side.
        name: of the scale in keys and tables.
        measurement: entry of the records that holds the grade.
        finding: whose positive prompt is the query.
        thresholds: cuts "grade >= threshold"; five grades from 0 to 4 have the cuts 1 to 4.
        template: prompt wording.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of the bootstrap.

    Returns:
        The result.

    Raises:
        NotEvaluable: the shards hold no such measurement, or it is nowhere known.
        ValueError: a NaN embedding.
    """
    if measurement not in data.measurements:
        have = ", ".join(data.measurements) or "none"
        raise NotEvaluable(
            f"the shards hold no measurement {measurement!r} (they hold: {have}): give the corpus a column "
            "of that name, or set measurement"
        )
    grades = np.asarray(data.measurements[measurement], np.float64)
    known = ~np.isnan(grades)
    if not known.any():
        raise NotEvaluable(f"measurement {measurement!r} is unknown for all volumes of split {data.name!r}")
    wording = prompts_of(finding, template, definitions=data.definitions)
    grades, patients = grades[known], data.patients[known]
    scores = similarity(data.volumes[known], averaged(encode_texts(wording.positive))[None])[:, 0]
    result = metrics.ordinal_auroc(grades, scores, thresholds)
    intervals: dict[float, Interval] = {}
    mean_interval = None
    if draws:
        intervals = {
            cut: metrics.bootstrap_interval(
                metrics.auroc, grades >= cut, scores, draws=draws, seed=seed, groups=patients
            )
            for cut in thresholds
        }
        mean_interval = metrics.bootstrap_interval(
            lambda g, s: metrics.ordinal_auroc(g, s, thresholds).mean,
            grades,
            scores,
            draws=draws,
            seed=seed,
            groups=patients,
        )
    counts = ", ".join(f"grade {grade:g}: {int((grades == grade).sum())}" for grade in np.unique(grades))
    conditions = {
        "n": f"{len(grades)} volumes of {len(np.unique(patients))} patients, split {data.name!r}; {counts}",
        "prompts": str(wording).partition(" / ")[0],
        "pooling": data.pooling,
        "score": f"{describe(data.volumes)} to the prompt",
        "threshold": "none needed",
        "intervals": described(draws, seed),
    }
    return OrdinalResult(
        name,
        grades,
        scores,
        result,
        intervals,
        mean_interval,
        conditions,
        data.ids,
        data.patients,
        np.flatnonzero(known),
    )
