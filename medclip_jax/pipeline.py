"""Prepared shards → host batches of integers: which sample at which step, with which text.

Sample n of a run, text included, is a pure function of (seed, n), on any number of hosts and workers.
So a run resumes from the step alone. See `docs/architecture.md`, "A batch".
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, SupportsIndex

import grain
import numpy as np
from jaxtyping import Int32

from medclip_jax.reports.sentences import split_sentences

Record = Mapping[str, Any]
"""A decoded record; see "Prepared shards" in `docs/architecture.md`."""

TEXT_FALLBACK = ("report", "findings_text", "impression", "statements")
"""Where the drawn text is empty, the first of these that is not takes its place."""

SOME_STATEMENTS = "some_statements"
"""A random non-empty part of the statements, in random order: as short as the prompts of zero-shot use."""


class Source(Protocol):
    """Random access to records, such as `shards.read.ShardSource` or a list of dicts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Record: ...


class Tokenizer(Protocol):
    """See `medclip_jax.reports.tokenizer`.

    Attributes:
        pad: id that fills a row up; needed for organ text alone.
    """

    pad: int

    def __call__(self, texts: Sequence[str], length: int) -> Int32[np.ndarray, "B L"]:
        """Ids of B texts, padded or cut to `length`."""
        ...


def choose_text(record: Record, weights: Mapping[str, float], rng: np.random.Generator) -> str:
    """Draw which text of a record is shown.

    The draw ignores whether a text is empty; if it is, the first non-empty one of `TEXT_FALLBACK` is
    taken, and "" only where the record has no text at all.

    Args:
        record: with the text fields.
        weights: field name to weight; need not sum to 1.
        rng: the sample's own.
    """
    # In a fixed order, because a mapping's own may differ between a config file and its JSON.
    names = [name for name in (*TEXT_FALLBACK, SOME_STATEMENTS) if weights.get(name, 0.0) > 0]
    cumulative = np.cumsum([weights[name] for name in names], dtype=np.float64)
    drawn = names[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]
    if drawn == SOME_STATEMENTS:
        statements = split_sentences(str(record.get("statements", "")))
        if statements:
            count = 1 + int(rng.integers(len(statements)))
            return " ".join(statements[i] for i in rng.permutation(len(statements))[:count])
    for name in (drawn, *TEXT_FALLBACK):
        text = str(record.get(name, "")).strip()
        if text:
            return text
    return ""


def study_words(study: int) -> Int32[np.ndarray, " words"]:
    """A 64-bit hash as two 32-bit words, low word first, because JAX has no int64 by default."""
    return np.array([study], "<i8").view("<i4").astype(np.int32)


def to_sample(
    record: Record,
    index: int,
    text: str,
    tokenizer: Tokenizer | None,
    length: int,
    organ_shape: tuple[int, ...] = (),
) -> dict[str, np.ndarray]:
    """One sample in the layout of a batch, without the batch axis.

    Args:
        record: decoded.
        index: of the record in the split.
        text: to tokenize.
        tokenizer: None for runs without text; then there are no `tokens`.
        length: tokens.
        organ_shape: (O, d, h, w) of the set, () where none were prepared. A record without organs gets
            zeros.
    """
    sample = {"sample": np.asarray(index, np.int32), "study": study_words(int(record["study"]))}
    for name, dtype in (("volume", np.int16), ("findings", np.int8), ("labels", np.int8)):
        if name in record:
            sample[name] = np.asarray(record[name], dtype)
    if "measurements" in record:
        sample["measurements"] = np.asarray(record["measurements"], np.float32)
    if tokenizer is not None:
        sample["tokens"] = np.asarray(tokenizer([text], length)[0], np.int32)
    if organ_shape:
        organs = record.get("organs")
        empty = organs is None or np.size(organs) == 0
        sample["organs"] = np.zeros(organ_shape, np.uint8) if empty else np.asarray(organs, np.uint8)
    return sample


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


def organ_sample(
    record: Record, channel: int, organs: Sequence[str], tokenizer: Tokenizer, length: int
) -> dict[str, np.ndarray]:
    """The text of the organ drawn, in the layout of a batch, without the batch axis.

    Args:
        record: decoded.
        channel: from `choose_organ`.
        organs: names of the channels.
        tokenizer: of the run.
        length: tokens.

    Returns:
        `organ` () int32 channel; `organ_tokens` (length,) int32, padding alone where the channel is -1;
        `organ_normal` () int8, 1 where the text states nothing abnormal.
    """
    tokens, normal = np.full(length, tokenizer.pad, np.int32), False
    if channel >= 0:
        sentences = record["organ_sentences"][organs[channel]]
        tokens, normal = tokenizer([sentences["text"]], length)[0], sentences["normal"]
    return {
        "organ": np.asarray(channel, np.int32),
        "organ_tokens": np.asarray(tokens, np.int32),
        "organ_normal": np.asarray(normal, np.int8),
    }


class _Indexed:
    """A source whose records know their index."""

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> tuple[int, Record]:
        index = int(index)
        return index, self.source[index]

    def __repr__(self) -> str:
        return f"_Indexed({len(self)})"


class _Prepare:
    """(index, record), rng → sample; at module level so that worker processes can be given one."""

    def __init__(
        self,
        weights: Mapping[str, float],
        tokenizer: Tokenizer | None,
        length: int,
        organ_shape: tuple[int, ...],
        organs: tuple[str, ...] = (),
        organ_length: int = 0,
    ):
        self.weights = dict(weights)
        self.tokenizer = tokenizer
        self.length = length
        self.organ_shape = organ_shape
        self.organs = organs
        self.organ_length = organ_length

    def __call__(self, element: tuple[int, Record], rng: np.random.Generator) -> dict[str, np.ndarray]:
        index, record = element
        text = choose_text(record, self.weights, rng)
        sample = to_sample(record, index, text, self.tokenizer, self.length, self.organ_shape)
        if self.organ_length:
            channel = choose_organ(record, self.organs, rng)
            sample |= organ_sample(record, channel, self.organs, self.tokenizer, self.organ_length)
        return sample


def train_batches(
    source: Source,
    config: Any,
    tokenizer: Tokenizer | None,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, shuffled anew each epoch, from `start_step` on.

    Batch n holds samples n·B to (n+1)·B - 1 of the shuffled, repeated split; an epoch need not end with a
    batch, and a batch larger than the split holds some records twice. Of each batch, host h of H gets
    every H-th sample from the h-th on.

    Args:
        source: records of the training split.
        config: `config.data`.
        tokenizer: None for runs without text.
        seed: of the run, 0 to 2³² - 1.
        batch_size: global.
        start_step: batches to skip, at no cost.
        process_index: this host.
        process_count: number of hosts.

    Yields:
        A batch of `batch_size // process_count` samples; see `docs/architecture.md`.

    Raises:
        ValueError: empty split, a batch that the hosts cannot share, unknown or no text weights, or organ
            text is wanted of shards that have none, or without a tokenizer.
    """
    if len(source) == 0:
        raise ValueError("the training split is empty: check config.data.train_split")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"config.batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
    weights = dict(config.text)
    known = (*TEXT_FALLBACK, SOME_STATEMENTS)
    unknown = sorted(set(weights) - set(known))
    if unknown or not any(weight > 0 for weight in weights.values()) or min(weights.values()) < 0:
        raise ValueError(
            f"config.data.text={weights}: give a weight above 0 to at least one of {', '.join(known)}"
        )
    organ_length = getattr(config, "organ_text_length", 0)
    if organ_length and (tokenizer is None or not organ_names(source)):
        raise ValueError(
            f"config.data.organ_text_length={organ_length} needs "
            + ("a tokenizer" if tokenizer is None else "shards prepared with --organ-cell")
            + ", or must be 0"
        )
    if organ_length and _is_older_than_organ_text(source):
        raise ValueError(
            f"config.data.organ_text_length={organ_length}: these shards were prepared by a version that "
            "kept no sentences about organs. Prepare them again into a new folder, or set it to 0"
        )
    return _iterate(source, config, tokenizer, seed, batch_size, start_step, process_index, process_count)


def _iterate(
    source: Source,
    config: Any,
    tokenizer: Tokenizer | None,
    seed: int,
    batch_size: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[dict[str, np.ndarray]]:
    prepare = _Prepare(
        config.text,
        tokenizer,
        config.text_length,
        organ_shape(source),
        organ_names(source),
        getattr(config, "organ_text_length", 0),
    )
    # As good as endless. Grain's own endless length overflows where a batch is one sample.
    epochs = 2**62 // len(source)
    samples = (
        grain.MapDataset.source(_Indexed(source)).seed(seed).shuffle().repeat(epochs).random_map(prepare)
    )
    # The host's slice comes after everything random: before it, the draws would depend on the host count.
    batches = samples[process_index::process_count].batch(batch_size // process_count)[start_step:]
    yield from _read_ahead(batches, workers=config.workers, prefetch=config.prefetch)


def evaluation_batches(
    source: Source,
    batch_size: int,
    fields: Sequence[str] = ("volume", "findings", "labels", "study"),
    *,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """All records once, in order.

    Args:
        source: records of a split.
        batch_size: of every batch; the last is filled up with copies of the last record.
        fields: of a record. Texts come as arrays of objects, `study` as two words (see `study_words`).
        prefetch: batches kept ready.

    Yields:
        The fields, `sample` (B,) int32 index, and `valid` (B,) bool, False for the copies.
    """

    def to_element(element: tuple[int, Record]) -> dict[str, np.ndarray]:
        index, record = element
        out = {"sample": np.asarray(index, np.int32)}
        for name in fields:
            value = record[name]
            if name == "study":
                value = study_words(int(value))
            out[name] = np.asarray(value, object) if isinstance(value, str) else np.asarray(value)
        return out

    def stack(elements: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        missing = batch_size - len(elements)
        padded = [*elements, *[elements[-1]] * missing]
        batch = {name: np.stack([element[name] for element in padded]) for name in padded[0]}
        return {**batch, "valid": np.arange(batch_size) < len(elements)}

    elements = grain.MapDataset.source(_Indexed(source)).map(to_element)
    yield from _read_ahead(
        elements.batch(batch_size, drop_remainder=False, batch_fn=stack), workers=0, prefetch=prefetch
    )


def organ_shape(source: Source) -> tuple[int, ...]:
    """(O, d, h, w) of the organ maps of a source, () where it has none."""
    info = getattr(source, "info", None)
    if info is not None:
        return tuple(info.schema.organ_shape) if info.organs else ()
    organs = source[0].get("organs")
    return () if organs is None or np.size(organs) == 0 else tuple(np.shape(organs))


def organ_names(source: Source) -> tuple[str, ...]:
    """Names of the channels of a source's organ maps, () where it has none or does not say."""
    info = getattr(source, "info", None)
    return tuple(info.organs) if info is not None else ()


def _is_older_than_organ_text(source: Source) -> bool:
    settings = getattr(getattr(source, "info", None), "settings", None)
    return bool(settings) and "organ_text" not in settings


def _read_ahead(batches: grain.MapDataset, *, workers: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    dataset = batches.to_iter_dataset(reading)
    if workers:
        import absl.flags

        # Grain's workers read absl flags, which nobody parses outside of absl.app.
        absl.flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(1, prefetch // workers)
            ),
            worker_init_fn=_end_with_parent,
        )
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        # Threads and processes that outlive the loop would hold batches, and delay the exit.
        iterator.close()


def _end_with_parent(index: int, count: int) -> None:
    """Have this worker process end when the process that trains is killed, which cannot end it any more.

    It would go on waiting for its batches to be taken. What lies in shared memory is then removed by
    Python's resource tracker, which ends with the last process that uses it.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
