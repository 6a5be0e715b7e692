"""Splits, order and keys, decided before any volume is opened."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from medclip_jax.corpora.study import Study
from medclip_jax.shards.keys import hashed_integer, hashed_text, read_key
from medclip_jax.shards.plan import make_plan, report_of, says_nothing
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.settings import PrepareSettings, resolve

KEY = b"key"


def studies(patients: int, each: int = 2, **fields) -> list[Study]:
    return [
        Study(Path(os.devnull), f"v{p}-{i}", f"s{p}", f"p{p}", report=f"Report {p}.", **fields)
        for p in range(patients)
        for i in range(each)
    ]


def split_of(inputs, key=KEY, **changes) -> dict[str, str]:
    """Patient to split."""
    parts = make_plan(inputs, resolve(PrepareSettings(per_shard=7, **changes), inputs), key)
    return {item.study.patient_id: part.split for part in parts for item in part.items}


def test_every_study_is_in_exactly_one_part():
    inputs = studies(50)
    parts = make_plan(inputs, resolve(PrepareSettings(per_shard=7), inputs), KEY)
    assert Counter(i.study.volume_id for p in parts for i in p.items) == Counter(s.volume_id for s in inputs)
    assert all(1 <= len(part.items) <= 7 for part in parts)
    assert {item.row: item.study for p in parts for item in p.items} == dict(enumerate(inputs, start=1))


def test_patients_are_divided_by_the_fractions():
    counts = Counter(split_of(studies(2000, each=1), fractions=(0.6, 0.3, 0.1)).values())
    # Binomial, four standard deviations: 4 * sqrt(2000 * .25) is 90.
    assert abs(counts["train"] - 1200) < 90
    assert abs(counts["validation"] - 600) < 90
    assert abs(counts["test"] - 200) < 60


def test_patients_stay_in_their_split_when_others_are_added():
    before, after = split_of(studies(200)), split_of(studies(400))
    assert all(after[patient] == split for patient, split in before.items())


def test_split_depends_on_seed_and_key():
    reference = split_of(studies(200))
    assert split_of(studies(200)) == reference
    assert split_of(studies(200), seed=1) != reference
    assert split_of(studies(200), key=b"other") != reference


@pytest.mark.parametrize("patients", [3, 4, 6])
@pytest.mark.parametrize("key", [b"a", b"b", b"c", b"d", b"e"])
def test_small_sets_leave_no_split_empty(patients, key):
    assert set(split_of(studies(patients), key=key).values()) == {"train", "validation", "test"}


def test_a_split_of_nothing_stays_empty():
    assert set(split_of(studies(30), fractions=(0.9, 0.1, 0.0)).values()) == {"train", "validation"}
    assert set(split_of(studies(30), fractions=(0.0, 0.0, 1.0)).values()) == {"test"}


def test_given_splits_are_kept_and_pull_a_patients_other_studies_along():
    inputs = studies(30)
    inputs[0] = replace(inputs[0], split="test")  # p0's other study has none
    inputs[2:4] = [replace(study, split="validation") for study in inputs[2:4]]
    chosen = split_of(inputs, fractions=(1.0, 0.0, 0.0))
    assert chosen.pop("p0") == "test"
    assert chosen.pop("p1") == "validation"
    assert set(chosen.values()) == {"train"}


def test_a_patient_in_two_splits_is_an_error_with_a_count_and_no_id():
    inputs = studies(5)
    for row, split in ((0, "train"), (1, "test"), (4, "validation"), (5, "train")):
        inputs[row] = replace(inputs[row], split=split)
    with pytest.raises(ShardError, match="2 patients stand in more than one split") as error:
        split_of(inputs)
    assert "p0" not in str(error.value)


def test_unknown_split():
    with pytest.raises(ShardError, match="unknown splits holdout: a split is one of train"):
        split_of(studies(2, split="holdout"))


def test_order_is_not_the_order_of_the_input():
    inputs = studies(100, each=1)
    parts = make_plan(inputs, resolve(PrepareSettings(fractions=(1, 0, 0)), inputs), KEY)
    rows = [item.row for part in parts for item in part.items]
    assert rows != sorted(rows)
    other = make_plan(inputs, resolve(PrepareSettings(fractions=(1, 0, 0)), inputs), b"other")
    assert rows != [item.row for part in other for item in part.items]


def test_studies_that_share_a_report_are_no_duplicates():
    inputs = [*studies(2), replace(studies(1)[0], volume_id="x", study_id="other", patient_id="other")]
    parts = make_plan(inputs, resolve(PrepareSettings(), inputs), KEY)
    notes = {item.study.volume_id: item.notes for part in parts for item in part.items}
    assert notes["v1-0"] == notes["v1-1"] == ()
    assert notes["x"] == notes["v0-0"] == ("duplicate-report",)


@pytest.mark.parametrize(
    "text", ["", "  ", "Not given.", "not given", "NaN", "none", "N/A", "n/a.", "-", "...", "Null"]
)
def test_texts_that_say_nothing(text):
    assert says_nothing(text)


@pytest.mark.parametrize("text", ["No.", "Normal.", "None of the lobes is affected.", "5 mm", "Na elevated"])
def test_texts_that_say_something(text):
    assert not says_nothing(text)


def test_a_report_is_put_together_from_sections():
    study = Study(Path("a"), "v", "s", "p", sections={"findings": "A.", "impression": "Not given."})
    assert report_of(study) == "Findings: A."
    assert report_of(replace(study, report="Whole. ")) == "Whole."
    assert report_of(replace(study, report="nan")) == "Findings: A."


def test_hashes():
    assert len(hashed_text(KEY, "volume", "a")) == 32
    assert hashed_text(KEY, "volume", "a") != hashed_text(KEY, "study", "a")
    assert hashed_text(KEY, "volume", "a") != hashed_text(b"other", "volume", "a")
    values = [hashed_integer(KEY, "study", str(i)) for i in range(2000)]
    assert len(set(values)) == 2000
    assert all(-(2**63) <= value < 2**63 for value in values)
    assert 800 < sum(value < 0 for value in values) < 1200


def test_key_files(tmp_path):
    key = read_key(tmp_path / "key")
    assert len(key) == 32
    assert read_key(tmp_path / "key") == key
    assert read_key(tmp_path / "other") != key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    for text in ("", "not hex", "abcd"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ShardError, match="not a key file"):
            read_key(tmp_path / "bad")
