"""What is drawn of a record for one sample: its text, an organ, and whatever a field of one's own draws."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from medclip_jax.reports.sentences import split_sentences

if TYPE_CHECKING:
    from medclip_jax.fields import Layout

Record = Mapping[str, Any]
"""A decoded record; see "Prepared shards" in `docs/architecture.md`."""

TEXT_FALLBACK = ("report", "findings_text", "impression", "statements")
"""Where the drawn text is empty, the first of these that is not takes its place."""

SOME_STATEMENTS = "some_statements"
"""A random non-empty part of the statements, in random order: as short as the prompts of zero-shot use."""


class Draw:
    """One sample of one record: what is drawn of it, each thing once, for all fields that show it.

    The text and then the organ are drawn from the sample's own generator. Whatever else is drawn has a
    generator of its own, which follows from the sample's generator and a name (`once`): a field that is new,
    or that nobody asked for, so never changes what is drawn for the others.

    Args:
        record: decoded, with the arrays that the fields read.
        index: of the record in its split.
        layout: of the batch.
        rng: the sample's own; None in evaluation: then the draw follows from the index, and is the same
            every time.

    Attributes:
        training: False in evaluation, where a field takes the middle instead of what is drawn, if it has one.
    """

    def __init__(self, record: Record, index: int, layout: Layout, rng: np.random.Generator | None):
        self.record = record
        self.index = index
        self.layout = layout
        self.training = rng is not None
        self._rng = np.random.default_rng(index) if rng is None else rng
        # Read before anything is drawn: its numbers are the sample's alone.
        state = self._rng.bit_generator.state["state"]
        self._words = [int(word) for _, part in sorted(state.items()) for word in np.ravel(part)]
        self._drawn: dict[str, Any] = {}

    @cached_property
    def text(self) -> str:
        """The text that is shown, by the weights of `config.data.text`."""
        config = self.layout.config
        return choose_text(self.record, config.text, self._rng, config.most_statements)

    @cached_property
    def organ(self) -> int:
        """Channel of the organ that is shown, -1 where there is none; see `choose_organ`."""
        _ = self.text  # drawn before it, by whoever reads it first
        return choose_organ(self.record, self.layout.spec.organs, self._rng)

    @cached_property
    def organ_text(self) -> Mapping[str, Any] | None:
        """What the report says of that organ: `text` and whether it is `normal`; None without an organ."""
        return (
            self.record["organ_sentences"][self.layout.spec.organs[self.organ]] if self.organ >= 0 else None
        )

    def once(self, name: str, choose: Callable[[np.random.Generator], Any]) -> Any:
        """What `choose` draws, at the first call; the same at every later one of this sample.

        Args:
            name: of what is drawn. Its generator follows from it.
            choose: draws it.
        """
        if name not in self._drawn:
            self._drawn[name] = choose(np.random.default_rng([*self._words, zlib.crc32(name.encode())]))
        return self._drawn[name]


def choose_text(
    record: Record, weights: Mapping[str, float], rng: np.random.Generator, most_statements: int = 0
) -> str:
    """Draw which text of a record is shown.

    The draw ignores whether a text is empty; if it is, the first non-empty one of `TEXT_FALLBACK` is
    taken, and "" only where the record has no text at all.

    Args:
        record: with the text fields.
        weights: field name to weight; need not sum to 1.
        rng: the sample's own.
        most_statements: that `SOME_STATEMENTS` takes; 0 for as many as there are.
    """
    # In a fixed order, because a mapping's own may differ between a config file and its JSON.
    names = [name for name in (*TEXT_FALLBACK, SOME_STATEMENTS) if weights.get(name, 0.0) > 0]
    cumulative = np.cumsum([weights[name] for name in names], dtype=np.float64)
    drawn = names[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]
    if drawn == SOME_STATEMENTS:
        statements = split_sentences(str(record.get("statements", "")))
        if statements:
            count = 1 + int(rng.integers(min(len(statements), most_statements or len(statements))))
            return " ".join(statements[i] for i in rng.permutation(len(statements))[:count])
    for name in (drawn, *TEXT_FALLBACK):
        text = str(record.get(name, "")).strip()
        if text:
            return text
    return ""


def possible_texts(record: Record, weights: Mapping[str, float], most_statements: int = 0) -> set[str]:
    """All texts that `choose_text` can draw of a record.

    Args:
        record: with the text fields.
        weights: field name to weight.
        most_statements: that `SOME_STATEMENTS` takes.

    Raises:
        ValueError: `SOME_STATEMENTS` takes neither 1 nor 2, and there are too many to list.
    """
    found = set()
    for drawn in (*TEXT_FALLBACK, SOME_STATEMENTS):
        if weights.get(drawn, 0.0) <= 0:
            continue
        statements = split_sentences(str(record.get("statements", ""))) if drawn == SOME_STATEMENTS else []
        if statements:
            if most_statements not in (1, 2):
                raise ValueError(
                    f"config.data.most_statements={most_statements} draws from too many texts to list them: "
                    "set it to 1 or 2, or config.data.text.some_statements to 0"
                )
            for count in range(1, most_statements + 1):
                found |= {" ".join(chosen) for chosen in itertools.permutations(statements, count)}
            continue
        texts = (str(record.get(name, "")).strip() for name in (drawn, *TEXT_FALLBACK))
        found.add(next((text for text in texts if text), ""))
    return found


def choose_organ(record: Record, organs: Sequence[str], rng: np.random.Generator) -> int:
    """Draw one organ, each with the same chance, among those that a record both shows and describes.

    Args:
        record: with `organs` (O, d, h, w) and `organ_sentences`, or without.
        organs: names of the channels.
        rng: the sample's own.

    Returns:
        Its channel, -1 where there is none to draw; then nothing is drawn.
    """
    maps = record.get("organs")
    if maps is None or np.size(maps) == 0:
        return -1
    sentences = record.get("organ_sentences", {})
    shown = [index for index, name in enumerate(organs) if name in sentences and np.any(maps[index])]
    return shown[int(rng.integers(len(shown)))] if shown else -1


def choose_frames(
    lengths: Sequence[int], count: int, rng: np.random.Generator | None
) -> list[Int[np.ndarray, " kept"]]:
    """Choose frames of a study's series, taken as one sequence, one series after the other.

    Args:
        lengths: frames of each series.
        count: frames that are wanted of all together.
        rng: draws one of each equal interval; None takes the middle ones.

    Returns:
        Places in each series, rising.
    """
    total, ends = sum(lengths), np.cumsum(lengths)
    chosen = midpoints(total, count) if rng is None else one_per_interval(total, count, rng)
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [part - start for part, start in zip(parts, ends - lengths, strict=True)]


def midpoints(total: int, count: int) -> Int[np.ndarray, " kept"]:
    """The middle of each of `count` equal intervals of `total` frames; every frame where there are no more.

    Args:
        total: frames that there are.
        count: frames that are wanted.

    Returns:
        min(total, count) indices, rising.
    """
    edges = _edges(total, count)
    return (edges[:-1] + edges[1:] - 1) // 2


def one_per_interval(total: int, count: int, rng: np.random.Generator) -> Int[np.ndarray, " kept"]:
    """A random frame of each of `count` equal intervals; every frame where there are no more.

    Args:
        total: frames that there are.
        count: frames that are wanted.
        rng: draws them.

    Returns:
        min(total, count) indices, rising.
    """
    edges = _edges(total, count)
    return rng.integers(edges[:-1], edges[1:])


def _edges(total: int, count: int) -> Int[np.ndarray, " edges"]:
    kept = min(total, count)
    return np.arange(kept + 1) * total // max(kept, 1)
