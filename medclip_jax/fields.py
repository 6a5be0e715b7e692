"""What a batch can hold: one table, one entry a field.

A field says which arrays of a record it reads, what shape and type it has, and how it is made. An objective
names those it needs (`Objective.batch_fields`); what is decoded, tokenized and sent to the device, and the
shapes that `medclip check` computes with, follow from the table. `study` and `sample` are in every batch.

A new field is a class here and a line in `FIELDS`. A package of one's own may put an entry there, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Int32

from medclip_jax.draws import SOME_STATEMENTS, TEXT_FALLBACK, Draw, Record, choose_frames
from medclip_jax.reports.sentences import sentence_ends

if TYPE_CHECKING:
    from medclip_jax.objectives.base import DataSpec

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

    def starts(self, text: str, length: int) -> Int32[np.ndarray, " L"]:
        """Character at which each token of a text begins, -1 where a token stands for none of the text."""
        ...


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

    def arrays(self, spec: DataSpec, config: Any) -> tuple[str, ...]:
        """Arrays of a record that it is made of here: `reads`, unless they follow from the data."""
        return self.reads

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


class Sentence(Tokens):
    """Index of the sentence that each of the `tokens` belongs to, -1 where it is of none.

    Of a sentence that `config.data.text_length` cuts, what stays has its index.
    """

    def make(self, draw: Draw) -> np.ndarray:
        """By where tokens begin and sentences end."""
        starts = draw.layout.tokenizer.starts(draw.text, draw.layout.config.text_length)
        ends = sentence_ends(draw.text)
        if not ends:
            return np.full_like(starts, -1)
        # What stands after the last sentence's end, a closing mark, is its own.
        found = np.minimum(np.searchsorted(ends, starts, side="right"), len(ends) - 1)
        return np.where(starts >= 0, found, -1)


class Sentences(Tokens):
    """Number of sentences of that text, with those that `config.data.text_length` cuts off."""

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """A number."""
        return ()

    def make(self, draw: Draw) -> int:
        """The number."""
        return len(sentence_ends(draw.text))


def report_text(record: Record) -> str:
    """Findings and impression of a record; the report as it stands, where it has neither part."""
    parts = (str(record.get(name, "")).strip() for name in ("findings_text", "impression"))
    return "\n".join(part for part in parts if part) or str(record.get("report", ""))


class ReportTokens(Tokens):
    """Token ids of `report_text`."""

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No tokenizer."""
        return _lacks_tokenizer(spec)

    def make(self, draw: Draw) -> np.ndarray:
        """Padded or cut."""
        return draw.layout.tokenizer([report_text(draw.record)], draw.layout.config.text_length)[0]


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


class Frames(Field):
    """Frames of a study, one series after the other, as prepared: 0 to `volumes.modality.WINDOW_TOP`.

    Of more frames than `config.data.frames`, one of each equal interval is shown: drawn in training, the
    middle one in evaluation. Of fewer, all, and zeros after them.
    """

    dtype = np.int16

    def arrays(self, spec: DataSpec, config: Any) -> tuple[str, ...]:
        """The series that are shown."""
        return chosen_views(spec, config)

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(T, H, W)."""
        return (config.frames, *spec.frame_shape)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No series of frames, or none of those that `config.data.views` names."""
        if not spec.views:
            return "the shards hold no series of frames: prepare with --corpus cmr"
        unknown = [name for name in config.views if name not in spec.views]
        if unknown:
            return (
                f"config.data.views names {', '.join(unknown)}; the shards hold {', '.join(spec.views)}: "
                "take of those, or () for all"
            )
        return "" if config.frames > 0 else "config.data.frames is 0: set how many a model sees, such as 64"

    def make(self, draw: Draw) -> np.ndarray:
        """Those that are shown, padded."""
        frames = np.zeros(self.shape(draw.layout.spec, draw.layout.config), np.int16)
        start = 0
        for name, places in shown_frames(draw):
            frames[start : start + len(places)] = draw.record[name][places]
            start += len(places)
        return frames


class FrameView(Frames):
    """Series that each frame is of, by its place in `DataSpec.views`; -1 where there is no frame."""

    dtype = np.int32

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(T,)."""
        return (config.frames,)

    def make(self, draw: Draw) -> np.ndarray:
        """Of those that are shown."""
        order = draw.layout.spec.views
        views = [order.index(name) for name, places in shown_frames(draw) for _ in places]
        return np.array(views + [-1] * (draw.layout.config.frames - len(views)))


class FrameValid(FrameView):
    """1 where there is a frame, 0 where there is padding."""

    dtype = np.int8

    def make(self, draw: Draw) -> np.ndarray:
        """Of those that are shown."""
        shown = sum(len(places) for _, places in shown_frames(draw))
        return np.arange(draw.layout.config.frames) < shown


def chosen_views(spec: DataSpec, config: Any) -> tuple[str, ...]:
    """The series of frames that `config.data.views` names, in the data's order; () names all."""
    return tuple(name for name in spec.views if not config.views or name in config.views)


def shown_frames(draw: Draw) -> list[tuple[str, np.ndarray]]:
    """Which frames of a study are shown: name of a series to places in it, rising, for each that has some.

    Args:
        draw: of the sample; its fields all get the same answer.
    """
    names, count = chosen_views(draw.layout.spec, draw.layout.config), draw.layout.config.frames
    # A study may lack a series that is not required.
    lengths = [len(draw.record.get(name, ())) for name in names]
    chosen = draw.once("frames", lambda rng: choose_frames(lengths, count, rng if draw.training else None))
    return [(name, places) for name, places in zip(names, chosen, strict=True) if len(places)]


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
        "config.objective.weights.hierarchy=0; asap: config.objective.weights.anatomy=0)"
    )


FIELDS: dict[str, Field] = {
    "volume": Volume(),
    "tokens": Tokens(),
    "sentence": Sentence(),
    "sentences": Sentences(),
    "report_tokens": ReportTokens(),
    "findings": Columns("findings"),
    "labels": Columns("labels"),
    "frames": Frames(),
    "view": FrameView(),
    "frame_valid": FrameValid(),
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
            missing = [
                array for array in field.arrays(spec, config) if arrays is not None and array not in arrays
            ]
            reason = field.lacks(spec, config)
            if missing and not reason:
                reason = f"the records hold no {', '.join(missing)}: {field.remedy}"
            if reason:
                raise ValueError(f"the objective needs the batch field {name!r}: {reason}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays of a record that the fields are made of."""
        made_of = (field.arrays(self.spec, self.config) for field in self.fields.values())
        return tuple(dict.fromkeys(array for arrays in made_of for array in arrays))

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
