"""How well a model tells the class of each voxel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int16, UInt8

from medclip_jax.corpora.study import OUTSIDE_LABEL
from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.degradation import Bootstrap, OpenRecords
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import Interval
from medclip_jax.evaluation.results import NotEvaluable, Table, needs, number, with_interval
from medclip_jax.evaluation.scored import Scored, ValueTask
from medclip_jax.evaluation.segmentation_metrics import overlap_of
from medclip_jax.evaluation.sliding import OVERLAP, slide, window_starts
from medclip_jax.evaluation.spacings import spacing_of_records

OpenLabelMaps = Callable[[], tuple[Sequence[Mapping[str, Any]], Sequence[str]]]
"""To the records of the split, with `label_map`, and the names of its classes 1, 2, ..."""

SCORES = ("dice", "hd95", "surface_dice")
"""Of a class in a volume, in the order of `SegmentationResult.scores`."""


@dataclass(frozen=True)
class SegmentedClass:
    """One class.

    Attributes:
        volumes: in which it is there, by the label maps.
        missed: of these, in how many not one voxel of it was told.
        invented: volumes in which it is not there and was predicted all the same.
        dice, hd95, surface_dice: means over `volumes`; of `hd95` over those where it was told, in mm.
        intervals: score to its interval; {} when none were requested.
    """

    volumes: int
    missed: int
    invented: int
    dice: float
    hd95: float
    surface_dice: float
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownSegmentation:
    """A volume with the classes of its voxels, to be drawn.

    Attributes:
        volume: (D, H, W) HU.
        spacing: mm along depth, height, width.
        true: (D, H, W) classes; `OUTSIDE_LABEL` where nobody knows.
        told: (D, H, W) classes by the model.
        values: class to its value in both.
    """

    volume: Int16[np.ndarray, "D H W"]
    spacing: tuple[float, float, float]
    true: UInt8[np.ndarray, "D H W"]
    told: UInt8[np.ndarray, "D H W"]
    values: Mapping[str, int]


@dataclass(frozen=True)
class SegmentationResult:
    """What a model tells of voxels.

    Attributes:
        classes: name to numbers.
        conditions: under which they hold.
        told: names of all K classes that the model tells.
        scores: (3, N, K) each of `SCORES` of each volume and class, NaN where it is undefined.
        patients: (N,) of each volume.
        ids: keyed hash of each volume; () where the records hold none.
        tolerance: of the surface Dice, mm.
        mean_intervals: score to the interval of its mean over classes.
        scans: to be drawn.
    """

    classes: Mapping[str, SegmentedClass]
    conditions: Mapping[str, str]
    told: Sequence[str]
    scores: Float[np.ndarray, "3 N K"]
    patients: np.ndarray
    ids: Sequence[str] = ()
    tolerance: float = 3.0
    mean_intervals: Mapping[str, Interval] = field(default_factory=dict)
    scans: Sequence[ShownSegmentation] = field(default_factory=tuple)

    def mean(self, score: str) -> float:
        """Mean of a score over the classes of which it is defined."""
        return metrics.mean_of_defined(getattr(one, score) for one in self.classes.values())

    def metrics(self) -> dict[str, float]:
        """`dice`, `hd95` and `surface_dice` of each class, each with its mean; `missed` and `invented`."""
        found = {
            f"{score}/{name}": getattr(one, score) for score in SCORES for name, one in self.classes.items()
        }
        found |= {f"{score}_mean": self.mean(score) for score in SCORES}
        for count in ("missed", "invented"):
            found |= {f"{count}/{name}": float(getattr(one, count)) for name, one in self.classes.items()}
        return found

    def all_intervals(self) -> dict[str, Interval]:
        """Intervals under the keys of `metrics`."""
        found = {
            f"{score}/{name}": interval
            for name, one in self.classes.items()
            for score, interval in one.intervals.items()
        }
        return found | {f"{score}_mean": interval for score, interval in self.mean_intervals.items()}

    def scored(self) -> dict[str, Scored]:
        """Dice of each class in each volume that shows it."""
        tasks = {}
        for name, dice in zip(self.told, self.scores[0].T, strict=True):
            rows = np.flatnonzero(~np.isnan(dice))
            if rows.size:
                tasks[name] = ValueTask(rows, dice[None, rows], "Dice")
        return {"": Scored(self.ids, self.patients, tasks)}

    def table(self) -> Table:
        """One line for each class, and their mean."""
        rows = [
            (
                name.replace("_", " "),
                str(one.volumes),
                *(
                    with_interval(getattr(one, score), one.intervals.get(score))
                    for score in ("dice", "surface_dice")
                ),
                number(one.hd95, 1),
                str(one.missed),
                str(one.invented),
            )
            for name, one in self.classes.items()
        ]
        mean = (
            with_interval(self.mean(score), self.mean_intervals.get(score))
            for score in ("dice", "surface_dice")
        )
        rows.append(("mean", "", *mean, number(self.mean("hd95"), 1), "", ""))
        surface = f"surface Dice at {self.tolerance:g} mm"
        header = ("", "volumes", "Dice", surface, "HD95 (mm)", "missed", "invented")
        return Table("Segmentation", header, tuple(rows), self.conditions)

    def __str__(self) -> str:
        return str(self.table())


@needs("label maps")
def evaluate_segmentation(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    overlap: float = OVERLAP,
    tolerance: float = 3.0,
    pictures: int = 2,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
    open_label_maps: OpenLabelMaps | None = None,
) -> SegmentationResult:
    """Compare the classes that a model tells with those of the label maps.

    Args:
        data: the split.
        encode_texts: not used.
        overlap: of neighboring windows along each axis, as a share of them.
        tolerance: of the surface Dice, mm.
        pictures: scans that are kept to be drawn.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of the bootstrap.
        embedder: of the model.
        open_records: opens the split's records again.
        open_label_maps: opens their label maps.

    Returns:
        The result.

    Raises:
        NotEvaluable: the shards hold no label maps, or not one of the classes.
    """
    if embedder is None or open_records is None or open_label_maps is None:
        raise NotEvaluable("classes of voxels are predicted from volumes, which are not to be read again")
    names = embedder.objective.segmented_classes()
    maps, classes = open_label_maps()
    value_of = _values(names, classes)
    records, _ = open_records(embedder.layout.reads)
    spacing_of = spacing_of_records(embedder.layout.spec, open_records)
    count = len(records)
    scores = np.full((len(SCORES), count, len(names)), np.nan)
    there, told = np.zeros((2, count, len(names)), bool)
    scans: list[ShownSegmentation] = []

    def read(index: int) -> Int16[np.ndarray, "D H W"]:
        return np.asarray(embedder.inputs(records[index], index)["volume"])

    labeled = np.zeros(count, bool)
    for row, found in enumerate(slide(embedder, range(count), read, overlap=overlap)):
        true = maps[row].get("label_map")
        if true is None or (true == OUTSIDE_LABEL).all():
            continue
        labeled[row] = True
        known = true != OUTSIDE_LABEL
        for place, name in enumerate(names):
            if name in value_of:
                masks = (found == place + 1) & known, true == value_of[name]
                told[row, place], there[row, place] = (mask.any() for mask in masks)
                if there[row, place]:
                    scores[:, row, place] = overlap_of(*masks, spacing_of(row), tolerance=tolerance)
        if len(scans) < pictures:
            named = _renamed(true, names, value_of)
            shown = {name: names.index(name) + 1 for name in value_of}
            scans.append(ShownSegmentation(np.array(read(row)), spacing_of(row), named, found, shown))
    if not there.any():
        raise NotEvaluable(f"no label map of the split shows any of {', '.join(names)}")
    bootstrap = Bootstrap(draws, seed)
    steps = window_starts(embedder.layout.spec.shape, embedder.objective.crop_shape(), overlap)
    patients = len(np.unique(data.patients[labeled]))
    conditions = {
        "n": f"{labeled.sum()} volumes of {patients} patients, split {data.name!r}"
        + ("" if labeled.all() else f"; {(~labeled).sum()} without a label map left out"),
        "prediction": f"{len(steps)} windows a volume, overlap {overlap:g}, Gaussian weights, mean of logits",
        "scores": "of each class over the volumes that show it, on the prepared grid, without background; "
        "voxels outside of the scan or not labeled count for nothing. Missed: Dice and surface Dice 0, no "
        "distance",
        "intervals": described(draws, seed),
    }
    return SegmentationResult(
        {
            name: _class(scores[..., place], there[:, place], told[:, place], data.patients, bootstrap)
            for place, name in enumerate(names)
            if name in value_of
        },
        conditions,
        names,
        scores,
        np.asarray(data.patients),
        tuple(data.ids),
        tolerance,
        _mean_intervals(scores, data.patients, bootstrap),
        scans,
    )


def _values(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Class that the model tells to its value in the label maps that are scored."""
    found = {name: classes.index(name) + 1 for name in names if name in classes}
    if not found:
        have = ", ".join(classes) or "no label maps"
        raise NotEvaluable(
            f"the shards have {have}, and the model tells {', '.join(names)}: prepare label maps of these"
        )
    return found


def _renamed(
    true: UInt8[np.ndarray, "D H W"], names: Sequence[str], value_of: Mapping[str, int]
) -> UInt8[np.ndarray, "D H W"]:
    """A label map with the model's values; classes that it does not know become background."""
    table = np.zeros(OUTSIDE_LABEL + 1, np.uint8)
    table[OUTSIDE_LABEL] = OUTSIDE_LABEL
    for name, value in value_of.items():
        table[value] = names.index(name) + 1
    return table[true]


def _class(
    scores: Float[np.ndarray, "3 N"],
    there: np.ndarray,
    told: np.ndarray,
    patients: np.ndarray,
    bootstrap: Bootstrap,
) -> SegmentedClass:
    means = [metrics.mean_of_defined(row) for row in scores]
    intervals = {}
    for name, row in zip(SCORES, scores, strict=True):
        defined = np.flatnonzero(~np.isnan(row))
        if defined.size:
            own = row[defined]
            interval = bootstrap(lambda drawn, own=own: float(own[drawn].mean()), patients[defined])
            if interval is not None:
                intervals[name] = interval
    return SegmentedClass(
        int(there.sum()), int((there & ~told).sum()), int((told & ~there).sum()), *means, intervals
    )


def _mean_intervals(
    scores: Float[np.ndarray, "3 N K"], patients: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Interval]:
    """Of the mean over classes of the means over volumes, all classes drawn together."""
    found = {}
    for name, table in zip(SCORES, scores, strict=True):
        rows = np.flatnonzero(~np.isnan(table).all(axis=1))
        if not rows.size:
            continue
        own = table[rows]

        def mean(drawn: np.ndarray, own: np.ndarray = own) -> float:
            return metrics.mean_of_defined(metrics.mean_of_defined(column) for column in own[drawn].T)

        interval = bootstrap(mean, patients[rows])
        if interval is not None:
            found[name] = interval
    return found
