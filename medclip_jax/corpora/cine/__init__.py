"""Beating-heart phantoms: cine and late enhancement cardiac MR with known motion, labels and impressions."""

from medclip_jax.corpora.cine.generate import CineStudy, generate
from medclip_jax.corpora.cine.settings import DIAGNOSES, FINDINGS, PRESETS, CineSettings
from medclip_jax.corpora.cine.writing import write

__all__ = [
    "DIAGNOSES",
    "FINDINGS",
    "PRESETS",
    "CineSettings",
    "CineStudy",
    "generate",
    "write",
]
