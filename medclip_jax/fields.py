"""What a batch can hold: one table, one entry a field.

A field says which arrays of a record it reads, what shape and type it has, and how it is made. An objective
names those it needs (`Objective.batch_fields`); what is decoded, tokenized and sent to the device, and the
shapes that `medclip check` computes with, follow from the table. `study` and `sample` are in every batch.

A new field is a class here and a line in `FIELDS`. A package of one's own may put an entry there, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Int32

from medclip_jax.reports.sentences import split_sentences

if TYPE_CHECKING:
    from medclip_jax.objectives.base import DataSpec

Record = Mapping[str, Any]
"""A decoded record; see "Prepared shards" in `docs/architecture.md`."""

TEXT_FALLBACK = ("report", "findings_text", "impression", "statements")
"""Where the drawn text is empty, the first of these that is not takes its place."""

SOME_STATEMENTS = "some_statements"
"""A random non-empty part of the statements, in random order: as short as the prompts of zero-shot use."""

ALWAYS = ("study", "sample")
"""Fields of every batch: which samples belong together, and what a sample's randomness is folded from."""


class Tokenizer(Protocol):
    """See `medclip_jax.reports.tokenizer`.

    Attributes:
        pad: id that fills a row up.
    """

    pad: int

    def __call__(self, texts: Sequence[str], length: int) -> Int32[np.ndarray, "B L"]:
        """Ids of B texts, padded or cut to `length`."""
        ...


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


def study_words(study: int) -> Int32[np.ndarray, " words"]:
    """A 64-bit hash as two 32-bit words, low word first, because JAX has no int64 by default."""
    return np.array([study], "<i8").view("<i4").astype(np.int32)


class Field:
    """One entry of a batch.

    Attributes:
        reads: arrays of a record that it is made of.
        dtype: of its array.
        remedy: what to do where records hold no such arrays.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    dtype: ClassVar[type] = np.int32
    remedy: ClassVar[str] = "prepare the shards with it"

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """Of one sample.

        Args:
            spec: what the data fix.
            config: `config.data`.
        """
        raise NotImplementedError

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """Why the data or `config.data` cannot give it, and what to do; "" where they can."""
        return ""

    def make(self, draw: Draw) -> Any:
        """Its value for one sample: an array, or what becomes one of its shape and type."""
        raise NotImplementedError


class Sample(Field):
    """Index of the record in its split."""

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """A number."""
        return ()

    def make(self, draw: Draw) -> int:
        """The index."""
        return draw.index


class Study(Field):
    """Group id, as two words: samples of one study share a report."""

    reads = ("study",)

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """Two words."""
        return (2,)

    def make(self, draw: Draw) -> np.ndarray:
        """The hash of the study."""
        return study_words(int(draw.record["study"]))


class Volume(Field):
    """The prepared volume, HU."""

    reads = ("volume",)
    dtype = np.int16
    remedy = "train an objective that reads what they hold"

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(D, H, W)."""
        return tuple(spec.shape)

    def make(self, draw: Draw) -> np.ndarray:
        """As it was prepared."""
        return draw.record["volume"]


class Tokens(Field):
    """Token ids of the text drawn."""

    reads = TEXT_FALLBACK

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(L,)."""
        return (config.text_length,)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No tokenizer, or weights by which no text can be drawn."""
        return _lacks_tokenizer(spec) or _lacks_weights(config)

    def make(self, draw: Draw) -> np.ndarray:
        """Padded or cut."""
        return draw.layout.tokenizer([draw.text], draw.layout.config.text_length)[0]


class Columns(Field):
    """Status of every finding: 1 present, -1 absent, 0 not mentioned or unknown.

    Args:
        name: "findings", what the report says, or "labels", the ground truth.
    """

    dtype = np.int8

    def __init__(self, name: str):
        self.reads = (name,)

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(F,)."""
        return (len(spec.findings),)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No findings were prepared."""
        return "" if spec.findings else "the shards hold no findings: prepare with --findings"

    def make(self, draw: Draw) -> np.ndarray:
        """As it was prepared."""
        return draw.record[self.reads[0]]


class Organs(Field):
    """Occupancy of every organ in every cell, fraction x 255; zeros where a record shows none."""

    reads = ("organs",)
    dtype = np.uint8

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(O, d, h, w)."""
        return tuple(spec.organ_shape)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No organs were prepared."""
        return _lacks_organs(spec)

    def make(self, draw: Draw) -> np.ndarray:
        """As they were prepared."""
        organs = draw.record.get("organs")
        empty = organs is None or np.size(organs) == 0
        return np.zeros(draw.layout.spec.organ_shape, np.uint8) if empty else organs


class Organ(Field):
    """Channel of the organ drawn among those shown and described, -1 where there is none."""

    reads = (*TEXT_FALLBACK, "organs", "organ_sentences")  # the text is drawn before it
    remedy = "they were prepared by a version that kept none about organs; prepare again into a new folder"

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """A number."""
        return ()

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No organs were prepared, or what `Tokens` lacks of the text that is drawn before."""
        return _lacks_organs(spec) or _lacks_weights(config)

    def make(self, draw: Draw) -> int:
        """The channel."""
        return draw.organ


class OrganNormal(Organ):
    """1 where the text about that organ states nothing abnormal, else 0."""

    dtype = np.int8

    def make(self, draw: Draw) -> bool:
        """Whether it is normal."""
        return draw.organ_text is not None and draw.organ_text["normal"]


class OrganTokens(Organ):
    """Token ids of the text about that organ, padding alone where there is none."""

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(L2,)."""
        return (config.organ_text_length,)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """Likewise, or no tokenizer, or no length."""
        if not config.organ_text_length:
            return (
                "config.data.organ_text_length is 0: set how many tokens of an organ's sentences are read, "
                "such as 128"
            )
        return super().lacks(spec, config) or _lacks_tokenizer(spec)

    def make(self, draw: Draw) -> np.ndarray:
        """Padded or cut."""
        tokenizer, length = draw.layout.tokenizer, draw.layout.config.organ_text_length
        if draw.organ_text is None:
            return np.full(length, tokenizer.pad, np.int32)
        return tokenizer([draw.organ_text["text"]], length)[0]


def _lacks_tokenizer(spec: DataSpec) -> str:
    if spec.vocabulary_size:
        return ""
    return "there is no tokenizer: prepare with --tokenizer train, or set config.data.tokenizer"


def _lacks_weights(config: Any) -> str:
    weights, known = dict(config.text), (*TEXT_FALLBACK, SOME_STATEMENTS)
    unknown = set(weights) - set(known)
    if not unknown and min(weights.values()) >= 0 and any(weight > 0 for weight in weights.values()):
        return ""
    return f"config.data.text={weights}: give a weight above 0 to at least one of {', '.join(known)}"


def _lacks_organs(spec: DataSpec) -> str:
    if spec.organ_shape:
        return ""
    return (
        "the shards hold no organs: prepare from a table with organ masks and --organ-cell, or set the "
        "weights of config.objective so that it needs none (hipro_ct: config.objective.weights.local=0 and "
        "config.objective.weights.hierarchy=0)"
    )


FIELDS: dict[str, Field] = {
    "volume": Volume(),
    "tokens": Tokens(),
    "findings": Columns("findings"),
    "labels": Columns("labels"),
    "organs": Organs(),
    "organ": Organ(),
    "organ_tokens": OrganTokens(),
    "organ_normal": OrganNormal(),
    "study": Study(),
    "sample": Sample(),
}
"""Name in a batch to what it is."""


class Layout:
    """The fields of a run's batches, and how a sample of them is made.

    Args:
        names: fields, from `Objective.batch_fields`; those of `ALWAYS` come along.
        spec: what the data fix.
        config: `config.data`.
        tokenizer: of the run; None where no sample is to be made, and for runs without text.
        arrays: names of the arrays that the records hold, None where that is not known.

    Raises:
        ValueError: a field that is unknown, or that the data cannot give; the message names it and says what
            to do.
    """

    def __init__(
        self,
        names: Collection[str],
        spec: DataSpec,
        config: Any,
        tokenizer: Tokenizer | None = None,
        *,
        arrays: Collection[str] | None = None,
    ):
        self.names = tuple(dict.fromkeys((*names, *ALWAYS)))
        self.spec = spec
        self.config = config
        self.tokenizer = tokenizer
        if unknown := [name for name in self.names if name not in FIELDS]:
            raise ValueError(
                f"no batch field {', '.join(map(repr, unknown))}: medclip_jax.fields.FIELDS has "
                f"{', '.join(FIELDS)}; put an entry there"
            )
        # Entries, and not names alone: worker processes then have those of other packages, too.
        self.fields = {name: FIELDS[name] for name in self.names}
        for name, field in self.fields.items():
            missing = [array for array in field.reads if arrays is not None and array not in arrays]
            reason = field.lacks(spec, config)
            if missing and not reason:
                reason = f"the records hold no {', '.join(missing)}: {field.remedy}"
            if reason:
                raise ValueError(f"the objective needs the batch field {name!r}: {reason}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays of a record that the fields are made of."""
        return tuple(dict.fromkeys(array for field in self.fields.values() for array in field.reads))

    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Field to shape and type of one sample."""
        return {
            name: (field.shape(self.spec, self.config), field.dtype) for name, field in self.fields.items()
        }

    def sample(
        self, record: Record, index: int, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """All fields of one sample, without the batch axis.

        Args:
            record: decoded.
            index: of the record in its split.
            rng: the sample's own; None in evaluation, see `Draw`.
        """
        draw = Draw(record, index, self, rng)
        return {name: np.asarray(field.make(draw), field.dtype) for name, field in self.fields.items()}


def held_arrays(info: Any) -> tuple[str, ...]:
    """Names of the arrays that the records of a prepared folder hold.

    Args:
        info: from `shards.read.open_shards`.
    """
    # Sets from before there were sentences about organs hold none, though they are declared.
    missing = () if "organ_text" in info.settings else ("organ_sentences",)
    return tuple(name for name in info.schema.arrays if name not in missing)
