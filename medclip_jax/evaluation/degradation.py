"""Damage of known degree to volumes and texts, to see whether predicted uncertainty notices.

Level 0 leaves everything as it is; damage only grows with the level: what a level loses, every higher one
loses too, and noise is the same pattern, stronger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int16, Int64

from medclip_jax.evaluation.embedder import Embedder, VolumeInputs
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import Interval, bootstrap_interval, mean_of_defined
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.uncertainty_metrics import spearman
from medclip_jax.reports.findings import FINDINGS, extract_detailed
from medclip_jax.reports.sentences import split_sentences
from medclip_jax.transforms import AIR_HU

_VAGUE = (
    "Some change may be seen.",
    "An abnormality cannot be excluded.",
    "The appearance is nonspecific.",
)


def add_noise(
    volume: Int16[np.ndarray, "D H W"], level: float, generator: np.random.Generator
) -> Int16[np.ndarray, "D H W"]:
    """Add white noise.

    Args:
        volume: prepared, HU.
        level: standard deviation, HU.
        generator: of the pattern.
    """
    noisy = volume + np.float32(level) * generator.standard_normal(volume.shape, np.float32)
    return np.clip(np.rint(noisy), AIR_HU, np.iinfo(np.int16).max).astype(np.int16)


def lose_slices(
    volume: Int16[np.ndarray, "D H W"], level: float, generator: np.random.Generator
) -> Int16[np.ndarray, "D H W"]:
    """Replace axial slices by air, as preparation fills what a scan does not cover.

    Args:
        volume: prepared, HU.
        level: share of the slices that is lost.
        generator: draws which.
    """
    lost = generator.permutation(len(volume))[: round(level * len(volume))]
    damaged = volume.copy()
    damaged[lost] = AIR_HU
    return damaged


def crop(
    volume: Int16[np.ndarray, "D H W"], level: float, generator: np.random.Generator
) -> Int16[np.ndarray, "D H W"]:
    """Keep the middle of the field of view, and air around it.

    Args:
        volume: prepared, HU.
        level: share of each edge's length that is lost, half on either side.
        generator: not asked; nothing is drawn.
    """
    kept = []
    for size in volume.shape:
        length = round((1.0 - level) * size)
        start = (size - length) // 2
        kept.append(slice(start, start + length))
    damaged = np.full_like(volume, AIR_HU)
    damaged[tuple(kept)] = volume[tuple(kept)]
    return damaged


def truncate(text: str, level: float, generator: np.random.Generator) -> str:
    """Cut off the end of a text.

    Args:
        text: any.
        level: share of the words that is cut; the first word always stays.
        generator: not asked; nothing is drawn.
    """
    words = text.split()
    return " ".join(words[: max(1, round((1.0 - level) * len(words)))]) if level else text


def make_vague(text: str, level: float, generator: np.random.Generator) -> str:
    """Replace sentences that state or deny a finding by ones that say nothing definite.

    Args:
        text: a report.
        level: share of those sentences that is replaced.
        generator: draws which.

    Returns:
        The text; unchanged where it states none of the library's findings.
    """
    if not level:
        return text
    sentences = split_sentences(text)
    stating = [i for i, sentence in enumerate(sentences) if _states(sentence)]
    chosen = generator.permutation(len(stating))[: round(level * len(stating))]
    if not len(chosen):
        return text
    for place in chosen:
        sentences[stating[place]] = _VAGUE[place % len(_VAGUE)]
    return " ".join(sentences)


def _states(sentence: str) -> bool:
    return any(decision.evidence for decision in extract_detailed(sentence, FINDINGS).values())


VOLUME_DAMAGE: dict[str, Callable[..., np.ndarray]] = {
    "noise": add_noise,
    "lost_slices": lose_slices,
    "cropped": crop,
}
"""Kind of damage to its function of (volume, level, generator)."""

TEXT_DAMAGE: dict[str, Callable[..., str]] = {"truncated": truncate, "vague": make_vague}
"""Kind of damage to its function of (text, level, generator)."""

UNITS = {
    "noise": " HU",
    "lost_slices": " of the slices",
    "cropped": " of each edge",
    "truncated": " of the words",
    "vague": " of the sentences about findings",
}
"""Kind of damage to what its levels count."""

OpenRecords = Callable[[Sequence[str]], tuple[Sequence[Mapping[str, Any]], Sequence[str]]]
"""Fields to the records of the split and the names of their organs' channels."""


@dataclass(frozen=True)
class Degradation:
    """Predicted uncertainty of the same samples under growing damage of one kind.

    Attributes:
        levels: (L,) ascending, the first 0: undamaged.
        uncertainty: (n, L) trace of the covariance.
        pooled: Spearman's correlation of uncertainty and level over all samples and levels.
        within: mean over the samples of the correlation within one sample, where it is defined.
        intervals: "pooled" and "within" to bootstrap interval; empty when none was requested.
    """

    levels: Float[np.ndarray, " L"]
    uncertainty: Float[np.ndarray, "n L"]
    pooled: float
    within: float
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class Damaged:
    """Traces of samples at every level.

    Attributes:
        rows: (n,) of the split.
        traces: (n, L) of the covariances.
    """

    rows: Int64[np.ndarray, " n"]
    traces: Float[np.ndarray, "n L"]


@dataclass(frozen=True)
class Bootstrap:
    """Intervals over patients, None where no draws were requested."""

    draws: int
    seed: int

    def __call__(self, metric: Callable[[np.ndarray], float], patients: np.ndarray) -> Interval | None:
        """Interval of a metric of rows.

        Args:
            metric: of the rows that were drawn.
            patients: of each row.
        """
        if not self.draws:
            return None
        rows = np.arange(len(patients))
        return bootstrap_interval(
            lambda drawn, _: metric(drawn), rows, rows, draws=self.draws, seed=self.seed, groups=patients
        )


def ladder(kind: str, levels: Sequence[float]) -> Float[np.ndarray, " L"]:
    """Levels of a kind of damage, with 0 in front.

    Args:
        kind: a key of `UNITS`.
        levels: ascending, above 0; shares up to 1.

    Raises:
        ValueError: they are not.
    """
    steps = np.array([0.0, *levels])
    if not np.all(np.diff(steps) > 0) or (kind != "noise" and steps[-1] > 1):
        raise ValueError(
            f"{kind}={tuple(levels)}: give ascending levels above 0"
            + ("" if kind == "noise" else ", shares up to 1")
        )
    return steps


def damaged_volumes(
    data: EmbeddedSplit,
    chosen: Int64[np.ndarray, " n"],
    ladders: Mapping[str, Float[np.ndarray, " L"]],
    embedder: Embedder,
    open_records: OpenRecords,
    seed: int,
) -> dict[str, Damaged]:
    """Embed volumes again at every level of every kind of damage.

    Args:
        data: the split, of Gaussians; it has the undamaged ones.
        chosen: rows to damage.
        ladders: kind to its levels, as from `ladder`.
        embedder: of the model.
        open_records: opens the split.
        seed: of the damage.

    Returns:
        Kind to traces, of the kinds in `VOLUME_DAMAGE`.

    Raises:
        NotEvaluable: the model embeds something else than volumes.
    """
    kinds = [kind for kind in VOLUME_DAMAGE if kind in ladders]
    plan = [(kind, level) for kind in kinds for level in ladders[kind][1:]]
    if not plan:
        return {}
    if "volume" not in embedder.volume_inputs:
        raise NotEvaluable("the model embeds no volumes of HU, and nothing else can be damaged")
    records, _ = open_records(embedder.layout.reads)

    # One decoded volume serves all its levels: they follow each other.
    @lru_cache(maxsize=4)
    def decoded(index: int) -> VolumeInputs:
        return embedder.inputs(records[index], index)

    def read(place: int) -> VolumeInputs:
        index = int(chosen[place // len(plan)])
        kind, level = plan[place % len(plan)]
        inputs, generator = decoded(index), np.random.default_rng([seed, index])
        return {**inputs, "volume": VOLUME_DAMAGE[kind](inputs["volume"], level, generator)}

    embedded = embedder.volumes(len(chosen) * len(plan), read, label="embed damaged volumes")
    traces = embedded.trace.reshape(len(chosen), len(plan))
    intact = data.volumes[chosen].trace
    places = {kind: [i for i, (other, _) in enumerate(plan) if other == kind] for kind in kinds}
    return {kind: Damaged(chosen, np.column_stack([intact, traces[:, own]])) for kind, own in places.items()}


def damaged_texts(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    chosen: Int64[np.ndarray, " n"],
    ladders: Mapping[str, Float[np.ndarray, " L"]],
    text: str,
    seed: int,
) -> dict[str, Damaged]:
    """Embed texts at every level of every kind of damage; those that the highest level leaves alone are out.

    Args:
        data: the split.
        encode_texts: the model's text side, to Gaussians.
        chosen: rows to damage.
        ladders: kind to its levels, as from `ladder`.
        text: field of the records.
        seed: of the damage.

    Returns:
        Kind to traces, of the kinds in `TEXT_DAMAGE` that change any text.
    """
    texts = data.texts.get(text, [""] * len(data.volumes))
    found = {}
    for kind, damage in TEXT_DAMAGE.items():
        versions = {
            int(row): [damage(texts[row], level, np.random.default_rng([seed, int(row)])) for level in steps]
            for steps in [ladders.get(kind, ())]
            for row in chosen
            if len(steps) and texts[row].strip()
        }
        versions = {row: made for row, made in versions.items() if made[-1] != made[0]}
        if versions:
            traces = encode_texts([version for made in versions.values() for version in made]).trace
            found[kind] = Damaged(np.array(list(versions)), traces.reshape(len(versions), -1))
    return found


def measure(
    levels: Float[np.ndarray, " L"],
    damaged: Damaged,
    patients: Int64[np.ndarray, " N"],
    bootstrap: Bootstrap,
) -> Degradation:
    """Correlate uncertainty with the level.

    Args:
        levels: as from `ladder`.
        damaged: traces at each.
        patients: of the full split.
        bootstrap: for the intervals.
    """
    uncertainty = damaged.traces
    each = np.array([spearman(row, levels) for row in uncertainty])

    def pooled(rows: np.ndarray) -> float:
        return spearman(uncertainty[rows].ravel(), np.tile(levels, len(rows)))

    def within(rows: np.ndarray) -> float:
        return mean_of_defined(each[rows])

    everyone = np.arange(len(uncertainty))
    drawn = patients[damaged.rows]
    intervals = {"pooled": bootstrap(pooled, drawn), "within": bootstrap(within, drawn)}
    return Degradation(
        levels,
        uncertainty,
        pooled(everyone),
        within(everyone),
        {name: interval for name, interval in intervals.items() if interval is not None},
    )
