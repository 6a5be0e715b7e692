"""The table of all fields, and the choice of them that a run makes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from medclip_jax.draws import Draw, Record
from medclip_jax.fields.base import ALWAYS, Columns, Field, Measurements, Sample, Study, Tokenizer
from medclip_jax.fields.images import Frames, FrameValid, FrameView, LabelMap, Volume
from medclip_jax.fields.organs import Organ, OrganNormal, Organs, OrganTokens, SentenceOrgans
from medclip_jax.fields.texts import Prompts, ReportTokens, Sentence, Sentences, TextVector, Tokens
from medclip_jax.reports.definitions import BUILT_IN, Findings

if TYPE_CHECKING:
    from medclip_jax.objectives.base import DataSpec

FIELDS: dict[str, Field] = {
    "volume": Volume(),
    "tokens": Tokens(),
    "text_vector": TextVector(),
    "sentence": Sentence(),
    "sentences": Sentences(),
    "sentence_organs": SentenceOrgans(),
    "report_tokens": ReportTokens(),
    "findings": Columns("findings"),
    "labels": Columns("labels"),
    "measurements": Measurements(),
    "prompts": Prompts(),
    "frames": Frames(),
    "view": FrameView(),
    "frame_valid": FrameValid(),
    "organs": Organs(),
    "label_map": LabelMap(),
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
        definitions: the findings that are known, for fields that word them.

    Attributes:
        shared: what each field says that all samples have in common.

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
        definitions: Findings = BUILT_IN,
    ):
        self.names = tuple(dict.fromkeys((*names, *ALWAYS)))
        self.spec = spec
        self.config = config
        self.tokenizer = tokenizer
        self.definitions = definitions
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
        self.shared = {name: field.shared(self) for name, field in self.fields.items()}

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
