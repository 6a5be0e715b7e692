"""Records made up for tests of fields and the pipeline; a module, so that worker processes can import it."""

from types import SimpleNamespace

import numpy as np

from medclip_jax.objectives.base import DataSpec

TEXTS = ("report", "statements", "findings_text", "impression")
ORGANS = ("heart", "lung", "liver", "spleen")
SHAPE = (2, 3, 4)
SPEC = DataSpec(
    SHAPE, (1.0, 1.0, 1.0), findings=("a", "b"), organs=ORGANS, organ_shape=(4, 1, 1, 2), vocabulary_size=100,
    views=("cine", "lge"), frame_shape=(2, 3), label_classes=("liver", "tumor"),
    measurements=("age_years",),
)  # fmt: skip
FIELDS = ("volume", "tokens", "findings", "labels")
ORGAN = ("organs", "organ", "organ_tokens", "organ_normal")


class Records:
    """Volumes of their own number, with four texts and four organs.

    The lung is shown and never described, the spleen is described, never shown. Every third record says
    nothing of any organ; the liver of every second one is not shown.
    """

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        organs = np.zeros((4, 1, 1, 2), np.uint8)
        organs[:2, ..., 1] = 1
        organs[2] = index % 2
        named = [name for name in ORGANS if name != "lung" and index % 3]
        return {
            "volume": np.full(SHAPE, index, np.int16),
            "cine": np.full((index + 1, 2, 3), index, np.int16),
            "lge": np.full((2, 2, 3), index, np.int16),
            "findings": np.array([1, -1], np.int8),
            "labels": np.array([0, index % 2], np.int8),
            "measurements": np.array([index if index % 3 else np.nan], np.float32),
            "study": np.int64(-(2**62) + index),
            **{name: f"{name} {index}" for name in TEXTS},
            "organs": organs,
            "label_map": np.full(SHAPE, index % 3, np.uint8),
            "organ_sentences": {
                name: {"text": f"{TEXTS[ORGANS.index(name)]} {index}", "normal": index % 2 == 0}
                for name in named
            },
        }


class Numbers:
    """Two tokens a text: which field it is, and the record's number."""

    pad = 0

    def __call__(self, texts, length):
        rows = [[TEXTS.index(text.split()[0]), int(text.split()[1])] for text in texts]
        return np.array([row + [0] * (length - 2) for row in rows], np.int32)

    def starts(self, text, length):
        return np.array([0, text.index(" ") + 1] + [-1] * (length - 2), np.int32)


def settings(**changes):
    """`config.data`."""
    weights = {"report": 0.5, "statements": 0.5, "findings_text": 0.0, "impression": 0.0}
    lengths = {"text_length": 3, "most_statements": 0, "organ_text_length": 4, "frames": 5, "views": ()}
    return SimpleNamespace(**{"text": weights, **lengths, "workers": 0, "prefetch": 2, **changes})
