"""How well a masked autoencoder fills in the patches that were hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.degradation import Bootstrap, OpenRecords
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import Interval
from medclip_jax.evaluation.results import NotEvaluable, Table, needs, with_interval
from medclip_jax.evaluation.spacings import spacing_of_records
from medclip_jax.objectives.base import Objective, Reconstruction


@dataclass(frozen=True)
class Window:
    """One intensity window.

    Attributes:
        name: its limits.
        explained: share of the variance of hidden voxels, mean over volumes.
        interval: None when none was requested.
    """

    name: str
    explained: float
    interval: Interval | None


@dataclass(frozen=True)
class ShownReconstruction:
    """One volume in one window, to be drawn: intensities in [-1, 1].

    Attributes:
        window: its limits.
        spacing: mm along depth, height, width.
        original: (D, H, W).
        visible: the same with hidden patches at NaN.
        completed: visible patches as they were, hidden ones as predicted.
    """

    window: str
    spacing: tuple[float, float, float]
    original: Float[np.ndarray, "D H W"]
    visible: Float[np.ndarray, "D H W"]
    completed: Float[np.ndarray, "D H W"]


@dataclass(frozen=True)
class ReconstructionResult:
    """How well hidden patches were filled in.

    Attributes:
        windows: of the decoder.
        conditions: under which the numbers hold.
        volumes: to be drawn.
    """

    windows: Sequence[Window]
    conditions: Mapping[str, str]
    volumes: Sequence[ShownReconstruction] = field(default_factory=tuple)

    def metrics(self) -> dict[str, float]:
        """`explained` in each window, and its mean."""
        found = {f"explained/{place}": window.explained for place, window in enumerate(self.windows)}
        return found | {"explained_mean": metrics.mean_of_defined(found.values())}

    def table(self) -> Table:
        """One line for each window."""
        rows = tuple(
            (window.name, with_interval(window.explained, window.interval)) for window in self.windows
        )
        return Table("Hidden patches", ("window", "variance explained"), rows, self.conditions)

    def __str__(self) -> str:
        return str(self.table())


@needs("reconstruction")
def evaluate_reconstruction(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    pictures: int = 2,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
) -> ReconstructionResult:
    """Hide patches of every volume and compare what is filled in with what was there.

    Args:
        data: the split.
        encode_texts: not used.
        pictures: volumes that are kept to be drawn, one batch at most.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of the bootstrap.
        embedder: of the model.
        open_records: opens the split's records again.

    Returns:
        The result.

    Raises:
        NotEvaluable: volumes are not to be read again.
    """
    if embedder is None or open_records is None:
        raise NotEvaluable("patches of volumes are hidden, which are not to be read again")
    records, _ = open_records(("volume",))

    def arguments(index: int) -> tuple[Any, ...]:
        return (records[index]["volume"],)

    count = len(records)
    explained = np.concatenate(list(embedder.each(_explained, count, arguments, label="reconstruct")))
    windows = [f"{low:g} to {high:g}" for low, high in embedder.objective.reconstructed_windows()]
    bootstrap = Bootstrap(draws, seed)
    spacing_of, volumes = spacing_of_records(embedder.layout.spec, open_records), []
    shown = min(pictures, count, embedder.batch_size)
    if shown:
        (rebuilt,) = embedder.each(_Rebuilt(shown), shown, arguments, label="reconstruct pictures")
        volumes = [
            ShownReconstruction(
                name, spacing_of(row), *(np.asarray(part[row, ..., channel]) for part in rebuilt)
            )
            for row in range(shown)
            for channel, name in enumerate(windows)
        ]
    conditions = {
        "n": f"{count} volumes of {len(np.unique(data.patients))} patients, split {data.name!r}",
        "variance explained": "1 - squared error of the hidden voxels / their squared distance from the mean "
        "of the visible ones, in a volume; mean over volumes",
        "hidden": "as in training, drawn from a fixed key",
        "intervals": described(draws, seed),
    }
    return ReconstructionResult(
        [
            Window(
                name,
                float(explained[:, channel].mean()),
                bootstrap(lambda drawn, own=explained[:, channel]: float(own[drawn].mean()), data.patients),
            )
            for channel, name in enumerate(windows)
        ],
        conditions,
        volumes,
    )


def _explained(objective: Objective, volumes: Int[Array, "B D H W"]) -> Float[Array, "B C"]:
    rebuilt = objective.reconstruct(volumes, jax.random.key(0))
    axes, hidden = (1, 2, 3), jnp.isnan(rebuilt.visible)
    mean = jnp.nanmean(rebuilt.visible, axis=axes, keepdims=True)
    error = jnp.square(rebuilt.completed - rebuilt.original)
    spread = jnp.square(rebuilt.original - mean)
    sums = [jnp.where(hidden, part, 0.0).sum(axis=axes) for part in (error, spread)]
    return 1.0 - sums[0] / jnp.maximum(sums[1], 1e-12)


@dataclass(frozen=True)
class _Rebuilt:
    """Of the first rows of a batch: whole volumes are large."""

    rows: int

    def __call__(self, objective: Objective, volumes: Int[Array, "B D H W"]) -> Reconstruction:
        rebuilt = objective.reconstruct(volumes, jax.random.key(0))
        return jax.tree.map(lambda part: part[: self.rows], rebuilt)
