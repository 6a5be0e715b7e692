"""Fields of texts: tokens of what was drawn, sentences of the full report, prompts of findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medclip_jax.draws import SOME_STATEMENTS, TEXT_FALLBACK, Draw, Record
from medclip_jax.fields.base import Columns, Field
from medclip_jax.reports.prompts import worded
from medclip_jax.reports.sentences import sentence_ends
from medclip_jax.text_vectors import TextVectors

if TYPE_CHECKING:
    from medclip_jax.fields.layout import Layout
    from medclip_jax.objectives.base import DataSpec


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


class TextVector(Tokens):
    """What a frozen text encoder makes of the text drawn, looked up in `config.data.text_vectors`."""

    dtype = np.float32

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(width,)."""
        return (config.text_vectors.width,)

    def shared(self, layout: Layout) -> TextVectors | None:
        """The opened folder; None where there is no tokenizer.

        Raises:
            ValueError: it is not there, or was made with another width, text length or tokenizer.
        """
        if layout.tokenizer is None:
            return None
        config = layout.config
        if not config.text_vectors.folder:
            raise ValueError(
                "config.data.text_vectors.folder is empty: write it with `medclip cache-text`, or set "
                "config.objective.cached_texts to False"
            )
        found = TextVectors(config.text_vectors.folder)
        wanted = {
            "width": config.text_vectors.width,
            "text_length": config.text_length,
            "tokenizer": layout.tokenizer.fingerprint,
        }
        for name, value in wanted.items():
            if found.settings.get(name) != value:
                raise ValueError(
                    f"the text vectors in {found.folder} have {name} {found.settings.get(name)}, this run "
                    f"{value}: run `medclip cache-text` with this config"
                    + (", or set config.data.text_vectors.width" if name == "width" else "")
                )
        return found

    def make(self, draw: Draw) -> np.ndarray:
        """The vector.

        Raises:
            ValueError: there is none.
        """
        vector = draw.layout.shared["text_vector"].find(Tokens.make(self, draw))
        if vector is None:
            raise ValueError(
                f"record {draw.index} shows a text without a vector in config.data.text_vectors.folder: run "
                "`medclip cache-text` with these shards and this config.data"
            )
        return vector


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


class Prompts(Field):
    """Token ids of a prompt for presence and one for absence of every finding, each pair in a wording drawn.

    They are nobody's: an objective takes those of a batch's first sample, and encodes them once a step.
    """

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(F, 2, L)."""
        return (len(spec.findings), 2, config.prompt_length)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No findings were prepared, no tokenizer, or no wordings."""
        if not config.prompt_wordings:
            return "config.data.prompt_wordings is (): give pairs, such as medclip_jax.reports.prompts.PAIRS"
        return Columns("findings").lacks(spec, config) or _lacks_tokenizer(spec)

    def shared(self, layout: Layout) -> np.ndarray | None:
        """All of them, (W, F, 2, L); None where there is no tokenizer.

        Raises:
            ValueError: a prompt is longer than `config.data.prompt_length`.
        """
        if layout.tokenizer is None:
            return None
        config, names = layout.config, layout.spec.findings
        pairs = [worded(name, config.prompt_wordings, definitions=layout.definitions) for name in names]
        texts = [text for wording in zip(*pairs, strict=True) for pair in wording for text in pair]
        tokens = layout.tokenizer(texts, config.prompt_length + 1)
        for text, row in zip(texts, tokens, strict=True):
            if row[-1] != layout.tokenizer.pad:
                raise ValueError(
                    f"config.data.prompt_length={config.prompt_length} cuts the prompt {text!r}: "
                    "set it higher"
                )
        return tokens[:, :-1].reshape(-1, *self.shape(layout.spec, config))

    def make(self, draw: Draw) -> np.ndarray:
        """Those that were drawn."""
        table = draw.layout.shared["prompts"]
        chosen = draw.once("prompts", lambda rng: rng.integers(len(table), size=table.shape[1]))
        return table[chosen, np.arange(table.shape[1])]


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
