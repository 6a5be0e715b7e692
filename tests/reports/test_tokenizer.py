"""Tokenizers: parity with transformers on a real folder, training, truncation, errors."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from medclip_jax.reports.findings import FINDINGS
from medclip_jax.reports.prompts import pair
from medclip_jax.reports.tokenizer import Tokenizer, load_tokenizer, train_wordpiece
from medclip_jax.reports.wordpiece import SPECIAL_TOKENS, learn_pieces

TEXTS = [
    "There is no pericardial effusion.",
    "Calcified plaques in the LAD; a 3.5 x 2 cm nodule (cyst?) – oesophagus naïve.",
    "",
    "Cardiothoracic ratio 0.58, Agatston 312! " * 9,
    "[MASK] effusion",
]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return [text for name in FINDINGS for text in pair(name)] * 3


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece(corpus, path, size=300)
    return path


def reference(folder, texts, length):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")[
        "input_ids"
    ]


@pytest.mark.parametrize("length", [8, 40, 512])
def test_parity_with_transformers_on_a_real_folder(real_data, length):
    tokenizer = load_tokenizer(real_data / "minilm")
    ids = tokenizer(TEXTS, length)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, reference(real_data / "minilm", TEXTS, length))
    assert (tokenizer.vocabulary_size, tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (
        30522,
        0,
        101,
        102,
        103,
    )
    assert tokenizer.limit == 512


def test_vocabulary_file_alone_gives_the_same_ids(real_data, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((real_data / "minilm" / "vocab.txt").read_bytes())
    np.testing.assert_array_equal(
        load_tokenizer(tmp_path)(TEXTS, 64), load_tokenizer(real_data / "minilm")(TEXTS, 64)
    )


def test_trained_folder_is_read_by_transformers(folder):
    np.testing.assert_array_equal(load_tokenizer(folder)(TEXTS, 30), reference(folder, TEXTS, 30))


def test_layout_of_a_row(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(["There is cardiomegaly.", ""], 20)
    assert ids.shape == (2, 20)
    assert [tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask] == [0, 2, 3, 4]
    assert ids[0, 0] == tokenizer.cls
    end = int(np.argmax(ids[0] == tokenizer.sep))
    assert (ids[0, end + 1 :] == tokenizer.pad).all()
    assert (ids[0, :end] != tokenizer.pad).all()
    assert ids[1].tolist() == [tokenizer.cls, tokenizer.sep] + [tokenizer.pad] * 18
    assert tokenizer.decode(ids[0]) == "there is cardiomegaly."
    assert tokenizer.count(["There is cardiomegaly."]) == [end + 1]
    assert ids.max() < tokenizer.vocabulary_size


def test_truncation_is_counted_logged_once_and_keeps_the_separator(folder, caplog):
    tokenizer = load_tokenizer(folder)
    with caplog.at_level("WARNING"):
        ids = tokenizer(["There is no cardiomegaly in this report.", "No."], 5)
        tokenizer(["There is no cardiomegaly in this report."], 5)
    assert ids[0, 0] == tokenizer.cls
    assert ids[0, -1] == tokenizer.sep
    assert (tokenizer.truncated, tokenizer.encoded) == (2, 3)
    assert tokenizer.longest > 5
    assert tokenizer.summary().startswith("2 of 3 texts (66.7%) were cut")
    assert len(caplog.records) == 1
    assert "raise the text length" in caplog.text


def test_overflow_error_says_what_to_do(folder):
    tokenizer = load_tokenizer(folder, overflow="error")
    tokenizer(["No."], 5)
    with pytest.raises(
        ValueError, match=r'text 1 of the batch has \d+ tokens but the length is 5.*overflow="truncate"'
    ):
        tokenizer(["No.", "There is no cardiomegaly in this report."], 5)
    with pytest.raises(ValueError, match="'truncate' or 'error'"):
        load_tokenizer(folder, overflow="ignore")


def test_wrong_calls(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(TypeError, match=r"\[text\]"):
        tokenizer("one text", 8)
    with pytest.raises(ValueError, match="at least 3"):
        tokenizer(["x"], 2)
    assert tokenizer([], 8).shape == (0, 8)


def test_length_beyond_the_encoder(real_data):
    with pytest.raises(ValueError, match="at most 512"):
        load_tokenizer(real_data / "minilm")(["x"], 513)


def test_copies_travel_to_data_workers(folder):
    tokenizer = load_tokenizer(folder)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert isinstance(copy, Tokenizer)
    np.testing.assert_array_equal(copy(TEXTS, 16), tokenizer(TEXTS, 16))


def test_training_is_the_same_in_any_order_and_process(corpus, folder, tmp_path):
    train_wordpiece(reversed(corpus), tmp_path / "a", size=300)
    program = (
        "import sys, json; from medclip_jax.reports.tokenizer import train_wordpiece;"
        "train_wordpiece(json.load(sys.stdin), sys.argv[1], size=300)"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "b")], input=json.dumps(corpus), text=True, check=True
    )
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (
            (folder / name).read_bytes()
            == (tmp_path / "a" / name).read_bytes()
            == (tmp_path / "b" / name).read_bytes()
        )


def test_trained_vocabulary(folder, corpus):
    vocabulary = (folder / "vocab.txt").read_text().splitlines()
    assert tuple(vocabulary[:5]) == SPECIAL_TOKENS
    assert len(set(vocabulary)) == len(vocabulary) <= 300
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocabulary_size == len(vocabulary)
    unknown = vocabulary.index("[UNK]")
    assert not (tokenizer(corpus, 40) == unknown).any()


def test_pieces_by_hand():
    # Pairs (a, ##b) 5, (##b, ##c) 3: "ab" is merged first, then (ab, ##c) 3; the pair (x, ##y) 1 is too rare.
    assert learn_pieces({"ab": 2, "abc": 3, "xy": 1}, size=100) == [
        *SPECIAL_TOKENS, "##b", "##c", "##y", "a", "x", "ab", "abc",
    ]  # fmt: skip
    # A tie is broken by spelling, and the size is kept.
    assert learn_pieces({"cd": 2, "ab": 2}, size=10)[-1] == "ab"
    assert len(learn_pieces({"cd": 2, "ab": 2}, size=10)) == 10
    # A run, a ##a ##a ##a: (##a, ##a) counts 4 and merges from the left, a ##aa ##a; then a tie.
    assert learn_pieces({"aaaa": 2}, size=9)[5:] == ["##a", "a", "##aa", "##aaa"]


def test_case_can_be_kept(tmp_path):
    tokenizer = train_wordpiece(["Aorta aorta Aorta aorta"], tmp_path, size=100, lowercase=False)
    ids = tokenizer(["Aorta aorta"], 6)[0]
    assert ids[1] != ids[2]
    np.testing.assert_array_equal([ids], reference(tmp_path, ["Aorta aorta"], 6))


def test_missing_and_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a local Hugging Face folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds none of tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="copy it again"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\nword\n")
    with pytest.raises(ValueError, match=r"lacks \[UNK\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{oops")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="every report is empty"):
        train_wordpiece(["", "  "], tmp_path / "new")


def test_import_is_light():
    program = (
        "import sys; import medclip_jax.reports.tokenizer, medclip_jax.reports.findings;"
        "print([m for m in ('transformers', 'torch', 'jax', 'tokenizers', 'spacy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def learned(folder) -> set[str]:
    """Pieces of several letters."""
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return {line.removeprefix("##") for line in lines if len(line.removeprefix("##")) > 1}


def test_words_of_few_patients_are_spelled_and_not_learned(tmp_path):
    texts = [f"The heart is large. {'Zabrocki' if n < 4 else 'Nobody'} says so." for n in range(12)]
    patients = [n // 2 for n in range(12)]  # six, of two reports each
    rare = train_wordpiece(texts, tmp_path / "one", 500)
    assert "zabrocki" in learned(tmp_path / "one")
    tokenizer = train_wordpiece(texts, tmp_path / "five", 500, patients=patients, minimum_patients=5)
    assert {"heart", "large", "nobody"} - learned(tmp_path / "five") == {"nobody"}
    assert not any(piece in "zabrocki" for piece in learned(tmp_path / "five"))
    # They can still be written, letter by letter.
    assert tokenizer.decode(tokenizer(["Zabrocki"], 32)[0]) == rare.decode(rare(["Zabrocki"], 32)[0])
    assert tokenizer.count(["Zabrocki"])[0] == len("Zabrocki") + 2


def test_names_of_doctors_and_numbers_are_not_learned(tmp_path):
    texts = [
        f"The heart is large. Signed by Dr. Zabrocki. Case 4711815, MRN0815, 2024. {n}" for n in range(9)
    ]
    train_wordpiece(texts, tmp_path, 500, patients=range(9), minimum_patients=5)
    found = learned(tmp_path)
    assert {"heart", "signed", "2024"} <= found
    assert not any(
        piece in "zabrocki" or piece in "4711815" or piece in "mrn0815" for piece in found - {"08"}
    )


def test_texts_of_nobody_are_learned_whole(tmp_path):
    texts = ["The heart is large."] * 2 + ["There is cardiomegaly."] * 2
    train_wordpiece(texts, tmp_path, 500, patients=["p", "q", None, None], minimum_patients=5)
    assert "cardiomegaly" in learned(tmp_path)
    assert "heart" not in learned(tmp_path)
