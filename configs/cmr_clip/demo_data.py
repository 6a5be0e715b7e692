"""What `medclip demo --system cmr_clip` trains on: which beating hearts, and how they are prepared.

More findings than in the generator's default, and fewer diagnoses: half of the studies have none, and in
those every finding is drawn by itself, which tells apart what is seen and what only comes along.
"""

import dataclasses

from medclip_jax.corpora.cine import DIAGNOSES, FINDINGS, PRESETS
from medclip_jax.reports.findings import CARDIAC_MR_FINDINGS
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.shards.settings import PrepareSettings

PHANTOMS = dataclasses.replace(
    PRESETS["demo"],
    diagnoses=dict.fromkeys(DIAGNOSES, 0.125),
    prevalences=dict.fromkeys(FINDINGS, 0.3),
    phases=8,
)

SIZE, SPACING = (48, 48), (2.8, 2.8)
"""Pixels, and mm of a pixel: 13 cm around the heart."""


def series(name, slices):
    return SeriesSettings(
        name, (None, *SIZE), (None, *SPACING), "MR", (1.0, 99.0), required=False, frames=slices
    )


SETTINGS = PrepareSettings(
    shape=(),
    spacing=(),
    # Of a cine the middle slice, as CMR-CLIP has it.
    series=(series("cine_lax", "middle"), series("cine_sa", "middle"), series("lge_sa", "all")),
    findings=CARDIAC_MR_FINDINGS,
    vocabulary_size=1024,
    vocabulary_patients=1,  # phantoms are nobody
)


def expect(config):
    """Studies as `SETTINGS` makes them."""
    config.data.prepare.update(
        views=tuple(one.name for one in SETTINGS.series),
        frame_shape=SIZE,
        findings=SETTINGS.findings,
        vocabulary_size=SETTINGS.vocabulary_size,
    )
