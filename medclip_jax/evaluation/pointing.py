"""Pointing game: does the place where a heat map is highest lie in the lesion?

A hit is a volume in which the highest voxel of the map for a finding's prompt lies in the finding's class of
the label map. A map that knows nothing hits as often as the lesion fills the volume: that is the chance.

Reference: Zhang et al. 2018, "Top-down neural attention by excitation backprop".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16, Int64
from scipy.ndimage import distance_transform_edt

from medclip_jax.corpora.study import OUTSIDE_LABEL
from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.degradation import OpenRecords
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts, encode_prompts
from medclip_jax.evaluation.heatmaps import heat_map
from medclip_jax.evaluation.metrics import Interval, mean_of_defined, percentile_interval
from medclip_jax.evaluation.results import (
    FEWEST,
    TOO_FEW,
    NotEvaluable,
    Table,
    chosen_findings,
    needs,
    not_scored,
    number,
    with_interval,
)
from medclip_jax.evaluation.scored import Scored, ValueTask
from medclip_jax.evaluation.segmentation import OpenLabelMaps
from medclip_jax.evaluation.similarity import averaged
from medclip_jax.evaluation.spacings import Spacing, spacing_of_records
from medclip_jax.progress import track_each
from medclip_jax.reports.names import UnknownFinding, finding_name
from medclip_jax.reports.prompts import prompts_of

EXPLAINED = ("positive", "difference")
"""What a map explains: the cosine to the prompt of presence, or the difference to that of absence."""


@dataclass(frozen=True)
class Pointed:
    """One finding.

    Attributes:
        rows: (n,) volumes whose lesion was pointed at.
        hits: (n,) probability that the highest voxel, one of those that tie, lies in the lesion.
        mass: (n,) share of the map's sum that lies in the lesion; NaN where the map is 0 everywhere.
        chance: (n,) share of the volume that the lesion fills.
        interval: of the mean of `hits`, over patients; None where none was requested.
    """

    rows: Int64[np.ndarray, " n"]
    hits: Float[np.ndarray, " n"]
    mass: Float[np.ndarray, " n"]
    chance: Float[np.ndarray, " n"]
    interval: Interval | None

    def metrics(self) -> dict[str, float]:
        """Means over the volumes: `hit`, `mass`, `chance`; and the number of volumes."""
        return {
            "hit": float(self.hits.mean()),
            "mass": mean_of_defined(self.mass),
            "chance": float(self.chance.mean()),
            "volumes": len(self.rows),
        }


@dataclass(frozen=True)
class ShownMap:
    """A heat map over a volume with its lesion, to be drawn.

    Attributes:
        finding: whose prompt and whose lesion.
        volume: (D, H, W) HU.
        spacing: mm along depth, height, width.
        heat: (D, H, W) relevance.
        lesion: (D, H, W).
        hit: whether the highest voxel lies in the lesion.
    """

    finding: str
    volume: Int16[np.ndarray, "D H W"]
    spacing: Spacing
    heat: Float[np.ndarray, "D H W"]
    lesion: Bool[np.ndarray, "D H W"]
    hit: float


@dataclass(frozen=True)
class PointingResult:
    """Pointing game of several findings.

    Attributes:
        findings: name to what was found.
        lacking: name to the reason why it was not scored.
        maps: a few to be shown.
        conditions: n, prompts, maps, lesions, intervals, in words.
        patients: (N,) keyed hash of the patient of each volume of the split.
        ids: keyed hashes of these volumes; () where they are not known.
    """

    findings: Mapping[str, Pointed]
    lacking: Mapping[str, str]
    maps: Sequence[ShownMap]
    conditions: Mapping[str, str]
    patients: Int64[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: Sequence[str] = ()

    def metrics(self) -> dict[str, float]:
        """Keys ``hit/<finding>``, ``mass/...``, ``chance/...``, ``volumes/...``; ``hit_mean`` and so on."""
        each = {name: found.metrics() for name, found in self.findings.items()}
        flat = {f"{metric}/{name}": value for name, one in each.items() for metric, value in one.items()}
        for metric in ("hit", "mass", "chance"):
            flat[f"{metric}_mean"] = mean_of_defined(one[metric] for one in each.values())
        return flat

    def all_intervals(self) -> dict[str, Interval]:
        """Intervals under the keys of `metrics`."""
        return {f"hit/{name}": found.interval for name, found in self.findings.items() if found.interval}

    def scored(self) -> dict[str, Scored]:
        """Whether each volume's lesion was hit."""
        tasks = {name: ValueTask(x.rows, x.hits[None], "hit") for name, x in self.findings.items()}
        return {"": Scored(self.ids, self.patients, tasks)}

    def table(self) -> Table:
        """One line for each finding, then the mean of what is shown."""
        rows, shown = [], []
        for name, found in self.findings.items():
            values = found.metrics()
            cells = [TOO_FEW] * 3
            if len(found.rows) >= FEWEST:
                cells = [with_interval(values["hit"], found.interval), number(values["mass"])]
                cells += [number(values["chance"])]
                shown.append(values)
            rows.append((name, str(len(found.rows)), *cells))
        if shown:
            means = (mean_of_defined(one[key] for one in shown) for key in ("hit", "mass", "chance"))
            rows.append(("mean", "", *map(number, means)))
        header = ("finding", "volumes", "hits", "relevance inside", "chance: the lesion's share")
        conditions = {**self.conditions, **not_scored(self.lacking)}
        return Table("Pointing game", header, tuple(rows), conditions)

    def __str__(self) -> str:
        return str(self.table())


@needs("text")
def evaluate_pointing(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    findings: Sequence[str] = (),
    template: str = "there_is",
    explain: str = "positive",
    margin: float = 0.0,
    samples: int = 50,
    pictures: int = 2,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
    open_label_maps: OpenLabelMaps | None = None,
) -> PointingResult:
    """Explain the prompt of each finding in volumes that show its lesion: is the highest place in it?

    Args:
        data: the split.
        encode_texts: the model's text side.
        findings: classes of the label maps that are findings; () for all of those.
        template: words of the prompts, one of `reports.prompts.WORDINGS`.
        explain: one of `EXPLAINED`.
        margin: mm around the lesion that count as inside; chance counts them, too.
        samples: volumes of each finding, drawn at random; 0 for all that show it.
        pictures: maps that are shown at most, one of each finding.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of the choice of volumes, and of the bootstrap.
        embedder: of the model.
        open_records: opens the split's records again.
        open_label_maps: opens their label maps.

    Returns:
        The result.

    Raises:
        NotEvaluable: there are no label maps, none of their classes is a finding, no volume shows one, or the
            model's tower has no heat maps.
        ValueError: an unknown finding or option.
    """
    if explain not in EXPLAINED:
        raise ValueError(f"explain={explain!r}: use one of {', '.join(EXPLAINED)}")
    if embedder is None or open_records is None or open_label_maps is None:
        raise NotEvaluable("heat maps are made of volumes, which are not to be read again")
    maps, classes = open_label_maps()
    value_of = _lesions(classes, data)
    names = chosen_findings(findings, value_of, data.definitions)
    records, _ = open_records(embedder.layout.reads)
    spacing_of = spacing_of_records(embedder.layout.spec, open_records)
    rows = _rows_that_show(maps, {name: value_of[name] for name in names}, samples, seed)
    lacking = {name: "no volume shows it" for name in names if not rows[name].size}
    if len(lacking) == len(names):
        raise NotEvaluable(f"no label map of the split shows any of {', '.join(names)}")
    found, shown = {}, []
    weights = bootstrap.draw_patients(data.patients, draws, seed)
    for name in (one for one in names if one not in lacking):
        prompts = prompts_of(name, template, definitions=data.definitions)
        positive, negative = averaged(encode_texts(prompts.positive)), None
        if explain == "difference":
            positive, negative = encode_prompts(encode_texts, prompts)
        scores = np.empty((3, len(rows[name])))
        listed = track_each(
            rows[name].tolist(), total=len(rows[name]), unit="volume", label=name, show=embedder.progress
        )
        for column, row in enumerate(listed):
            volume = np.asarray(embedder.inputs(records[row], row)["volume"])
            heat = heat_map(embedder.objective, volume, positive, negative).voxels
            labels = np.asarray(maps[row]["label_map"])
            lesion = within(labels == value_of[name], margin, spacing_of(row))
            scores[:, column] = point(heat, lesion, labels != OUTSIDE_LABEL)
            if len(shown) < pictures and column == 0:
                shown.append(ShownMap(name, volume, spacing_of(row), heat, lesion, scores[0, column]))
        own = weights[:, rows[name]].astype(np.float64)
        with np.errstate(invalid="ignore"):
            drawn = own @ scores[0] / own.sum(axis=1)
        found[name] = Pointed(rows[name], *scores, percentile_interval(drawn) if draws else None)
    everyone = np.unique(np.concatenate([one.rows for one in found.values()]))
    conditions = {
        "n": f"{len(everyone)} volumes of {len(np.unique(data.patients[everyone]))} patients, split "
        f"{data.name!r}, that show a lesion" + (f"; at most {samples} of each" if samples else ""),
        "prompts": f"{template}; "
        + ("the cosine to that of presence" if explain == "positive" else "the difference of both cosines"),
        "hit": "the highest voxel of the heat map lies in the lesion"
        + (f", or within {margin:g} mm" if margin else "")
        + "; ties count as their expectation; voxels outside of the scan or not labeled count for nothing",
        "intervals": bootstrap.described(draws, seed),
    }
    return PointingResult(found, lacking, shown, conditions, np.asarray(data.patients), tuple(data.ids))


def point(
    heat: Float[np.ndarray, "D H W"], lesion: Bool[np.ndarray, "D H W"], known: Bool[np.ndarray, "D H W"]
) -> tuple[float, float, float]:
    """Where a map points.

    Args:
        heat: relevance, 0 or more.
        lesion: where it should lie.
        known: voxels that count.

    Returns:
        Share of the highest voxels that lie in the lesion; share of the map's sum there, NaN where the sum is
        0; and share of the voxels there.
    """
    heat, lesion = np.asarray(heat, np.float64)[known], lesion[known]
    top = heat >= heat.max() - 1e-9 * np.abs(heat).max()
    total = heat.sum()
    mass = float(heat[lesion].sum() / total) if total > 0 else float("nan")
    return float(lesion[top].mean()), mass, float(lesion.mean())


def within(lesion: Bool[np.ndarray, "D H W"], margin: float, spacing: Spacing) -> Bool[np.ndarray, "D H W"]:
    """The lesion with a margin around it.

    Args:
        lesion: at least one voxel.
        margin: mm, to the middle of a voxel.
        spacing: mm along depth, height, width.
    """
    return distance_transform_edt(~lesion, sampling=spacing) <= margin if margin else lesion


def _lesions(classes: Sequence[str], data: EmbeddedSplit) -> dict[str, int]:
    """Finding to its value in the label maps."""
    found = {}
    for value, name in enumerate(classes, 1):
        try:
            found[finding_name(name, definitions=data.definitions)] = value
        except UnknownFinding:
            continue
    if not found:
        raise NotEvaluable(
            f"the label maps show {', '.join(classes)}, and none of these is a finding: prepare label maps "
            "of lesions, such as those of phantoms with --label-maps corpus"
        )
    return found


def _rows_that_show(
    maps: Sequence[Mapping[str, Any]], value_of: Mapping[str, int], samples: int, seed: int
) -> dict[str, Int64[np.ndarray, " n"]]:
    """Volumes that show each finding, drawn where there are more than are wanted; ascending."""
    shows: dict[str, list[int]] = {name: [] for name in value_of}
    for row, record in enumerate(maps):
        labels = record.get("label_map")
        present = () if labels is None else np.unique(labels)
        for name, value in value_of.items():
            if value in present:
                shows[name].append(row)
    generator = np.random.default_rng(seed)
    drawn = {name: generator.permutation(rows)[: samples or len(rows)] for name, rows in shows.items()}
    return {name: np.sort(rows).astype(np.int64) for name, rows in drawn.items()}
