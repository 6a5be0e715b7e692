"""Crops that are to find the volume they were cut from: by what they show, or by the report they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.degradation import Bootstrap, OpenRecords
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts, in_full_batches
from medclip_jax.evaluation.metrics import Interval
from medclip_jax.evaluation.results import NotEvaluable, Table, needs, with_interval
from medclip_jax.fields import Layout
from medclip_jax.objectives.base import VIEWS, Batch, Objective

_SEEN = {"own": "its own crops", "other": "another volume's crops", "noise": "noise in their place"}


@dataclass(frozen=True)
class ViewsResult:
    """How well crops that read a report find its volume.

    Attributes:
        top1: "own", "other" and "noise" to the share of crops whose nearest volume is of the report's study;
            "gain_over_noise": how much more of the own crops do than noise does. NaN where undefined.
        loss: "own", "other" and "noise" to the mean cross-entropy of a crop.
        intervals: the names of `top1` to bootstrap intervals over patients; empty where none were requested.
        conditions: under which the numbers hold.
    """

    top1: Mapping[str, float]
    loss: Mapping[str, float]
    intervals: Mapping[str, Interval]
    conditions: Mapping[str, str]

    def metrics(self) -> dict[str, float]:
        """``top1/<image>``, ``loss/<image>`` and ``gain_over_noise``."""
        shares = {f"top1/{name}": self.top1[name] for name in VIEWS}
        losses = {f"loss/{name}": value for name, value in self.loss.items()}
        return shares | losses | {"gain_over_noise": self.top1["gain_over_noise"]}

    def table(self) -> Table:
        """One line for each thing that was shown."""
        rows = [
            (_SEEN[name], with_interval(self.top1[name], self.intervals.get(name)), f"{self.loss[name]:.3f}")
            for name in VIEWS
        ]
        gain = with_interval(self.top1["gain_over_noise"], self.intervals.get("gain_over_noise"))
        rows.append(("gain of its own crops over noise", gain, ""))
        header = ("a report's blocks see", "nearest volume is the report's", "loss")
        return Table("Views of volumes", header, tuple(rows), self.conditions)

    def __str__(self) -> str:
        return str(self.table())


@needs("views")
def evaluate_views(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    among: int = 32,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
) -> ViewsResult:
    """Cut crops out of every volume, let them read its report, and look for the nearest volume.

    A crop reads the report that belongs to the volume it is to find. So part of the task can be solved
    without looking: with another volume's crops, or with noise, what is found was found in the report.

    Args:
        data: the split.
        encode_texts: not used; reports are read by another part of the model.
        among: how many volumes there are to choose from; all where there are fewer.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of the bootstrap.
        embedder: of the model.
        open_records: opens the split's records again.

    Returns:
        The result.

    Raises:
        NotEvaluable: there are fewer than two volumes.
    """
    if embedder is None or open_records is None:
        raise NotEvaluable("crops are cut from volumes, which are not to be read again")
    count = len(data.volumes)
    if count < 2:
        raise NotEvaluable("a crop has no other volume to choose: the split has one alone")
    layout = Layout(("volume", "tokens"), embedder.layout.spec, embedder.layout.config, embedder.tokenizer)
    records, _ = open_records(layout.reads)
    places, before = in_full_batches(data.patients, embedder.batch_size)
    order = places[:count]
    # A row beside its own patient sees no other volume's crops.
    compared = {image: np.arange(count) for image in (*VIEWS, "gain_over_noise")}
    compared["other"] = np.flatnonzero(data.patients[before[:count]] != data.patients[order])

    def arguments(place: int) -> tuple[Mapping[str, np.ndarray]]:
        index = int(places[place])
        return (layout.sample(records[index], index),)

    batches = list(embedder.each(_match, len(places), arguments, label="match views"))
    found = {name: np.concatenate([batch[name] for batch in batches])[:count] for name in batches[0]}
    scale = float(embedder.objective.similarity_scale())
    among = min(among, count)
    scores = {
        image: _scores(found[image], found["volumes"], data.studies[order], among, scale) for image in VIEWS
    }
    hits = {image: score[0] for image, score in scores.items()}
    hits["gain_over_noise"] = hits["own"] - hits["noise"]
    bootstrap = Bootstrap(draws, seed)
    top1, intervals = {}, {}
    for name, rows in compared.items():
        values = hits[name][rows]
        top1[name] = _mean(values)
        if len(rows):
            intervals[name] = bootstrap(lambda drawn, x=values: _mean(x[drawn]), data.patients[order[rows]])
    return ViewsResult(
        top1,
        {image: _mean(score[1][compared[image]]) for image, score in scores.items()},
        {name: interval for name, interval in intervals.items() if interval is not None},
        {
            "n": f"{found['own'].shape[1]} crops of each of {count} volumes, split {data.name!r}; their "
            "places are drawn from a fixed key and the record's index",
            "another volume": f"that of the row before in batches of {embedder.batch_size}; "
            f"{count - len(compared['other'])} volumes beside their own patient left out",
            "among": f"{among} volumes, chance {1 / among:.3f}, whose loss is {np.log(among):.3f}",
            "intervals": described(draws, seed),
        },
    )


def _mean(values: Float[np.ndarray, " N"]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _match(objective: Objective, batch: Batch) -> dict[str, jax.Array]:
    # The compiler sees what the three have in common, and computes it once.
    found = {image: objective.match_views(batch, jax.random.key(0), image=image) for image in VIEWS}
    return {"volumes": found["own"].volumes} | {image: match.views for image, match in found.items()}


def _scores(
    views: Float[np.ndarray, "N M D"],
    volumes: Float[np.ndarray, "N D"],
    studies: np.ndarray,
    among: int,
    scale: float,
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Of each volume the share of its views that find their study, and their mean cross-entropy.

    Volumes are compared in groups of `among` as they stand; the last group is filled up with those before it.
    """
    hits, losses = np.zeros(len(views)), np.zeros(len(views))
    for start in range(0, len(views), among):
        group = np.arange(min(start, len(views) - among), min(start + among, len(views)))
        own = group[group >= start]
        logits = scale * np.einsum("nmd,gd->nmg", views[own], volumes[group], dtype=np.float64)
        same = studies[own][:, None] == studies[group][None]
        nearest = logits.argmax(axis=2)
        hits[own] = np.take_along_axis(same, nearest, axis=1).mean(axis=1)
        logits -= logits.max(axis=2, keepdims=True)
        log_probability = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        target = same / same.sum(axis=1, keepdims=True)
        losses[own] = -(target[:, None] * log_probability).sum(axis=2).mean(axis=1)
    return hits, losses
