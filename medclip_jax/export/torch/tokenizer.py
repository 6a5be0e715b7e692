"""BERT's tokenizer."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TOKENIZER_FILES = "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""Code points that BERT's tokenizer takes for words of their own."""


class WordPiece:
    """BERT's tokenizer of one text: clean, split at spaces and punctuation, cut into known pieces."""

    def __init__(self, vocabulary: dict[str, int], lowercase: bool, strip_accents: bool):
        self.vocabulary, self.lowercase, self.strip_accents = vocabulary, lowercase, strip_accents
        self.special = re.compile(r"(\[(?:PAD|UNK|CLS|SEP|MASK)\])")

    def __call__(self, text: str) -> list[int]:
        """Ids from [CLS] to [SEP], nothing cut."""
        ids = [self.vocabulary["[CLS]"]]
        for part in self.special.split(text):
            for word in [part] if self.special.fullmatch(part) else self._words(part):
                ids += self._pieces(word)
        return [*ids, self.vocabulary["[SEP]"]]

    def _words(self, text: str) -> list[str]:
        kinds = {letter: unicodedata.category(letter) for letter in set(text)}
        letters = []
        for letter in text:
            if letter in "\t\n\r" or kinds[letter][0] == "Z":
                letters.append(" ")
            elif kinds[letter] not in ("Cc", "Cf", "Co", "Cs") and letter != "\ufffd":
                ideograph = any(first <= ord(letter) <= last for first, last in IDEOGRAPHS)
                letters.append(f" {letter} " if ideograph else letter)
        text = "".join(letters)
        if self.strip_accents:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        if self.lowercase:  # letter by letter, as none depends on its neighbors
            text = "".join(c.lower() for c in text)
        return "".join(
            f" {c} " if c in string.punctuation or unicodedata.category(c)[0] == "P" else c for c in text
        ).split()

    def _pieces(self, word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word) <= 100:
            ends = range(len(word), start, -1)
            pieces = ("##" * (start > 0) + word[start:end] for end in ends)
            piece = next((piece for piece in pieces if piece in self.vocabulary), None)
            if piece is None:
                return [self.vocabulary["[UNK]"]]
            ids.append(self.vocabulary[piece])
            start += len(piece) - 2 * (start > 0)
        return ids or [self.vocabulary["[UNK]"]]


def read_tokenizer(files: dict[str, str], length: int, pad: int) -> Callable[[Sequence[str]], Tensor] | None:
    """A function from texts to ids (B, length); None where nothing here can read the files.

    Args:
        files: names of tokenizer files to what is in them.
        length: tokens of a text, special ones included.
        pad: id that fills up.
    """
    if "vocab.txt" in files:
        pieces = files["vocab.txt"].removesuffix("\n").split("\n")
        settings = json.loads(files.get("tokenizer_config.json", "{}"))
        lowercase = settings.get("do_lower_case", True)
        normalizer = json.loads(files.get("tokenizer.json", "{}")).get("normalizer", settings)
        strip_accents = normalizer.get("strip_accents")
        strip_accents = lowercase if strip_accents is None else strip_accents
        encode = WordPiece({piece: index for index, piece in enumerate(pieces)}, lowercase, strip_accents)
    elif "tokenizer.json" in files:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            return None
        backend = Tokenizer.from_str(files["tokenizer.json"])
        backend.no_padding()
        backend.no_truncation()

        def encode(text: str) -> list[int]:
            return backend.encode(text).ids
    else:
        return None

    def tokenize(texts: Sequence[str]) -> Tensor:
        rows = torch.full((len(texts), length), pad)
        for row, ids in zip(rows, map(encode, texts), strict=True):
            ids = ids if len(ids) <= length else ids[: length - 1] + ids[-1:]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    return tokenize
