"""What every field says of itself, and the fields that are no text and no picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Int32

from medclip_jax.draws import Draw

if TYPE_CHECKING:
    from medclip_jax.fields.layout import Layout
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

    def shared(self, layout: Layout) -> Any:
        """What all samples have in common, worked out once; it is then `Layout.shared[name]`."""
        return None

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


class Measurements(Field):
    """Numbers that were measured, by the names of `DataSpec.measurements`; NaN where unknown."""

    reads = ("measurements",)
    dtype = np.float32

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(M,)."""
        return (len(spec.measurements),)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No measurements were prepared."""
        if spec.measurements:
            return ""
        return "the shards hold no measurements: prepare a table with columns measurement:NAME"

    def make(self, draw: Draw) -> np.ndarray:
        """As they were prepared."""
        return draw.record["measurements"]
