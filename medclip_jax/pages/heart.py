"""The page that `medclip demo --system cmr_clip` leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclip_jax.evaluation.results import number
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.pages import figures
from medclip_jax.pages.beating import Beat, animation, attention_over_time
from medclip_jax.pages.evaluation import add_results
from medclip_jax.pages.html import Page


@dataclass(frozen=True)
class HeartResults:
    """Everything that the page shows.

    Attributes:
        evaluation: on held-out studies, from `evaluate_all`.
        seconds: stage to wall time, in the order they ran.
        peak_memory_gb: of the whole process tree.
        summary: name to value: studies, configs, machine.
        curves: model to the lines of its `metrics.jsonl`.
        one_frame: finding to AUROC of the model that sees one frame.
        motion: finding to AUROC with all frames and with one, in studies without a diagnosis.
        without_diagnosis: how many studies those are.
        shots: examples of each diagnosis to the accuracy with all frames and with one.
        beats: impression of a study and its series, name to frames.
        commands: shell lines to continue with.
    """

    evaluation: Evaluation
    seconds: Mapping[str, float]
    peak_memory_gb: float
    summary: Mapping[str, str]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    one_frame: Mapping[str, float]
    motion: Mapping[str, Sequence[float]]
    without_diagnosis: int
    shots: Mapping[int, Sequence[float]]
    beats: Sequence[tuple[str, Mapping[str, Beat]]]
    commands: str


def write_heart_page(path: str | Path, results: HeartResults) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        results: what to show.

    Returns:
        The path.
    """
    page = Page(
        "medclip demo, cardiac MR",
        "From beating-heart phantoms and impressions to a zero-shot model, tested on studies it never saw.",
    )
    page.tile(
        number(results.evaluation.results["zero_shot"].means["auroc"]), "mean zero-shot AUROC, unseen studies"
    )
    page.tile(f"{sum(results.seconds.values()) / 60:.1f} min", "from nothing to this page")
    page.tile(f"{results.peak_memory_gb:.1f} GB", "peak memory")
    page.section(
        "What the model looks at",
        "Unseen studies, one of each diagnosis. Left: frames as they were prepared, a row for each series. "
        "Right: attention of the class token in the last block, in color. Below: how much each frame gets.",
    )
    for impression, series in results.beats:
        page.paragraph(impression)
        rows = ", ".join(series)
        page.figure(animation(list(series.values())), f"Animated: {rows}", f"From the top: {rows}.")
        page.figure(attention_over_time(series), "Attention over the frames of the sequence")
    page.section("What was run")
    page.pairs(results.summary)
    page.rows(("stage", "seconds"), [(name, f"{value:.1f}") for name, value in results.seconds.items()])
    page.paragraph("Go on from here:")
    page.code(results.commands)
    page.section("Training", "Faint: as logged. Bold: running mean.")
    for name, records in results.curves.items():
        page.figure(figures.curves(records, ("loss",), title=name), f"Loss of {name}")
    page.section(
        "Is motion needed?",
        "The control is trained alike and sees one frame of the short-axis cine. In studies with a diagnosis "
        "dysfunction comes with a dilated ventricle, which one frame shows; in the "
        f"{results.without_diagnosis} unseen studies without one, findings tell nothing of each other. "
        "AUROC, 0.5 is chance.",
    )
    page.rows(
        ("finding", "all frames", "one frame"),
        [(name, *map(number, values)) for name, values in results.motion.items()],
    )
    page.paragraph("Accuracy among the four diagnoses by a few examples of each, mean over 100 draws:")
    page.rows(
        ("examples of each", "all frames", "one frame"),
        [(str(shots), *map(number, values)) for shots, values in results.shots.items()],
    )
    add_results(page, results.evaluation, baseline=results.one_frame, baseline_name="one frame")
    return page.write(path)
