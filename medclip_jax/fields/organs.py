"""Fields of organs: their share of each cell, and one drawn organ with its text."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from medclip_jax.draws import TEXT_FALLBACK, Draw
from medclip_jax.fields.base import Field
from medclip_jax.fields.texts import Sentence, _lacks_tokenizer, _lacks_weights
from medclip_jax.reports.places import named_organs
from medclip_jax.reports.sentences import split_sentences

if TYPE_CHECKING:
    from medclip_jax.objectives.base import DataSpec


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


class SentenceOrgans(Sentence):
    """1 where the sentence of a token names an organ, affirmed or denied, by the rules for reports."""

    dtype = np.uint8

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(L, O)."""
        return (config.text_length, len(spec.organs))

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No organs were prepared, no tokenizer, or weights by which no text can be drawn."""
        return _lacks_organs(spec) or super().lacks(spec, config)

    def make(self, draw: Draw) -> np.ndarray:
        """Each sentence of the text is read once."""
        organs, sentences = tuple(draw.layout.spec.organs), split_sentences(draw.text)
        named = np.zeros((len(sentences) + 1, len(organs)), np.uint8)  # the last is that of no sentence
        for row, sentence in zip(named, sentences, strict=False):
            row[list(_named(sentence, organs))] = 1
        return named[super().make(draw)]


_named = lru_cache(maxsize=2**16)(named_organs)
"""Reports repeat themselves, and rules take longer than all else of a text."""


def _lacks_organs(spec: DataSpec) -> str:
    if spec.organ_shape:
        return ""
    return (
        "the shards hold no organs: prepare from a table with organ masks and --organ-cell, or set the "
        "weights of config.objective so that it needs none (hipro_ct: config.objective.weights.local=0 and "
        "config.objective.weights.hierarchy=0; asap: config.objective.weights.anatomy=0 and "
        "config.objective.weights.places=0)"
    )
