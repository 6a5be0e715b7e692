"""Which sentence a token belongs to, from the text and the tokenizer's offsets."""

from types import SimpleNamespace

import numpy as np
import pytest

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec
from medclip_jax.reports.sentences import sentence_ends, split_sentences
from medclip_jax.reports.tokenizer import train_wordpiece

NAMES = ("tokens", "sentence", "sentences", "report_tokens")
SIXTY = " ".join(f"Finding {n} is clear." for n in range(60))


ORGANS = ("heart", "lung_upper_lobe_left", "lung_lower_lobe_left", "liver")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [
        "Lungs are clear. No pleural effusion is seen. Heart size is 3.5 x 2 cm. Finding 1.",
        "Impression: finding is clear; pleural effusion of 12.5 mm in the left lobe, since 12.03.2020.",
    ]
    return train_wordpiece(texts * 3, tmp_path_factory.mktemp("tokenizer"), 300)


def sample(tokenizer, text, length=64, **record):
    config = SimpleNamespace(
        text={"findings_text": 1.0}, most_statements=0, text_length=length, organ_text_length=0
    )
    spec = DataSpec((2, 2, 2), (1.0, 1.0, 1.0), vocabulary_size=tokenizer.vocabulary_size)
    layout = Layout(NAMES, spec, config, tokenizer)
    return layout.sample({"study": 0, "findings_text": text, **record}, 0, np.random.default_rng(0))


def by_sentence(tokenizer, found):
    count = found["sentence"].max() + 1
    return [tokenizer.decode(found["tokens"][found["sentence"] == index]) for index in range(count)]


def test_each_token_has_the_sentence_it_stands_in(tokenizer):
    text = "Lungs are clear. Heart size is 3.5 x 2 cm. No pleural effusion"
    found = sample(tokenizer, text)
    assert found["sentences"] == 3
    assert by_sentence(tokenizer, found) == [
        tokenizer.decode(tokenizer([sentence], 64)[0]) for sentence in split_sentences(text)
    ]
    special = [index for index, name in enumerate(found["tokens"]) if name in (tokenizer.cls, tokenizer.sep)]
    assert found["sentence"][special].tolist() == [-1, -1]
    assert (found["sentence"][found["tokens"] == tokenizer.pad] == -1).all()


def named(tokenizer, text, length=64):
    """Organs that each of the tokens has, by name."""
    config = SimpleNamespace(
        text={"findings_text": 1.0}, most_statements=0, text_length=length, organ_text_length=0
    )
    spec = DataSpec(
        (2, 2, 2),
        (1.0, 1.0, 1.0),
        organs=ORGANS,
        organ_shape=(4, 1, 1, 1),
        vocabulary_size=tokenizer.vocabulary_size,
    )
    layout = Layout(("sentence", "sentence_organs"), spec, config, tokenizer)
    found = layout.sample({"study": 0, "findings_text": text}, 0, np.random.default_rng(0))
    assert found["sentence_organs"].shape == (length, 4)
    assert found["sentence_organs"].dtype == np.uint8
    rows = [{ORGANS[index] for index in np.flatnonzero(row)} for row in found["sentence_organs"]]
    return [(int(sentence), row) for sentence, row in zip(found["sentence"], rows, strict=True)]


def test_each_token_has_the_organs_that_its_sentence_names(tokenizer):
    text = "Lungs are clear. Finding in the left lower lobe. No cardiomegaly. Clear."
    wanted = [{"lung_upper_lobe_left", "lung_lower_lobe_left"}, {"lung_lower_lobe_left"}, {"heart"}, set()]
    found = named(tokenizer, text)
    assert {sentence for sentence, _ in found} == {-1, 0, 1, 2, 3}
    for sentence, organs in found:
        assert organs == (wanted[sentence] if sentence >= 0 else set())


@pytest.mark.parametrize("text", ["", " ", "Lungs"])
def test_texts_without_a_sentence_or_with_one_name_what_they_name(tokenizer, text):
    found = named(tokenizer, text)
    assert any(organs for _, organs in found) == bool(text.strip())


@pytest.mark.parametrize("text", ["", "  ", "...", "- •"])
def test_a_report_without_a_sentence_has_none(tokenizer, text):
    found = sample(tokenizer, text)
    assert found["sentences"] == 0
    assert (found["sentence"] == -1).all()


def test_a_sentence_begins_right_after_the_stop_of_the_one_before(tokenizer):
    found = sample(tokenizer, "Lungs are clear.heart is clear.")
    assert by_sentence(tokenizer, found) == [
        tokenizer.decode(tokenizer([sentence], 64)[0]) for sentence in ("Lungs are clear.", "heart is clear.")
    ]


def test_one_sentence_and_sentences_of_one_token(tokenizer):
    assert set(sample(tokenizer, "Lungs are clear.")["sentence"].tolist()) == {-1, 0}
    found = sample(tokenizer, "clear\nclear\nclear")
    assert found["sentences"] == 3
    assert [(found["sentence"] == index).sum() for index in range(3)] == [1, 1, 1]


def test_a_cut_keeps_the_index_and_the_number_counts_what_is_lost(tokenizer):
    whole, cut = sample(tokenizer, SIXTY, 512), sample(tokenizer, SIXTY, 20)
    assert whole["sentences"] == cut["sentences"] == 60
    assert whole["sentence"].max() == 59
    kept = int((cut["sentence"] >= 0).sum())
    assert kept == 18  # the places but for [CLS] and [SEP]
    np.testing.assert_array_equal(cut["sentence"][:19], whole["sentence"][:19])
    assert cut["sentence"][-1] == -1
    assert cut["tokens"][-1] == tokenizer.sep


@pytest.mark.parametrize(
    "text",
    [
        "1. Lungs are clear.\n2. No pleural effusion.\n- Heart size is 2 cm",
        "1. Lungs are clear. 2. No pleural effusion. 3. Heart clear.",
        "Pleu-\nral effusion in the left\nlower lobe. Heart is\r\nclear.",
        "Heart clear.\r\n\r\nLungs clear",
        '"Heart clear." "Lungs clear."',
        "LUNGS ARE CLEAR WITHOUT ANY\nPLEURAL EFFUSION.\nHEART SIZE IS 2 CM",
        "Finding " * 400 + "is clear. Heart clear.",
    ],
)
def test_ends_part_the_text_as_it_was_split(text):
    ends = sentence_ends(text)
    sentences = split_sentences(text)
    assert len(ends) == len(sentences)
    assert ends == sorted(ends)
    letters = [character for character in "".join(sentences) if character.isalpha()]
    starts = [0, *ends[:-1]]
    parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert [c for part in parts for c in part if c.isalpha()] == letters
    for part, sentence in zip(parts, sentences, strict=True):
        assert [c for c in part if c.isalpha()] == [c for c in sentence if c.isalpha()]


def test_the_report_is_findings_and_impression(tokenizer):
    found = sample(tokenizer, "Lungs are clear.", impression="No effusion.", report="FINDINGS: ...")
    np.testing.assert_array_equal(
        found["report_tokens"], tokenizer(["Lungs are clear.\nNo effusion."], 64)[0]
    )
    found = sample(tokenizer, "", impression="", report="Heart clear.")
    np.testing.assert_array_equal(found["report_tokens"], tokenizer(["Heart clear."], 64)[0])
