"""What `medclip demo` trains on: which phantoms, and how they are prepared.

The whole chest at 3.5 x 3.5 x 4 mm: coarse enough for two CPU cores, fine enough for a plaque to raise
its voxel by a few hundred HU.
"""

from medclip_jax.corpora.phantom import FINDINGS, PRESETS
from medclip_jax.shards.settings import PrepareSettings

PHANTOMS = PRESETS["demo"]

SETTINGS = PrepareSettings(
    shape=(64, 64, 88),
    spacing=(4.0, 3.5, 3.5),
    findings=FINDINGS,
    vocabulary_size=1024,
)
