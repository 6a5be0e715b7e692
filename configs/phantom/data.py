"""The phantom study's scans: the demo's kind, another seed, more of them."""

import runpy
from pathlib import Path

_DEMO = runpy.run_path(str(Path(__file__).parents[1] / "demo" / "data.py"))

COUNT = 4000
SEED = 1
PHANTOMS = _DEMO["PHANTOMS"]
SETTINGS = _DEMO["SETTINGS"]
