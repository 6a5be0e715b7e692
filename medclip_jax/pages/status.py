"""The page of `medclip status --html`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from medclip_jax.evaluation.results import number
from medclip_jax.pages import figures
from medclip_jax.pages.html import Page
from medclip_jax.training.goodput import BUCKETS
from medclip_jax.training.status import RunStatus

CURVES_PER_FIGURE = 3

MEANINGS = {
    "start": "data, model, restoring, until the first step",
    "compile": "compiling the step",
    "input": "waiting for batches",
    "step": "training",
    "evaluation": "evaluating",
    "checkpoint": "saving, as far as training waits for it",
    "lost": "training that a kill undid, because it came after the last checkpoint",
}
"""Bucket to what is counted in it."""


def duration(seconds: float | None) -> str:
    """Such as "45 s", "12 min", "3.4 h", "2.1 days"; "-" for None."""
    if seconds is None:
        return "-"
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length or (unit == "min" and seconds >= 60):
            return (
                f"{seconds / length:.1f} {unit}"
                if seconds < 20 * length
                else f"{seconds / length:.0f} {unit}"
            )
    return f"{seconds:.0f} s"


def curve_names(status: RunStatus, wanted: Sequence[str] = (), *, terms: bool = False) -> list[str]:
    """What to draw: the wanted metrics, by default the loss and the means of evaluations.

    Args:
        status: of a run.
        wanted: names of metrics.
        terms: by default also the terms of the loss.

    Raises:
        ValueError: a wanted name was never logged; lists those that were.
    """
    logged = sorted({name for record in status.records for name in record} - {"step"})
    for name in wanted:
        if name not in logged:
            raise ValueError(f"{status.workdir} logged no {name!r}, but {', '.join(logged) or 'nothing'}")
    if wanted:
        return list(wanted)
    parts = [name for name in logged if name.startswith("terms/")] if terms else []
    means = [name for name in logged if name.endswith("_mean")]
    # A single term is the loss itself.
    return [name for name in ("loss",) if name in logged] + (parts if len(parts) > 1 else []) + means


def goodput_rows(status: RunStatus) -> list[tuple[str, str, str, str]]:
    """A row for each bucket: name, time, share, meaning."""
    whole = sum(status.seconds.values()) or 1.0
    return [
        (name, duration(status.seconds[name]), f"{status.seconds[name] / whole:.1%}", MEANINGS[name])
        for name in BUCKETS
        if name in status.seconds
    ]


def write_status_page(path: str | Path, statuses: Sequence[RunStatus], *, curves: Sequence[str] = ()) -> Path:
    """Write how runs go as one HTML file.

    Args:
        path: of the file.
        statuses: from `training.status.read_status`; one section each.
        curves: names of metrics to draw, see `curve_names`.

    Returns:
        The path.

    Raises:
        ValueError: see `curve_names`.
    """
    written = time.strftime("%Y-%m-%d %H:%M")
    title = statuses[0].workdir.name if len(statuses) == 1 else f"{len(statuses)} runs"
    page = Page(title, f"as of {written}")
    if len(statuses) == 1:
        status = statuses[0]
        page.tile(status.state, "state")
        page.tile(f"{status.step} / {status.steps or '?'}", "steps")
        page.tile(duration(status.remaining), "left")
        if status.goodput is not None:
            page.tile(f"{status.goodput:.0%}", "of the time spent training")
    for status in statuses:
        _add_run(page, status, curves)
    return page.write(path)


def _add_run(page: Page, status: RunStatus, wanted: Sequence[str]) -> None:
    page.section(
        status.workdir.name,
        f"{status.state}, step {status.step} of {status.steps or '?'}, started {status.starts or '?'} times",
    )
    names = curve_names(status, wanted, terms=True)
    for begin in range(0, len(names), CURVES_PER_FIGURE):
        part = names[begin : begin + CURVES_PER_FIGURE]
        page.figure(figures.curves(status.records, part), f"Curves of {', '.join(part)} over steps")
    if status.seconds:
        page.heading("Where the time went")
        page.rows(("bucket", "time", "share", "what it is"), goodput_rows(status))
    if status.checkpoints:
        page.heading("Checkpoints")
        page.rows(
            ("step", "size", "written"),
            [
                (
                    str(one.step),
                    f"{one.size / 1e6:.1f} MB",
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(one.time)),
                )
                for one in status.checkpoints
            ],
        )
    for name in status.damaged:
        page.paragraph(f"checkpoints/{name} was damaged, and set aside when the run resumed.", note=True)
    if status.evaluation:
        page.heading(f"Evaluation at step {status.evaluation['step']}")
        page.rows(
            ("metric", "value"),
            [(name, number(value)) for name, value in status.evaluation.items() if name != "step"],
        )
