"""The page that `medclip demo` leaves behind: the whole job on one sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.results import number
from medclip_jax.evaluation.retrieval_result import RetrievalResult
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.similarity import similarity
from medclip_jax.evaluation.zero_shot_result import ZeroShotResult
from medclip_jax.pages import figures
from medclip_jax.pages.evaluation import add_results
from medclip_jax.pages.html import Page

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Curves:
    """The training of one stage.

    Attributes:
        title: e.g. "Stage 1: masked autoencoder".
        records: lines of its `metrics.jsonl`, see `figures.read_metrics`.
        names: metrics to draw, e.g. ("loss", "volumes_per_second").
        caption: what the reader should see.
    """

    title: str
    records: Sequence[Mapping[str, Any]]
    names: Sequence[str] = ("loss",)
    caption: str = ""


@dataclass(frozen=True)
class ReconstructionView:
    """One volume through the masked autoencoder, as windowed floats in [-1, 1].

    Attributes:
        original: (D, H, W).
        visible: the same with hidden patches at NaN.
        completed: visible patches as they were, hidden ones as predicted.
        title: e.g. the name of the window.
    """

    original: Float[np.ndarray, "D H W"]
    visible: Float[np.ndarray, "D H W"]
    completed: Float[np.ndarray, "D H W"]
    title: str = ""


@dataclass(frozen=True)
class HeatMapView:
    """One volume with the relevance of its voxels for a prompt.

    Attributes:
        prompt: the text.
        volume: (D, H, W) int16 HU.
        heat: (D, H, W) relevance, `HeatMap.voxels`.
        score: cosine, or difference of two.
        caption: e.g. what the phantom really has, and where.
        window: (low, high) HU shown as black and white.
    """

    prompt: str
    volume: Int16[np.ndarray, "D H W"]
    heat: Float[np.ndarray, "D H W"]
    score: float
    caption: str = ""
    window: tuple[float, float] = figures.SOFT_TISSUE_HU


@dataclass(frozen=True)
class GalleryHit:
    """One volume found for a text.

    Attributes:
        volume: (D, H, W) int16 HU.
        rank: its place, from 1.
        similarity: to the query.
        match: whether it belongs to the query's study.
    """

    volume: Int16[np.ndarray, "D H W"]
    rank: int
    similarity: float
    match: bool


@dataclass(frozen=True)
class GalleryQuery:
    """A report and the volumes nearest to it.

    Attributes:
        text: of the report.
        rank: expected rank of the first match, from 1.
        gallery: number of volumes searched.
        hits: the nearest, best first; the last is the best match where it is not among them.
    """

    text: str
    rank: float
    gallery: int
    hits: Sequence[GalleryHit]


@dataclass(frozen=True)
class RealScan:
    """A real scan through the trained model.

    Attributes:
        name: what to call it; no file name of an archive.
        volume: (D, H, W) int16 HU, prepared.
        probabilities: finding to zero-shot probability.
        notes: what the reader noticed about the file.
        seconds: reading, preparing and embedding.
        heat: relevance for `heat_prompt`, or None.
        heat_prompt: its text.
    """

    name: str
    volume: Int16[np.ndarray, "D H W"]
    probabilities: Mapping[str, float]
    notes: Sequence[str] = ()
    seconds: float = 0.0
    heat: Float[np.ndarray, "D H W"] | None = None
    heat_prompt: str = ""


@dataclass(frozen=True)
class DemoResults:
    """Everything that the page shows.

    Attributes:
        spacing: mm per voxel of every volume below, along depth, height, width.
        evaluation: on held-out phantoms, from `evaluate_all`.
        seconds: stage to wall time, in the order they ran.
        peak_memory_gb: of the whole process tree.
        summary: name to value: phantoms, shape, models, steps, machine.
        curves: training of each stage.
        reconstructions: of the masked autoencoder.
        heat_maps: for prompts.
        gallery: reports and what they find.
        baseline: finding to AUROC of something simpler on the same split; {} for none.
        baseline_name: what that is, e.g. "ten intensity statistics, logistic regression".
        real_scan: None where no path was given.
        commands: shell lines to continue with.
    """

    spacing: Spacing
    evaluation: Evaluation
    seconds: Mapping[str, float]
    peak_memory_gb: float
    summary: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[Curves] = ()
    reconstructions: Sequence[ReconstructionView] = ()
    heat_maps: Sequence[HeatMapView] = ()
    gallery: Sequence[GalleryQuery] = ()
    baseline: Mapping[str, float] = field(default_factory=dict)
    baseline_name: str = "baseline"
    real_scan: RealScan | None = None
    commands: str = ""


def gallery_query(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    records: Sequence[Mapping[str, Any]],
    index: int,
    *,
    text: str = "report",
    count: int = 6,
) -> GalleryQuery:
    """Search a split for the text of one of its records.

    Args:
        data: the embedded split, `Evaluation.data`.
        encode_texts: the model's text side, `Embedder.texts`.
        records: the same split, from `shards.read.open_split`.
        index: of the record whose text is the query.
        text: which of its texts.
        count: volumes to show.

    Returns:
        The query with its hits.
    """
    from medclip_jax.evaluation.ranking import ranks

    query = data.texts[text][index]
    found = similarity(data.volumes, encode_texts([query]))[:, 0]
    match = data.studies == data.studies[index]
    order = np.argsort(-found, kind="stable")
    places = list(range(min(count, len(order))))
    first_match = int(np.flatnonzero(match[order])[0])
    if first_match not in places:
        places[-1] = first_match
    return GalleryQuery(
        text=query,
        rank=float(ranks(found[None], data.studies[index : index + 1], data.studies)[0]),
        gallery=len(found),
        hits=[
            GalleryHit(
                np.array(records[int(order[place])]["volume"]),
                place + 1,
                float(found[order[place]]),
                bool(match[order[place]]),
            )
            for place in places
        ],
    )


def write_demo_page(path: str | Path, results: DemoResults) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        results: what to show; empty parts are left out.

    Returns:
        The path.
    """
    page = Page(
        "medclip demo",
        "From phantom CT scans and reports to a zero-shot model, tested on phantoms it never saw.",
    )
    _tiles(page, results)
    if results.summary or results.commands:
        page.section("What was run")
        page.pairs(results.summary)
        page.rows(
            ("stage", "seconds"), [(name, f"{seconds:.1f}") for name, seconds in results.seconds.items()]
        )
        if results.commands:
            page.paragraph("Go on from here:")
            page.code(results.commands)
    if results.curves:
        page.section("Training", "Faint: as logged. Bold: running mean.")
        for curve in results.curves:
            page.figure(
                figures.curves(curve.records, curve.names, title=curve.title),
                f"Curves of {', '.join(curve.names)}",
                curve.caption,
            )
    if results.reconstructions:
        page.section(
            "Masked autoencoder",
            "Most patches are hidden, the model fills them in. Volumes are held out. Hidden patches are "
            "blue in the middle column; the last column keeps what was visible.",
        )
        for view in results.reconstructions:
            page.figure(
                figures.reconstruction(
                    view.original, view.visible, view.completed, results.spacing, title=view.title
                ),
                "Original, visible and completed slices in three planes",
            )
    add_results(
        page,
        results.evaluation,
        baseline=results.baseline or None,
        baseline_name=results.baseline_name,
    )
    if results.gallery:
        page.section(
            "Reports find their volumes",
            "Each report is a query over all held-out volumes; green marks the volume it was "
            "written for, shown last where others rank before it.",
        )
        for place, query in enumerate(results.gallery, 1):
            _gallery(page, query, results.spacing, f"Query {place}")
    if results.heat_maps:
        page.section(
            "Where the model looks",
            "Relevance of each voxel for a prompt, followed through the attention of the volume tower. "
            "Slices cross its peak.",
        )
        for view in results.heat_maps:
            page.figure(
                figures.slices(
                    view.volume,
                    results.spacing,
                    window=view.window,
                    heat=view.heat,
                    title=f"{view.prompt}   score {view.score:+.3f}",
                ),
                f"Three slices with relevance for: {view.prompt}",
                view.caption,
            )
    if results.real_scan is not None:
        _real_scan(page, results.real_scan, results.spacing)
    return page.write(path)


def _tiles(page: Page, results: DemoResults) -> None:
    for result in results.evaluation.results.values():
        if isinstance(result, ZeroShotResult):
            page.tile(number(result.means["auroc"]), "mean zero-shot AUROC, unseen phantoms")
        elif isinstance(result, RetrievalResult) and 10 in result.text_to_image.recall:
            chance = 10 / max(result.text_to_image.gallery, 10)
            page.tile(number(result.text_to_image.recall[10]), f"report to volume R@10 (chance {chance:.2f})")
    total = sum(results.seconds.values())
    page.tile(f"{total / 60:.1f} min" if total >= 60 else f"{total:.0f} s", "from nothing to this page")
    page.tile(f"{results.peak_memory_gb:.1f} GB", "peak memory")


def _gallery(page: Page, query: GalleryQuery, spacing: Spacing, label: str) -> None:
    hits = [
        (
            figures.thumbnail(hit.volume, spacing),
            f"{hit.rank}. {'match' if hit.match else 'other study'}",
            f"similarity {hit.similarity:+.3f}",
            hit.match,
        )
        for hit in query.hits
    ]
    rank = f"{query.rank:.0f}" if query.rank == round(query.rank) else f"{query.rank:.1f}"
    page.hits(query.text, hits, label=f"{label}: its volume is at rank {rank} of {query.gallery}")


def _real_scan(page: Page, scan: RealScan, spacing: Spacing) -> None:
    page.section(
        "A real scan",
        "A model that has seen nothing but phantoms: this shows that real files go through, not that the "
        "numbers mean anything.",
    )
    page.pairs(
        {
            "scan": scan.name,
            "seconds": f"{scan.seconds:.1f} to read, prepare and embed",
            "notes": ", ".join(scan.notes) or "none",
        }
    )
    page.figure(
        figures.slices(scan.volume, spacing, heat=scan.heat, title=scan.heat_prompt),
        f"Three slices of {scan.name}",
    )
    page.rows(
        ("finding", "zero-shot probability"), [(name, f"{p:.3f}") for name, p in scan.probabilities.items()]
    )
