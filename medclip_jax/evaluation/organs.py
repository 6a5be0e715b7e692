"""How well a model tells how much of each patch each organ fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int16

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.degradation import Bootstrap, OpenRecords
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.grounding_metrics import patch_shares
from medclip_jax.evaluation.metrics import Interval
from medclip_jax.evaluation.results import NotEvaluable, Table, needs, number, with_interval
from medclip_jax.evaluation.spacings import spacing_of_records
from medclip_jax.objectives.base import Inputs, Objective


@dataclass(frozen=True)
class Organ:
    """One organ, or several that are told as one.

    Attributes:
        volumes: in which it shows.
        overlap: mean over them of `overlap` of what is told with what is there.
        mean_map: the same of the mean shares of the other volumes, which knows no more than positions.
        interval: of `overlap`; None when none was requested.
    """

    volumes: int
    overlap: float
    mean_map: float
    interval: Interval | None


@dataclass(frozen=True)
class ShownOrgans:
    """A volume with the shares of its patches, to be drawn.

    Attributes:
        volume: (D, H, W) HU.
        spacing: mm along depth, height, width.
        shares: (O, d, h, w) that organs fill.
        told: (O, d, h, w) what the model tells.
    """

    volume: Int16[np.ndarray, "D H W"]
    spacing: tuple[float, float, float]
    shares: Float[np.ndarray, "O d h w"]
    told: Float[np.ndarray, "O d h w"]


@dataclass(frozen=True)
class OrgansResult:
    """What a model tells of organs.

    Attributes:
        organs: name to numbers.
        conditions: under which they hold.
        scans: to be drawn.
    """

    organs: Mapping[str, Organ]
    conditions: Mapping[str, str]
    scans: Sequence[ShownOrgans] = field(default_factory=tuple)

    @property
    def mean(self) -> float:
        """Mean overlap over the organs that show anywhere."""
        return metrics.mean_of_defined(organ.overlap for organ in self.organs.values())

    def metrics(self) -> dict[str, float]:
        """`overlap` and `mean_map` of each organ, and `overlap_mean`."""
        found = {f"overlap/{name}": organ.overlap for name, organ in self.organs.items()}
        found |= {f"mean_map/{name}": organ.mean_map for name, organ in self.organs.items()}
        return found | {"overlap_mean": self.mean}

    def table(self) -> Table:
        """One line for each organ."""
        rows = tuple(
            (
                name.replace("_", " "),
                str(organ.volumes),
                with_interval(organ.overlap, organ.interval),
                number(organ.mean_map),
            )
            for name, organ in self.organs.items()
        )
        return Table("Organs of patches", ("", "volumes", "overlap", "mean map"), rows, self.conditions)

    def __str__(self) -> str:
        return str(self.table())


def overlap(told: Float[np.ndarray, " N"], shares: Float[np.ndarray, " N"]) -> float:
    """Twice what two maps of shares have in common, over their sum: Dice's coefficient of shares.

    Args:
        told, shares: of each patch, in [0, 1].

    Returns:
        In [0, 1]; NaN where both are 0.
    """
    total = told.sum() + shares.sum()
    return float(2 * np.minimum(told, shares).sum() / total) if total else float("nan")


@needs("organ shares")
def evaluate_organs(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    pictures: int = 2,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
) -> OrgansResult:
    """Compare the shares that a model tells with those of the masks.

    Args:
        data: the split.
        encode_texts: not used.
        pictures: scans that are kept to be drawn.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of the bootstrap.
        embedder: of the model.
        open_records: opens the split's records again.

    Returns:
        The result.

    Raises:
        NotEvaluable: the shards hold none of the organs, or organ cells that do not fit the patches.
    """
    if embedder is None or open_records is None:
        raise NotEvaluable("organs are predicted from volumes, which are not to be read again")
    records, organs = open_records(embedder.layout.reads)
    names = embedder.objective.organ_names()
    groups = {
        place: [organs.index(organ) for organ in name.split("+")]
        for place, name in enumerate(names)
        if set(name.split("+")) <= set(organs)
    }
    if not groups:
        raise NotEvaluable(
            f"the shards hold none of the organs that the model tells: prepare with {', '.join(names)}"
        )
    masks, _ = open_records(("organs",))
    grid = tuple(embedder.objective.volume_tower().grid)

    def shares_of(row: int) -> Float[np.ndarray, "O N"]:
        shares = patch_shares(masks[row]["organs"], grid)
        return np.minimum(np.stack([shares[own].sum(axis=0) for own in groups.values()]), 1.0)

    count = len(records)
    everyone = sum(shares_of(row) for row in range(count))
    found = np.full((2, count, len(groups)), np.nan)
    spacing_of = spacing_of_records(embedder.layout.spec, open_records)
    scans: list[ShownOrgans] = []
    row = 0

    def arguments(index: int) -> tuple[Any, ...]:
        return (dict(embedder.inputs(records[index], index)),)

    for batch in embedder.each(_predict, count, arguments, label="tell organs"):
        for told in np.asarray(batch, np.float64)[..., list(groups)]:
            shares = shares_of(row)
            others = (everyone - shares) / max(count - 1, 1)
            for organ in np.flatnonzero(shares.any(axis=1)):
                found[0, row, organ] = overlap(told[:, organ], shares[organ])
                found[1, row, organ] = overlap(others[organ], shares[organ]) if count > 1 else np.nan
            if len(scans) < pictures:
                volume = np.array(records[row]["volume"])
                maps = (part.reshape(-1, *grid) for part in (shares, told.T))
                scans.append(ShownOrgans(volume, spacing_of(row), *maps))
            row += 1
    bootstrap = Bootstrap(draws, seed)
    told_organs = {
        names[place]: _organ(found[:, :, organ], data.patients, bootstrap)
        for organ, place in enumerate(groups)
    }
    conditions = {
        "n": f"{count} volumes of {len(np.unique(data.patients))} patients, split {data.name!r}",
        "overlap": "2 sum of min(told, there) / sum of both over the patches of a volume; mean over the "
        "volumes in which the organ shows",
        "mean map": "the mean shares of the other volumes in the place of what the model tells",
        "intervals": described(draws, seed),
    }
    return OrgansResult(told_organs, conditions, scans)


def _predict(objective: Objective, inputs: Inputs) -> jax.Array:
    return objective.predict_organs(inputs)


def _organ(found: Float[np.ndarray, "2 N"], patients: np.ndarray, bootstrap: Bootstrap) -> Organ:
    shown = np.flatnonzero(~np.isnan(found[0]))
    told = found[0, shown]
    return Organ(
        len(shown),
        metrics.mean_of_defined(told),
        metrics.mean_of_defined(found[1, shown]),
        bootstrap(lambda drawn: float(told[drawn].mean()), patients[shown]) if len(shown) else None,
    )
