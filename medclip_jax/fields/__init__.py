"""What a batch can hold: one table, one entry a field.

A field says which arrays of a record it reads, what shape and type it has, and how it is made. An objective
names those it needs (`Objective.batch_fields`); what is decoded, tokenized and sent to the device, and the
shapes that `medclip check` computes with, follow from the table. `study` and `sample` are in every batch.

A new field is a class here and a line in `FIELDS`. A package of one's own may put an entry there, too.
"""

from medclip_jax.fields.base import ALWAYS, Field, Tokenizer, study_words
from medclip_jax.fields.images import chosen_views
from medclip_jax.fields.layout import FIELDS, Layout, held_arrays
from medclip_jax.fields.texts import report_text

__all__ = [
    "ALWAYS",
    "FIELDS",
    "Field",
    "Layout",
    "Tokenizer",
    "chosen_views",
    "held_arrays",
    "report_text",
    "study_words",
]
