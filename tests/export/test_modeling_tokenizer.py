"""The WordPiece tokenizer in plain Python gives the ids of the tokenizers package."""

import csv
import json
import sys

import numpy as np
import pytest

from medclip_jax.export.torch.tokenizer import read_tokenizer
from medclip_jax.reports.findings import FINDINGS
from medclip_jax.reports.prompts import pair
from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece

TEXTS = [
    "There is no pericardial effusion.",
    "Calcified plaques in the LAD; a 3.5 x 2 cm nodule (cyst?) – oesophagus naïve, façade, Ångström, İ.",
    "",
    "   \t\n\r\v\f\u00a0\u2003\u200b\ufeff\x00\x7f\ufffd ",
    "心臓は正常です。 heart 心拡大 enlarged 𠀀x",
    "ΟΔΥΣΣΕΥΣ ςΣ straße ǅ ﬁbrosis ½ 10⁻³ ± 5 µg → ok",
    "e\u0301coute E\u0301COUTE ệ क्षि ぱパ 한국어",
    "¿qué? «oui» `x` $5 <b> a_b ^ | ~ = + € …",
    "x" * 100 + " " + "x" * 101 + " " + "pneumono" * 30,
    "[MASK] effusion[SEP]of [CLS]the [UNK] [pad] heart [PAD]",
    "🫀 heart\U0001f9e0brain \ue000 \ud7ff zqxj##ing ##ing",
    "Agatston 312! " * 60,
]


def files_of(folder, *names):
    return {name: (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).exists()}


def assert_equal_ids(folder, texts, lengths, *names):
    reference = load_tokenizer(folder)
    for length in lengths:
        tokenize = read_tokenizer(files_of(folder, *names), length, reference.pad)
        np.testing.assert_array_equal(tokenize(texts).numpy(), reference(texts, length))


ALL = "vocab.txt", "tokenizer.json", "tokenizer_config.json"


def test_a_published_encoder(real_data):
    assert_equal_ids(real_data / "minilm", TEXTS, (3, 8, 40, 512), *ALL)


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_of_ours(tmp_path, lowercase):
    train_wordpiece(
        [text for name in FINDINGS for text in pair(name)] * 3, tmp_path, 250, lowercase=lowercase
    )
    assert_equal_ids(tmp_path, TEXTS, (5, 64), *ALL)
    assert_equal_ids(tmp_path, TEXTS, (64,), "vocab.txt", "tokenizer_config.json")


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip", [True, False])
def test_accents_apart_from_case(tmp_path, real_data, lowercase, strip):
    """As some encoders on the hub have it: what counts is written in tokenizer.json."""
    for name, content in files_of(real_data / "minilm", *ALL).items():
        if name == "tokenizer.json":
            content = json.loads(content)
            content["normalizer"] |= {"lowercase": lowercase, "strip_accents": strip}
            content = json.dumps(content)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "saved").mkdir()
    load_tokenizer(tmp_path).save(tmp_path / "saved")
    assert_equal_ids(tmp_path / "saved", TEXTS, (48,), *ALL)


def test_real_reports(real_data, report_data):
    with (report_data / "ct_rate_reports_labels_800.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    reports = [" ".join(row) for row in rows[1:201]]
    assert sum(map(len, reports)) > 100_000
    assert_equal_ids(real_data / "minilm", reports, (128, 512), *ALL)


def test_every_letter_of_the_first_plane_that_both_know(real_data):
    """Python's and the package's Unicode tables differ in age; letters older than both must agree."""
    reference = load_tokenizer(real_data / "minilm")
    letters = [chr(code) for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"ab{c}cd {c} " for c in letters[i : i + 16]) for i in range(0, len(letters), 16)]
    tokenize = read_tokenizer(files_of(real_data / "minilm", *ALL), 200, reference.pad)
    different = (tokenize(texts).numpy() != reference(texts, 200)).any(axis=1)
    # Latin, Greek, Cyrillic, punctuation, symbols, kana, ideographs: no difference at all.
    for first, last in ((0x0, 0x52F), (0x1E00, 0x205F), (0x2070, 0x2BFF), (0x3000, 0x312F), (0x3400, 0x9FEF)):
        assert not different[first // 16 + 1 : last // 16 - 1].any()
    assert different.mean() < 0.03


def test_a_tokenizer_of_another_kind_needs_the_package(tmp_path, real_data, monkeypatch):
    files = files_of(real_data / "minilm", "tokenizer.json")
    reference = load_tokenizer(real_data / "minilm")
    np.testing.assert_array_equal(read_tokenizer(files, 40, 0)(TEXTS).numpy(), reference(TEXTS, 40))
    assert read_tokenizer({}, 40, 0) is None
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert read_tokenizer(files, 40, 0) is None
