"""Splits, order and keys, decided before any volume is opened."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from medclip_jax.corpora.study import Series, Study
from medclip_jax.shards.keys import hashed_integer, hashed_text, read_key
from medclip_jax.shards.plan import make_plan, report_of, says_nothing
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.settings import PrepareSettings, resolve

KEY = b"key"


def studies(patients: int, each: int = 2, **fields) -> list[Study]:
    return [
        Study((Series(Path(os.devnull)),), f"v{p}-{i}", f"s{p}", f"p{p}", report=f"Report {p}.", **fields)
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
    assert Counter(i.study.record_id for p in parts for i in p.items) == Counter(s.record_id for s in inputs)
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


@pytest.mark.parametrize("key", [b"a", b"b", b"c", b"d"])
def test_where_patients_are_fewer_than_splits_train_comes_first_then_test(key):
    assert set(split_of(studies(1), key).values()) == {"train"}
    assert sorted(split_of(studies(2), key).values()) == ["test", "train"]
    assert set(split_of(studies(1), key, fractions=(0, 0.5, 0.5)).values()) == {"test"}


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
    inputs = [*studies(2), replace(studies(1)[0], record_id="x", study_id="other", patient_id="other")]
    parts = make_plan(inputs, resolve(PrepareSettings(), inputs), KEY)
    notes = {item.study.record_id: item.notes for part in parts for item in part.items}
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
    study = Study(
        (Series(Path("a")),), "v", "s", "p", sections={"findings": "A.", "impression": "Not given."}
    )
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


def items_of(inputs, **changes):
    """Row to item."""
    shards = make_plan(inputs, resolve(PrepareSettings(**changes), inputs), KEY)
    return {item.row: item for shard in shards for item in shard.items}


def test_studies_are_told_apart_by_patient_and_study():
    """Archives number the studies of each patient anew."""
    inputs = [
        Study((Series(Path(os.devnull)),), f"v{n}", study, patient, report=f"Report {patient} {study}.")
        for n, (patient, study) in enumerate(
            (("p1", "1"), ("p2", "1"), ("p2", "1"), ("p2", "2"), ("p", "21"))
        )
    ]
    hashes = [items_of(inputs)[row].study_hash for row in range(1, 6)]
    assert hashes[1] == hashes[2]
    assert len(set(hashes)) == 4
    assert not any(item.notes for item in items_of(inputs).values())


def test_different_reports_of_one_study_are_noted():
    inputs = studies(2, each=3)
    inputs[1] = replace(inputs[1], report=" report  0. ")
    assert not any(item.notes for item in items_of(inputs).values())
    inputs[1] = replace(inputs[1], report="Another.")
    noted = [row for row, item in items_of(inputs).items() if "study-with-several-reports" in item.notes]
    assert sorted(noted) == [1, 2, 3]


def test_a_volume_of_two_studies_is_rejected_in_every_row():
    inputs = studies(4, each=1)
    inputs += [replace(inputs[0], study_id="s1", patient_id="p1"), inputs[2]]
    items = items_of(inputs)
    codes = {row: item.rejection and item.rejection[0] for row, item in items.items()}
    assert codes == {
        **dict.fromkeys((1, 5), "volume-in-several-studies"),
        **dict.fromkeys((2, 3, 4)),
        6: "duplicate-volume-id",
    }
    assert items[3].notes == ("duplicate-row-dropped",)


def test_the_tables_row_is_kept():
    inputs = [replace(study, row=10 * n) for n, study in enumerate(studies(3, each=1), start=1)]
    assert set(items_of(inputs)) == {10, 20, 30}


def test_notes_about_masks_count_where_masks_are_read():
    inputs = studies(3, each=1)
    inputs[0] = replace(inputs[0], notes=("organs-not-found",))
    inputs[1] = replace(inputs[1], organs={"heart": Path(os.devnull)})
    assert items_of(inputs)[1].notes == ()
    assert items_of(inputs, cell=16)[1].notes == ("organs-not-found",)
    assert items_of(inputs, crop="heart")[1].notes == ("organs-not-found",)
