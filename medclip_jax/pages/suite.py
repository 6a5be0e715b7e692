"""The page of `medclip evaluate --suite`: systems x tasks, with intervals and the best marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.evaluation.results import number
from medclip_jax.pages.html import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Score:
    """What a system reached in a task.

    Attributes:
        value: NaN where there is none.
        low, high: 95 % interval; NaN where the task gives none.
        reason: why there is no value; "" where there is one.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""

    def text(self, digits: int = 3) -> str:
        """As a cell of a table, such as ``0.812 [0.744, 0.871]``; a dash where there is no value."""
        if math.isnan(self.value):
            return "–"
        shown = number(self.value, digits)
        if math.isnan(self.low):
            return shown
        return f"{shown} [{number(self.low, digits)}, {number(self.high, digits)}]"


@dataclass(frozen=True)
class Column:
    """A task, see `cli.suite_plan.Task`."""

    title: str
    about: str
    chance: str
    best: str
    digits: int


@dataclass(frozen=True)
class Suite:
    """What the page shows.

    Attributes:
        systems: name to title, in order.
        tasks: name to task, in order.
        scores: system to task to score; what is not there has not been run.
        about: title of a system to what it is.
        seconds: stage to (planned, measured) seconds.
        facts: name to value: scans, machine, memory.
        commands: that made it.
        notes: what the reader must mind.
    """

    systems: Mapping[str, str]
    tasks: Mapping[str, Column]
    scores: Mapping[str, Mapping[str, Score]]
    about: Mapping[str, str]
    seconds: Mapping[str, tuple[float, float]]
    facts: Mapping[str, str]
    commands: str
    notes: Sequence[str] = ()

    def marks(self, task: str) -> dict[str, str]:
        """System to "best", or "near" where its value lies in the interval of the best one.

        Ties are all the best. Where no end of a task is the better one, nothing is marked.
        """
        best = self.tasks[task].best
        found = {
            name: scores[task]
            for name, scores in self.scores.items()
            if task in scores and not math.isnan(scores[task].value)
        }
        if not best or not found:
            return {}
        choose = max if best == "highest" else min
        top = choose(score.value for score in found.values())
        marks = {name: "best" for name, score in found.items() if score.value == top}
        edges = [found[name] for name in marks if not math.isnan(found[name].low)]
        near = {
            name: "near"
            for name, score in found.items()
            if any(one.low <= score.value <= one.high for one in edges)
        }
        return near | marks


def write_suite_page(path: str | Path, suite: Suite) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        suite: what it shows.

    Returns:
        The path.
    """
    page = Page("Phantom benchmark", f"{len(suite.systems)} systems, {len(suite.tasks)} tasks")
    for label, value in suite.facts.items():
        if len(value) <= 16:
            page.tile(value, label)
    page.section(
        "Systems and tasks",
        "All numbers are of the test split, on which nothing was learned, chosen or stopped. Bold: the best "
        "of a task. Green: within the 95 % interval of the best, so that these scans do not tell the two "
        "apart. A dash: the system cannot do it, or it was not run; reasons stand below.",
    )
    _table(page, suite)
    page.figure(
        suite_figure(suite),
        "A panel for each task: a point with its interval for each system",
        "Points: value; lines: 95 % bootstrap interval over patients, where there is one; filled: the best.",
    )
    reasons = [
        (suite.systems[name], suite.tasks[task].title, score.reason)
        for name, scores in suite.scores.items()
        for task, score in scores.items()
        if score.reason
    ]
    if reasons:
        page.heading("Not computed")
        page.rows(("system", "task", "why"), reasons, prose=True)
    for note in suite.notes:
        page.paragraph(note, note=True)
    page.section("Tasks", "What each column is; docs/reference/metrics.md has the protocols.")
    page.rows(
        ("task", "what the number is", "chance", "better"),
        [(one.title, one.about, one.chance, one.best) for one in suite.tasks.values()],
        prose=True,
    )
    page.section("Systems", "Trained here, on the same scans, each for the steps stated; none to the end.")
    page.rows(("system", "what it is"), list(suite.about.items()), prose=True)
    page.section(
        "Time",
        "Planned for two CPU cores, and measured here; a stage of 0 s was finished before. "
        "An interrupted run goes on where it stopped.",
    )
    planned, measured = (sum(pair[i] for pair in suite.seconds.values()) for i in (0, 1))
    rows = [
        (name, f"{plan:.0f} s", f"{took:.0f} s" if took else "–")
        for name, (plan, took) in suite.seconds.items()
    ]
    page.rows(
        ("stage", "planned", "measured"), [*rows, ("together", f"{planned:.0f} s", f"{measured:.0f} s")]
    )
    page.pairs(suite.facts)
    page.section("Commands")
    page.code(suite.commands)
    return page.write(path)


def _table(page: Page, suite: Suite) -> None:
    marked = {}
    for j, task in enumerate(suite.tasks, start=1):
        marks = suite.marks(task)
        for i, name in enumerate(suite.systems):
            if name in marks:
                marked[i, j] = marks[name]
    nothing = Score(math.nan)
    rows = [
        [title]
        + [
            suite.scores.get(name, {}).get(task, nothing).text(one.digits)
            for task, one in suite.tasks.items()
        ]
        for name, title in suite.systems.items()
    ]
    page.rows(["", *(one.title for one in suite.tasks.values())], rows, marked=marked)


def suite_figure(suite: Suite) -> Figure:
    """A panel for each task that any system has a value of, systems from top to bottom.

    Args:
        suite: to draw.
    """
    from matplotlib.figure import Figure

    shown = [
        task
        for task in suite.tasks
        if any(not math.isnan(s[task].value) for s in suite.scores.values() if task in s)
    ]
    across = min(4, max(1, len(shown)))
    down = max(1, math.ceil(len(shown) / across))
    height = 0.26 * len(suite.systems) + 0.55
    figure = Figure(figsize=(2.6 * across + 1.2, height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    names = list(suite.systems)
    for axis, task in zip(axes, shown, strict=False):
        marks = suite.marks(task)
        for place, name in enumerate(names):
            score = suite.scores.get(name, {}).get(task)
            if score is None or math.isnan(score.value):
                continue
            best = marks.get(name) == "best"
            color = "#1a7f4b" if best else "#0b5c8a"
            if not math.isnan(score.low):
                axis.plot([score.low, score.high], [place, place], color=color, lw=1.4)
            axis.plot(score.value, place, "o", ms=5, color=color, mfc=color if best else "white")
        axis.set_title(suite.tasks[task].title, fontsize=9)
        axis.set_yticks(range(len(names)), [suite.systems[name] for name in names], fontsize=8)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="x", color="#dcdfe2", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    return figure
