"""What a set leaves out on request: statements of quantities, and volumes whose report is there already."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medclip_jax.corpora.phantom.reports import Facts, join_sections, write_report
from medclip_jax.corpora.study import Series, Study
from medclip_jax.reports.quantities import built_in
from medclip_jax.reports.tokenizer import load_tokenizer
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.plan import REPEATED_REPORT, count_repeated, make_plan
from medclip_jax.shards.prepare import prepare
from medclip_jax.shards.read import open_split
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.settings import PrepareSettings, resolve
from tests.shards.conftest import body, heart, save
from tests.shards.small_set import QUIET
from tests.shards.test_plan import KEY, studies

CALCIUM = (built_in()["calcium_score"],)
GRADE = re.compile(
    r"agatston|score|(?:minimal|mild|moderate|severe|extensive) (?:\w+ ){0,2}(?:coronary|calcif)"
    r"|coronary arteries show (?:minimal|mild|moderate|severe|extensive)",
    re.IGNORECASE,
)
"""A reader that knows the phantom's phrases: it reads the grade of every report that states one."""


def plan_of(inputs, **changes):
    settings = resolve(PrepareSettings(one_per_report=True, **changes), inputs)
    return [item for shard in make_plan(inputs, settings, KEY) for item in shard.items]


def left_out(items):
    return {item.study.record_id for item in items if (item.rejection or ("",))[0] == REPEATED_REPORT}


def test_the_first_volume_of_a_report_by_its_id_is_kept():
    inputs = studies(20, each=3)
    expected = {study.record_id for study in inputs if not study.record_id.endswith("-0")}
    assert left_out(plan_of(inputs)) == expected
    assert left_out(plan_of(inputs[::-1])) == expected  # whatever the order of the table


def test_white_space_and_case_make_no_other_report():
    one, two = studies(1, each=2)
    assert left_out(plan_of([one, replace(two, report="REPORT \n 0.")])) == {"v0-1"}
    assert not left_out(plan_of([one, replace(two, report="Report 1.")]))


def test_volumes_of_several_patients_are_told_by_the_report_within_a_split_alone():
    same = [replace(study, report="Normal chest.") for study in studies(60, each=1)]
    items = plan_of(same)
    kept = Counter(item.split for item in items if item.rejection is None)
    assert set(kept.values()) == {1}
    assert set(kept) == {"train", "validation", "test"}
    plain = make_plan(same, resolve(PrepareSettings(), same), KEY)
    splits = {item.study.patient_id: item.split for shard in plain for item in shard.items}
    assert {item.study.patient_id: item.split for item in items} == splits  # nobody changes the split


def test_a_volume_that_is_rejected_anyway_does_not_take_the_place_of_another():
    one, two = studies(1, each=2)
    items = plan_of([replace(one, rejection=("wrong", "It is wrong.")), two])
    assert not left_out(items)


def test_empty_reports_are_not_one_report():
    inputs = [replace(study, report="") for study in studies(5, each=1)]
    assert not left_out(plan_of(inputs, empty_report="note"))


def test_repeated_reports_are_counted_by_study_and_beyond():
    inputs = [*studies(3, each=2), replace(studies(1, each=1)[0], patient_id="x", record_id="x")]
    assert count_repeated(inputs) == (3, 1)
    assert count_repeated([replace(study, report="") for study in inputs]) == (0, 0)


def graded(number: int, scan: Path) -> Study:
    """A phantom's report of a known grade, on a scan that all of them share."""
    grade = 1 + number % 4
    measured = {"cac_grade": grade, "agatston_score": 10.0**grade}
    labels = {"coronary_calcification": 1, "cardiomegaly": -1, "pericardial_effusion": -1}
    facts = Facts({"coronary_calcification": 0.5}, measured, {"vessel": "LAD"})
    report = join_sections(write_report(labels, facts, np.random.default_rng(number)))
    series = (Series(scan),)
    return Study(series, f"v{number}", f"s{number}", f"p{number}", report, measurements=measured)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graded")
    inputs = [graded(number, save(folder / "scan.nii.gz", body(0))) for number in range(40)]
    settings = PrepareSettings(
        shape=(12, 16, 16),
        spacing=(8.0, 5.0, 5.0),
        redact=CALCIUM,
        vocabulary_size=400,
        vocabulary_patients=1,
    )
    return inputs, folder / "set", settings, prepare(inputs, folder / "set", settings, **QUIET)


def test_no_grade_is_read_from_the_text_of_a_redacted_set(prepared):
    inputs, _, _, info = prepared
    assert sum(bool(GRADE.search(study.report)) for study in inputs) > 25  # and it is there before
    for split in info.splits:
        for record in open_split(info, split, fields=["report", "findings_text", "impression", "findings"]):
            for name in ("report", "findings_text", "impression"):
                assert not GRADE.search(record[name]), record[name]
            assert "calcif" in record["report"].lower()
            assert record["findings"][info.findings.index("coronary_calcification")] == 1


def test_measurements_keep_the_score(prepared):
    info = prepared[3]
    place = info.measurements.index("cac_grade")
    grades = [
        record["measurements"][place]
        for split in info.splits
        for record in open_split(info, split, fields=["measurements"])
    ]
    assert Counter(map(int, grades)) == {1: 10, 2: 10, 3: 10, 4: 10}


def test_the_tokenizer_never_sees_it(prepared):
    vocabulary = load_tokenizer(prepared[3].tokenizer)
    pieces = vocabulary(["agatston"], 32)
    assert (pieces != vocabulary.pad).sum() > 4  # spelled in parts: the word was not learned


def test_what_was_taken_out_is_counted(prepared):
    info = prepared[3]
    entries = read_manifest(info.folder)
    passages = sum(entry.get("redacted", {}).get("calcium_score", 0) for entry in entries)
    records = sum("redacted" in entry for entry in entries)
    assert passages >= records > 25
    assert info.settings["redacted"] == {"calcium_score": {"records": records, "passages": passages}}
    assert info.settings["redact"][0]["name"] == "calcium_score"
    assert (
        PrepareSettings.from_json(
            {name: value for name, value in json.loads(json.dumps(prepared[2].to_json())).items()}
        ).redact
        == CALCIUM
    )


def test_a_redacted_set_is_continued_and_one_with_other_quantities_is_not(prepared):
    inputs, out, settings, info = prepared
    again = prepare(inputs, out, settings, **QUIET)
    assert again.fingerprint == info.fingerprint
    with pytest.raises(ShardError, match="other studies, settings or another key"):
        prepare(inputs, out, replace(settings, redact=()), **QUIET)


def test_personal_data_is_replaced_and_counted(tmp_path):
    pytest.importorskip("presidio_analyzer", reason="pip install 'medclip-jax[scrub]'")
    scan = save(tmp_path / "scan.nii.gz", body(0))
    said = "FINDINGS: Cardiomegaly, Agatston score {}. Compared with 12.03.2021. Signed by Dr. Anna Schmidt."
    inputs = [Study((Series(scan),), f"v{n}", f"s{n}", f"p{n}", said.format(n + 5)) for n in range(4)]
    settings = PrepareSettings(
        shape=(12, 16, 16), spacing=(8.0, 5.0, 5.0), redact=CALCIUM, scrub="patterns", vocabulary_patients=1
    )
    info = prepare(inputs, tmp_path / "set", settings, **QUIET)
    for split in info.splits:
        for record in open_split(info, split, fields=["report", "findings_text"]):
            assert record["report"] == "FINDINGS: Compared with [DATE]. Signed by Dr. [PERSON]."
            assert "Schmidt" not in record["findings_text"]
    assert info.settings["scrub"] == "patterns"
    assert info.settings["scrubbed"]["DATE"] == {"records": 4, "passages": 4}
    assert all(entry["scrubbed"] == {"DATE": 1, "PERSON": 1} for entry in read_manifest(info.folder))
    assert "scrub" not in PrepareSettings().to_json()


def test_scrubbing_without_its_package_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    import sys

    from medclip_jax.reports.scrubbing import scrubber

    scrubber.cache_clear()
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    monkeypatch.setitem(sys.modules, "presidio_analyzer.predefined_recognizers", None)
    with pytest.raises(ShardError, match=r"pip install 'medclip-jax\[scrub\]'"):
        prepare(studies(3), tmp_path / "set", PrepareSettings(scrub="patterns"), **QUIET)
    assert not (tmp_path / "set").exists()
    scrubber.cache_clear()


def test_sentences_about_organs_do_not_state_it_either(tmp_path):
    scan, mask = save(tmp_path / "scan.nii.gz", body(0)), save(tmp_path / "heart.nii.gz", heart())
    said = "The heart shows mild coronary calcification. Heart: Agatston score 312. Lungs are clear."
    study = Study((Series(scan),), "v", "s", "p", said, organs={"heart": mask})
    settings = PrepareSettings(
        shape=(12, 16, 16), spacing=(8.0, 5.0, 5.0), cell=4, redact=CALCIUM, vocabulary_patients=1
    )
    info = prepare([study], tmp_path / "set", settings, **QUIET)
    (record,) = open_split(info, "train", fields=["organ_sentences", "report"])
    assert record["organ_sentences"]["heart"]["text"].startswith("The heart shows coronary calcification.")
    assert "312" not in json.dumps(record["organ_sentences"]) + record["report"]
    assert not record["organ_sentences"]["heart"]["normal"]


def test_a_report_that_says_nothing_else_is_rejected_or_noted(tmp_path):
    scan = save(tmp_path / "scan.nii.gz", body(0))
    texts = ["Agatston score 312.", "Clear lungs."]
    inputs = [Study((Series(scan),), f"v{n}", f"s{n}", f"p{n}", text) for n, text in enumerate(texts)]
    settings = PrepareSettings(shape=(12, 16, 16), spacing=(8.0, 5.0, 5.0), redact=CALCIUM, tokenizer=None)
    prepare(inputs, tmp_path / "one", settings, max_rejected=1, **QUIET)
    reasons = {entry.get("reason") for entry in read_manifest(tmp_path / "one")}
    assert reasons == {None, "report-redacted"}
    prepare(inputs, tmp_path / "two", replace(settings, empty_report="note"), **QUIET)
    notes = [note for entry in read_manifest(tmp_path / "two") for note in entry["notes"]]
    assert notes.count("report-redacted") == 1
