"""The phantom study's scans: the demo's kind, another seed, more of them."""

from ..demo.data import PHANTOMS, SETTINGS

__all__ = ["COUNT", "PHANTOMS", "SEED", "SETTINGS"]

COUNT = 4000
SEED = 1
