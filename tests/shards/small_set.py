"""The set that tests make of the tiny archives: its settings and key, and what its bytes are."""

import hashlib
from pathlib import Path

from medclip_jax.shards.settings import PrepareSettings

KEY = bytes(range(32))
QUIET = {"key": KEY, "workers": 1, "progress": False}
SETTINGS = PrepareSettings(
    shape=(12, 16, 16),
    spacing=(8.0, 5.0, 5.0),
    cell=4,
    vocabulary_size=200,
    per_shard=2,
    findings=("cardiomegaly", "pericardial_effusion"),
)
SECRET = ("DOE^JANE", "MRN4711", "ACC90210", "secretward")
"""Parts of every raw id, file name and folder in the archives: none may be found in any output."""


def digest(folder: Path) -> dict[str, str]:
    """Path of every file to the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
