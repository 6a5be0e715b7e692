"""What `medclip demo` trains on: which phantoms, and how they are prepared.

A box around the heart that holds both lungs. Two scans in three without contrast, as calcium is read from,
moderate to severe findings, and fewer confounders than the generator's default: what a few minutes can learn.
Nodules are several (three on average) and of 12 to 22 mm: voxels here measure 4 mm, on which a nodule of 5 mm
is one faint voxel that nothing tells from a vessel.
"""

import dataclasses

from medclip_jax.corpora.phantom import FINDINGS, PRESETS
from medclip_jax.shards.settings import PrepareSettings

PHANTOMS = dataclasses.replace(
    PRESETS["demo"],
    contrast_probability=0.35,
    severities=(0.4, 1.0),
    confounders=0.5,
    nodule_mm=(12.0, 22.0),
    more_nodules=2.0,
)

SETTINGS = PrepareSettings(
    shape=(64, 60, 72),
    spacing=(4.2, 3.3, 3.7),
    crop="heart",
    findings=FINDINGS,
    vocabulary_size=1024,
    vocabulary_patients=1,  # phantoms are nobody
)


def expect(config):
    """Volumes as `SETTINGS` makes them."""
    config.data.prepare.update(
        shape=SETTINGS.shape,
        spacing=SETTINGS.spacing,
        crop=SETTINGS.crop,
        findings=SETTINGS.findings,
        vocabulary_size=SETTINGS.vocabulary_size,
    )
