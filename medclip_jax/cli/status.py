"""`medclip status`: how runs go."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.cli.metric_lines import metric_lines

if TYPE_CHECKING:
    from medclip_jax.training.status import RunStatus

HELP = """\
Show how a run goes: state, progress, time left, where its time went, checkpoints, last evaluation, curves.
Reads the workdir's files alone, so it works while the run continues, and on any machine that sees them.
Several workdirs are listed one a line."""

EPILOG = """\
examples:
  medclip status runs/mae
  medclip status runs/mae --curves loss volumes_per_second
  medclip status runs/mae --html mae.html
  medclip status runs/*
"""

WIDTH, HEIGHT = 64, 7
"""Of a curve, in characters."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, by row and column."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="of `medclip train`")
    parser.add_argument(
        "--curves",
        nargs="+",
        default=(),
        metavar="NAME",
        help="metrics to draw (the loss and evaluated means)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with all curves, too")


def run(args: argparse.Namespace) -> int:
    """Print the status; 0, or 1 where one of several folders holds no run.

    Raises:
        FileNotFoundError: the only folder holds no run.
        ValueError: a curve that was never logged.
    """
    from medclip_jax.training.status import read_status

    statuses, missing = [], []
    for workdir in args.workdirs:
        try:
            statuses.append(read_status(workdir))
        except FileNotFoundError as error:
            if len(args.workdirs) == 1:
                raise
            missing.append(error)
    if len(args.workdirs) == 1:
        print(describe(statuses[0], args.curves))
    elif statuses:
        print(table(statuses))
    for error in missing:
        print(f"medclip status: {error}", file=sys.stderr)
    if args.html and statuses:
        from medclip_jax.pages.status import write_status_page

        print(f"open {write_status_page(args.html, statuses, curves=args.curves)}")
    return 1 if missing else 0


def describe(status: RunStatus, curves: Sequence[str] = ()) -> str:
    """All about one run, as lines of text.

    Args:
        status: from `training.status.read_status`.
        curves: names of metrics to draw, see `pages.status.curve_names`.

    Raises:
        ValueError: a curve that was never logged.
    """
    from medclip_jax.pages.status import curve_names, duration, goodput_rows

    lines = [f"{status.workdir}: {_state(status)}"]
    share = f" ({status.step / status.steps:.0%})" if status.steps else ""
    lines.append(f"step {status.step} of {status.steps or '?'}{share}, left {duration(status.remaining)}")
    lines.append(_rates(status.latest))
    if status.starts > 1:
        lines.append(f"started {status.starts} times")
    for name in curve_names(status, curves):
        points = [(r["step"], r[name]) for r in status.records if name in r and math.isfinite(r[name])]
        if len(points) > 1:
            lines += ["", *chart(name, points)]
    if status.seconds:
        lines += ["", f"goodput {status.goodput:.1%} of {duration(sum(status.seconds.values()))}"]
        lines += [
            f"  {name:12s}{time:>9s} {part:>7s}  {what}" for name, time, part, what in goodput_rows(status)
        ]
    if status.checkpoints:
        lines += ["", "checkpoints"]
        lines += [f"  step {one.step:<8d}{one.size / 1e6:10.1f} MB" for one in status.checkpoints]
    lines += [f"  {name}: damaged, set aside" for name in status.damaged]
    if status.evaluation:
        lines += ["", f"evaluation at step {status.evaluation['step']}"]
        found = {name: value for name, value in status.evaluation.items() if name != "step"}
        lines += [f"  {line}" for line in metric_lines(found, digits=4)]
    return "\n".join(line for line in lines if line is not None)


def table(statuses: Sequence[RunStatus]) -> str:
    """One line for each run.

    Args:
        statuses: from `training.status.read_status`.
    """
    from medclip_jax.pages.status import duration

    rows = [("workdir", "state", "step", "left", "volumes/s", "goodput", "loss", "starts")]
    for status in statuses:
        rate, loss = status.latest.get("volumes_per_second"), status.latest.get("loss")
        rows.append((
            str(status.workdir),
            status.state,
            f"{status.step}/{status.steps or '?'}",
            duration(status.remaining),
            "-" if rate is None else f"{rate:.3g}",
            "-" if status.goodput is None else f"{status.goodput:.0%}",
            "-" if loss is None else f"{loss:.4g}",
            str(status.starts or "?"),
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def chart(
    name: str, points: Sequence[tuple[float, float]], width: int = WIDTH, height: int = HEIGHT
) -> list[str]:
    """A curve drawn with the dots of braille characters: the mean of what falls into each column.

    Args:
        name: above it.
        points: (step, value), finite, at least one.
        width: of the curve in characters.
        height: of the curve in characters.
    """
    first, last = points[0][0], points[-1][0]
    columns: dict[int, list[float]] = {}
    for step, value in points:
        place = (step - first) / (last - first) if last > first else 0.0
        columns.setdefault(round(place * (2 * width - 1)), []).append(value)
    means = {column: sum(values) / len(values) for column, values in columns.items()}
    low, high = min(means.values()), max(means.values())
    cells = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for column in sorted(means):
        row = round((1.0 - (means[column] - low) / (high - low) if high > low else 0.5) * (4 * height - 1))
        for x, y in _line(before or (column, row), (column, row)):
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
        before = (column, row)
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    margin = max(map(len, labels))
    drawn = ["".join(chr(0x2800 + cell) for cell in row) for row in cells]
    steps = f"{first:g}".ljust(width - len(f"{last:g}")) + f"{last:g}"
    return [
        f"{'':{margin}s}  {name}",
        *(f"{label:>{margin}s} |{row}" for label, row in zip(labels, drawn, strict=True)),
        f"{'':{margin}s}  {steps}",
    ]


def _line(begin: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from one to the other."""
    count = max(abs(end[0] - begin[0]), abs(end[1] - begin[1]), 1)
    return [
        tuple(round(a + (b - a) * index / count) for a, b in zip(begin, end, strict=True))
        for index in range(count + 1)
    ]


def _state(status: RunStatus) -> str:
    from medclip_jax.pages.status import duration

    if status.state == "killed":
        return (
            f"killed, or its machine lost: no sign of life for {duration(status.silent)}; "
            "the same command resumes from the last checkpoint"
        )
    if status.state == "stopped":
        return f"stopped {duration(status.silent)} ago; the same command resumes from the last checkpoint"
    if status.state == "running":
        return f"running, last step {duration(status.stalled)} ago"
    if status.state == "unknown":
        return "written by an earlier version, without a heartbeat"
    return status.state


def _rates(latest: Mapping[str, float]) -> str | None:
    parts = [
        f"{latest[name]:{form}} {unit}"
        for name, form, unit in (
            ("volumes_per_second", ".4g", "volumes/s"),
            ("seconds_per_step", ".3g", "s a step"),
            ("input_wait", ".0%", "of it waiting for input"),
            ("utilization", ".1%", "utilization"),
        )
        if name in latest
    ]
    return ", ".join(parts) or None
