"""The embedded corpus: procedural thoracic CT at physical scale, with labels, organ maps and reports."""

from medclip_jax.corpora.phantom.calcium import agatston_score, cac_grade
from medclip_jax.corpora.phantom.generate import Phantom, generate, roster
from medclip_jax.corpora.phantom.organs import ORGAN_CLASSES, ORGANS
from medclip_jax.corpora.phantom.settings import FINDINGS, PRESETS, PhantomSettings
from medclip_jax.corpora.phantom.writing import write

__all__ = [
    "FINDINGS",
    "ORGANS",
    "ORGAN_CLASSES",
    "PRESETS",
    "Phantom",
    "PhantomSettings",
    "agatston_score",
    "cac_grade",
    "generate",
    "roster",
    "write",
]
