"""What a frozen text encoder makes of every text that a set can show: worked out once, then looked up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

SETTINGS = "text_vectors.json"
KEYS, VECTORS = "keys.npy", "vectors.npy"


class TextVectors:
    """A folder of vectors, found by the token ids of their text.

    Args:
        folder: written by `write_text_vectors`.

    Attributes:
        settings: what the vectors were made with and of: width, text_length, tokenizer, encoder.

    Raises:
        ValueError: there is no such folder, or it is damaged; the message says what to do.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.settings: Mapping[str, Any] = json.loads((self.folder / SETTINGS).read_text())
            # Two words a key, sorted by the first.
            self._keys = np.load(self.folder / KEYS, allow_pickle=False)
            self._vectors = np.load(self.folder / VECTORS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"config.data.text_vectors.folder={str(folder)!r} holds no text vectors ({error}): write "
                "them with `medclip cache-text`"
            ) from None
        shapes = (self._keys.shape, self._vectors.shape)
        if shapes != ((len(self), 2), (len(self), self.width)):
            raise ValueError(
                f"{folder} is damaged (keys {shapes[0]}, vectors {shapes[1]}): run `medclip cache-text` again"
            )

    def __reduce__(self) -> tuple[type[TextVectors], tuple[Path]]:
        # Worker processes open the files themselves, instead of being sent what is in them.
        return TextVectors, (self.folder,)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.settings["width"]

    def find(self, tokens: Int32[np.ndarray, " L"]) -> Float32[np.ndarray, " width"] | None:
        """The vector of a text; None where it is not among them.

        Args:
            tokens: its ids, as long as those that the vectors were made of.
        """
        key = text_key(tokens)
        place = int(np.searchsorted(self._keys[:, 0], key[0]))
        if place == len(self) or tuple(self._keys[place]) != key:
            return None
        return np.asarray(self._vectors[place])


def text_key(tokens: Int32[np.ndarray, " L"]) -> tuple[int, int]:
    """128 bits that tell a text by its ids."""
    digest = hashlib.blake2b(np.ascontiguousarray(tokens, "<i4").tobytes(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def write_text_vectors(
    folder: str | Path,
    keys: Sequence[tuple[int, int]],
    vectors: Float32[np.ndarray, "N width"],
    settings: Mapping[str, Any],
) -> None:
    """Write vectors for `TextVectors`. What lay in the folder under these names is replaced.

    Args:
        folder: to write to; made where it is not there.
        keys: of N texts, from `text_key`; none twice.
        vectors: of these texts.
        settings: kept beside them, with the width.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    order = np.argsort(np.array([first for first, _ in keys], np.uint64), kind="stable")
    # The settings last: a folder without them is none.
    (folder / SETTINGS).unlink(missing_ok=True)
    np.save(folder / KEYS, np.array(keys, np.uint64).reshape(-1, 2)[order])
    np.save(folder / VECTORS, np.asarray(vectors, np.float32)[order])
    content = {**settings, "width": int(vectors.shape[1])}
    (folder / SETTINGS).write_text(json.dumps(content, indent=1) + "\n")
