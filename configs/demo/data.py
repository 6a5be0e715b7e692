"""What `medclip demo` trains on: which phantoms, and how they are prepared.

A box around the heart that holds the great vessels and most of the lungs. Mostly scans without contrast,
as calcium is read from, and fewer confounders than the generator's default: what a few minutes can learn.
"""

import dataclasses

from medclip_jax.corpora.phantom import FINDINGS, PRESETS
from medclip_jax.shards.settings import PrepareSettings

PHANTOMS = dataclasses.replace(PRESETS["demo"], contrast_probability=0.2, confounders=0.5)

SETTINGS = PrepareSettings(
    shape=(48, 64, 80),
    spacing=(3.5, 3.2, 3.2),
    crop="heart",
    findings=FINDINGS,
    vocabulary_size=1024,
)
