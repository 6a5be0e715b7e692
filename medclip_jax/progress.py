"""How far a command is: a bar in a terminal or a notebook, a line now and then in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TextIO, TypeVar

SECONDS_BETWEEN_LINES = 30.0
"""At least so long between two lines of a log file."""

Item = TypeVar("Item")


def track(
    *,
    total: int,
    unit: str,
    label: str = "",
    initial: int = 0,
    show: bool = True,
    smoothing: float = 0.3,
    delay: float = 0.0,
) -> Progress:
    """Something that shows how far a piece of work is; use it as a context.

    Args:
        total: units of the whole.
        unit: what is counted, in the singular.
        label: what is done.
        initial: units done before.
        show: False shows nothing.
        smoothing: 0 for the mean rate, up to 1 for the present one; of a bar.
        delay: seconds before anything is shown, so that short work shows nothing.
    """
    if not show:
        return Progress(initial)
    if is_interactive(sys.stderr):
        return _Bar(total, unit, label, initial, smoothing, delay)
    return _Lines(total, unit, label, initial, sys.stderr, delay)


def track_each(
    items: Iterable[Item], *, total: int, unit: str, label: str = "", show: bool = True, delay: float = 0.0
) -> Iterator[Item]:
    """The items, each counted when the next one is wanted; the rest as for `track`."""
    with track(total=total, unit=unit, label=label, show=show, delay=delay) as shown:
        for item in items:
            yield item
            shown.update()


def is_interactive(stream: TextIO) -> bool:
    """Whether somebody looks at what is drawn over itself: a terminal, or a notebook."""
    return stream.isatty() or "ipykernel" in sys.modules


class Progress:
    """Shows nothing; what all kinds share.

    Args:
        initial: units done before.

    Attributes:
        n: units done.
    """

    def __init__(self, initial: int = 0):
        self.n = initial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """So many units more are done."""
        self.n += count

    def note(self, text: str) -> None:
        """What stands behind the numbers, from the next update on."""

    def say(self, line: str) -> None:
        """A line of its own."""
        _write(sys.stdout, line)

    def close(self) -> None:
        """Nothing more will be done."""


class _Bar(Progress):
    """Of tqdm, which draws over itself."""

    def __init__(self, total: int, unit: str, label: str, initial: int, smoothing: float, delay: float):
        from tqdm.auto import tqdm

        super().__init__(initial)
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            desc=label or None,
            smoothing=smoothing,
            delay=delay,
            dynamic_ncols=True,
        )

    def update(self, count: int = 1) -> None:
        super().update(count)
        self._bar.update(count)

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)

    def say(self, line: str) -> None:
        self._bar.write(line)

    def close(self) -> None:
        self._bar.close()


class _Lines(Progress):
    """A line every `SECONDS_BETWEEN_LINES`, and one at the end."""

    def __init__(self, total: int, unit: str, label: str, initial: int, stream: TextIO, delay: float):
        super().__init__(initial)
        self._total, self._unit, self._label, self._stream = total, unit, label, stream
        self._initial, self._delay = initial, delay
        self._begin = self._last = time.monotonic()
        self._note = ""
        self._written: int | None = None

    def update(self, count: int = 1) -> None:
        super().update(count)
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._line()

    def note(self, text: str) -> None:
        self._note = text

    def close(self) -> None:
        is_long = time.monotonic() - self._begin >= self._delay
        if is_long and self.n > self._initial and self.n != self._written:
            self._line()
        self._initial = self.n

    def _line(self) -> None:
        now = time.monotonic()
        seconds = max(now - self._begin, 1e-9)
        rate = (self.n - self._initial) / seconds
        parts = [f"{self.n} of {self._total} {self._unit}s", f"{_duration(seconds)} gone"]
        if rate > 0 and self.n < self._total:
            parts.append(f"{_duration((self._total - self.n) / rate)} left")
        parts += [f"{rate:.3g} {self._unit}s/s", *([self._note] if self._note else [])]
        _write(self._stream, f"{self._label + ': ' if self._label else ''}{', '.join(parts)}")
        self._last, self._written = now, self.n


def _write(stream: TextIO, line: str) -> None:
    # Whoever reads the output may be gone; the work continues.
    with contextlib.suppress(OSError, ValueError):
        print(line, file=stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
