"""Hidden words: an objective that reads them off its volume, off another's, or not at all."""

import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit, in_full_batches
from medclip_jax.evaluation.masked_words import evaluate_masked_words
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.objectives.base import DataSpec, Embedding, Objective, Words

SPEC = DataSpec((2, 2, 2), (1.0, 1.0, 1.0), vocabulary_size=1000)
DATA = SimpleNamespace(text={"report": 1.0}, text_length=12, most_statements=0)
VOCABULARY = ("", "?", "the", "heart", "is", "enlarged", "small", "lungs", "are", "clear", "emphysema", "no")


class Vocabulary:
    """Words by their place in `VOCABULARY`."""

    pad = 0

    def __call__(self, texts, length):
        rows = np.zeros((len(texts), length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            words = [VOCABULARY.index(word) for word in re.findall(r"\w+", text.lower())][:length]
            row[: len(words)] = words
        return rows

    def starts(self, text, length):
        found = [match.start() for match in re.finditer(r"\w+", text)][:length]
        return np.array(found + [-1] * (length - len(found)), np.int32)

    def decode(self, ids):
        return " ".join(VOCABULARY[int(index)] for index in ids)


class Seer(Objective):
    """Hides every second word; knows a report's own words where it sees the volume with its number."""

    fills_words = True
    word_inputs = ("volume", "report_tokens")

    def embed_volumes(self, inputs):
        return Embedding(jnp.ones((len(inputs["volume"]), 2)))

    def fill_words(self, batch, key, *, image="own"):
        tokens = batch["report_tokens"]
        shown = batch["volume"][:, 0, 0, 0]
        shown = {"own": shown, "other": jnp.roll(shown, 1), "none": jnp.full_like(shown, -1)}[image]
        right = (shown == batch["sample"])[:, None] | (jnp.arange(tokens.shape[1]) == 2)
        hidden = (tokens > 0) & (jnp.arange(tokens.shape[1]) % 2 == 0)
        return Words(jnp.where(hidden, 1, tokens), hidden, jnp.where(right, tokens, 1))


REPORTS = (
    "The heart is enlarged.",
    "The lungs are clear.\nNo emphysema.",
    "",
    "The heart is small.",
    "Clear",
)


def fill(patients=(0, 1, 2, 3, 4), batch_size=2, reports=REPORTS, **settings):
    records = [
        {
            "volume": np.full((2, 2, 2), row, np.int16),
            "study": np.int64(row),
            "findings_text": text.split("\n")[0],
            "impression": "".join(text.split("\n")[1:]),
            "report": "",
            "statements": "",
        }
        for row, text in enumerate(reports)
    ]
    embedder = Embedder(Seer(), SPEC, DATA, Vocabulary(), batch_size=batch_size, progress=False)
    ones = np.ones((len(records), 2), np.float32)
    split = EmbeddedSplit("test", ones, np.arange(len(records)), np.array(patients[: len(records)]))
    return evaluate_masked_words(
        split,
        embedder.texts,
        **{"draws": 0, **settings},
        embedder=embedder,
        open_records=lambda fields: (records, ()),
    )


def test_accuracies_and_gains():
    words = fill().groups["words"]
    assert words.words == 2 + 3 + 0 + 2 + 1
    # Place 2 is found by whoever looks: one word of each report that has so many.
    blind = (1 + 1 + 1) / 8
    assert words.values == pytest.approx(
        {
            "own": 1.0,
            "other": blind,
            "none": blind,
            "gain_over_other": 1 - blind,
            "gain_over_none": 1 - blind,
        }
    )
    assert words.intervals == {}


def test_words_of_findings():
    result = fill()
    found = result.groups["finding_words"]
    # Hidden are the, is; the, are, no; the, is; clear. In mentions of four letters or more there is none.
    assert found.words == 0
    assert np.isnan(found.values["own"])
    moved = fill(reports=("The heart enlarged", "No the emphysema", "The heart the is small heart"))
    # "enlarged" and "emphysema" say it; "heart" stands in a sentence that says nothing.
    assert moved.groups["finding_words"].words == 2
    flat = moved.metrics()
    assert flat["words/finding_words"] == 2
    assert flat["gain_over_none/finding_words"] == 0.0  # both in the place that everybody finds
    assert flat["own"] == 1.0


def test_a_neighbor_of_the_same_patient_is_left_out():
    result = fill(patients=(0, 0, 0, 0, 0))
    assert np.isnan(result.groups["words"].values["gain_over_other"])
    assert result.groups["words"].values["gain_over_none"] > 0
    assert "5 reports beside their own patient left out" in result.conditions["another's"]
    alone = fill(batch_size=1)
    assert np.isnan(alone.groups["words"].values["other"])


def test_second_volumes_of_patients_come_last():
    places, before = in_full_batches(np.array([5, 5, 7, 5, 8, 7]), 4)
    np.testing.assert_array_equal(places, [0, 2, 4, 1, 5, 3, 0, 2])
    np.testing.assert_array_equal(before, [1, 0, 2, 4, 2, 5, 3, 0])


def test_the_batch_changes_nothing_but_the_neighbors():
    one, two = fill(batch_size=2), fill(batch_size=4)
    assert one.groups["words"].values["own"] == two.groups["words"].values["own"]
    assert one.groups["words"].values["none"] == two.groups["words"].values["none"]


def test_intervals():
    words = fill(draws=100).groups["words"]
    low, high, _ = words.intervals["gain_over_none"]
    assert low < words.values["gain_over_none"] < high
    assert "[" in str(fill(draws=20))


def test_what_is_shown():
    first, second = fill(pictures=2).reports
    assert "".join(word.text for word in first) == "The heart is enlarged."
    assert [word.hidden for word in first] == [True, False, True, False]
    assert first[0].filled == {"own": "the", "none": "?"}
    assert first[0].right == {"own": True, "none": False}
    assert "".join(word.text for word in second) == "The lungs are clear.\nNo emphysema."


def test_without_reports():
    with pytest.raises(NotEvaluable, match="the split has no reports"):
        fill(reports=("", ""))
