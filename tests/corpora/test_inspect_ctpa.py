"""INSPECT's archive: written here as it is published, prepared, and trained on."""

import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.folder import TableError
from medclip_jax.corpora.inspect_ctpa import inspect_ctpa
from medclip_jax.reports.findings import INSPECT_FINDINGS
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.training.status import read_status
from tests.corpora.made_abdomen import abdomen, write_table
from tests.tiny_run import PREPARE, train_on
from tests.volumes.made_scans import write_nifti

COUNT = 16
IMAGES = [f"PE452{n:02d}c" for n in range(COUNT)]
DATE = "20250611"
OUTCOMES = [f"{months}_month_{what}" for what in ("mortality", "readmission") for months in (1, 6, 12)]


def person(n):
    return str(135_900_000 + n // 2 if n < 12 else 135_900_100 + n)


def split(n):
    return "train" if n < 10 else "valid" if n < 12 else "test"


def tables(count=COUNT):
    """Kind to rows, as the release of June 2025 has them."""
    mapping, impressions, labels, splits = [], [], [], []
    for n in range(count):
        one = str(100 + n)
        image = IMAGES[n] if n < COUNT else f"PE9{n:06d}"
        mapping.append({
            "impression_id": one, "image_id": image, "person_id": person(n), "note_id": 7 * n,
            "procedure_DATETIME": "2014-05-06 07:08:09", "note_DATETIME": "",
        })  # fmt: skip
        impressions.append(
            {"impression_id": one, "impressions": f"1. No evidence of pulmonary embolism. Case {n}."}
        )
        labels.append({
            "impression_id": one, "pe_positive": n % 2, "pe_positive_nlp": "TRUE" if n % 2 else "FALSE",
            "pe_acute": "" if n == 3 else n % 2, "pe_subsegmentalonly": 0, **dict.fromkeys(OUTCOMES, "FALSE"),
            "12_month_PH": "Censored" if n % 4 == 0 else "TRUE", "tte_mortality": 1440.5 * n,
            "is_censored_mortality": "TRUE" if n % 3 else "FALSE", "Atelectasis": "TRUE",
        })  # fmt: skip
        splits.append({"impression_id": one, "person_id": person(n), "split": split(n)})
    return {"study_mapping": mapping, "impressions": impressions, "labels": labels, "splits": splits}


def write(root, *, images=IMAGES, voxels=False, **changed):
    folder = root / "CTPA"
    folder.mkdir(parents=True)
    for seed, image in enumerate(images):
        path = folder / f"{image}.nii.gz"
        write_nifti(path, abdomen(seed=seed)) if voxels else path.touch()
    for kind, rows in (tables() | changed).items():
        write_table(root / f"{kind}_{DATE}.tsv", rows, "\t")
    return root


def test_prepared_by_the_command(tmp_path, capsys):
    root = write(tmp_path / "full", images=[*IMAGES[:-1], "PE0000000"], voxels=True)
    words = ["prepare", "--corpus", "inspect", "--root", str(root), "--out", str(tmp_path / "set")]
    words += ["--list-unmatched", str(tmp_path / "unmatched.csv")]
    assert main([*words, *PREPARE]) == 0
    said = capsys.readouterr().err
    assert "impressions: 15 of 16 volumes have a row; 1 has none (PE0000000); 1 row has no volume" in said
    info = open_shards(tmp_path / "set")
    assert dict(info.splits) == {"train": 10, "validation": 2, "test": 3}
    assert info.findings == INSPECT_FINDINGS
    records = list(open_split(info, "test"))
    record = next(record for record in records if "Case 13." in record["report"])
    labels = dict(zip(info.findings, record["labels"].tolist(), strict=True))
    assert (labels["pulmonary_embolism"], labels["death_within_1_month"]) == (1, -1)
    found = dict(zip(info.findings, record["findings"].tolist(), strict=True))
    assert (found["pulmonary_embolism"], found["death_within_1_month"]) == (-1, 0)
    measured = dict(zip(info.measurements, record["measurements"].tolist(), strict=True))
    assert measured == {
        "tte_mortality": pytest.approx(18726.5),
        "is_censored_mortality": 1,
        "months_mortality": pytest.approx(18726.5 / 43830),
        "event_mortality": 0,
    }
    entries = read_manifest(tmp_path / "set")
    assert [entry["reason"] for entry in entries if "reason" in entry] == ["not-in-archive"]
    written = (tmp_path / "set" / "manifest.jsonl").read_text()
    people = {person(n) for n in range(COUNT)}
    assert not any(secret in written for secret in (*IMAGES, *people, "2014-05"))
    listed = (tmp_path / "unmatched.csv").read_text()
    assert "impressions,row,PE0000000" in listed
    assert f"impressions,volume,{IMAGES[-1]}" in listed


@pytest.mark.slow
def test_from_the_archive_to_a_training_step(tmp_path):
    root = write(tmp_path / "full", voxels=True)
    words = ["prepare", "--corpus", "inspect", "--root", str(root), "--out", str(tmp_path / "set")]
    assert main([*words, *PREPARE]) == 0
    train_on(tmp_path / "set", tmp_path / "workdir", {})
    assert read_status(tmp_path / "workdir").step == 2


def test_what_a_study_is(tmp_path):
    write(tmp_path / "full")
    table = inspect_ctpa(tmp_path)
    study = table.studies[4]
    assert study.path == tmp_path / "full" / "CTPA" / f"{IMAGES[4]}.nii.gz"
    assert (study.record_id, study.study_id, study.patient_id) == (IMAGES[4], "104", person(4))
    assert study.sections == {"impression": "1. No evidence of pulmonary embolism. Case 4."}
    assert study.split == "train"
    assert tuple(study.labels) == INSPECT_FINDINGS
    # Lost from sight is neither dead nor alive.
    assert study.labels["pulmonary_hypertension_within_12_months"] == 0
    assert table.studies[5].labels["pulmonary_hypertension_within_12_months"] == 1
    assert study.labels["death_within_12_months"] == study.labels["pulmonary_embolism"] == -1
    assert (
        table.studies[3].labels["acute_pulmonary_embolism"],
        table.studies[1].labels["acute_pulmonary_embolism"],
    ) == (0, 1)
    assert study.measurements == {
        "tte_mortality": 5762.0,
        "is_censored_mortality": 1.0,
        "months_mortality": pytest.approx(5762 / (365.25 / 12 * 1440)),
        "event_mortality": 0.0,
    }
    # Several scans of one person, in one split.
    assert len({study.patient_id for study in table}) == 10
    said = "\n".join(table.remarks)
    assert "4 outcomes are 'Censored', and count as unknown" in said
    assert "columns that are not read: atelectasis" in said
    assert [study.split for study in table].count("validation") == 2


def test_the_latest_tables_count_and_what_they_lack_is_said(tmp_path):
    root = write(tmp_path)
    write_table(root / "labels_20240101.tsv", [{"impression_id": "x", "nothing": 1}], "\t")
    rows = [
        {"impression_id": row["impression_id"], "pe_positive": 1, "pe_acute": 0} for row in tables()["labels"]
    ]
    write_table(root / f"labels_{DATE}.tsv", rows, "\t")
    table = inspect_ctpa(root)
    assert {study.labels["pulmonary_embolism"] for study in table} == {1}
    assert {study.labels["death_within_1_month"] for study in table} == {0}
    assert any("has no column pe_subsegmentalonly, 1_month_mortality" in remark for remark in table.remarks)
    rows[0]["pe_positive_nlp"] = "FALSE"
    write_table(root / f"labels_{DATE}.tsv", rows, "\t")
    table = inspect_ctpa(root)
    assert table.studies[0].labels["pulmonary_embolism"] == -1
    assert "labels: pe_positive_nlp and pe_positive differ in 1 rows; pe_positive_nlp counts" in table.remarks


def test_rows_that_stand_there_twice(tmp_path):
    kinds = tables()
    kinds["splits"].append(kinds["splits"][0])
    kinds["impressions"].append({"impression_id": "101", "impressions": "Short."})
    kinds["labels"].append({**kinds["labels"][2], "pe_acute": 1})
    kinds["labels"].append({**kinds["labels"][2], "impression_id": "999"})
    table = inspect_ctpa(write(tmp_path, **kinds))
    assert table.studies[1].sections["impression"].endswith("Case 1.")
    assert table.studies[1].notes == ("report-of-several",)
    assert table.studies[2].labels == table.studies[2].measurements == {}
    said = "\n".join(table.remarks)
    assert "'splits_20250611.tsv': 1 rows repeat another one word for word" in said
    assert "labels: 1 ids have rows that differ (102)" in said
    assert "labels: 1 ids are not in the study mapping (999)" in said
    assert table.unmatched["labels, not in the study mapping"] == ((), ("999",))
    kinds["splits"].append({**kinds["splits"][4], "split": "test"})
    write_table(tmp_path / f"splits_{DATE}.tsv", kinds["splits"], "\t")
    with pytest.raises(TableError, match=r"rows 5, 18 of .*splits.* are of one id, and in several splits"):
        inspect_ctpa(tmp_path)


def test_an_image_of_two_impressions_is_no_ones(tmp_path):
    kinds = tables()
    kinds["study_mapping"][1]["image_id"] = IMAGES[0]
    table = inspect_ctpa(write(tmp_path, **kinds))
    assert [study.rejection[0] for study in table if study.rejection] == ["not-in-archive"] * 2
    assert any(f"1 images have several impressions ({IMAGES[0]})" in remark for remark in table.remarks)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("labels", {"1_month_mortality": "dead"}, "column '1_month_mortality': must be TRUE, FALSE"),
        ("labels", {"pe_acute": "2"}, "row 1 .*labels_20250611.tsv', column 'pe_acute': must be"),
        ("labels", {"tte_mortality": "soon"}, "column 'tte_mortality': must be a number, or empty"),
        ("labels", {"is_censored_mortality": "2"}, "column 'is_censored_mortality': must be TRUE or FALSE"),
        ("splits", {"split": "holdout"}, "splits_20250611.tsv', column 'split': must be one of"),
        ("splits", {"person_id": "7"}, "1 impressions are of one person in .*mapping.* of another in .*spl"),
        ("impressions", {"impression_id": "0100"}, "1 ids of .*impressions.* leading zeros"),
        ("study_mapping", {"image_id": IMAGES[0].lower()}, "1 ids of the volumes .* 'image_id' in leading"),
    ],
)  # fmt: skip
def test_cells_that_cannot_be_understood(tmp_path, kind, change, message):
    rows = tables()[kind]
    write(tmp_path, **{kind: [rows[0] | change, *rows[1:]]})
    with pytest.raises(TableError, match=message):
        inspect_ctpa(tmp_path)


def test_wrong_files_say_which_columns_they_have(tmp_path):
    root = write(tmp_path)
    write_table(root / f"labels_{DATE}.tsv", [{"impression_id": "100", "age": 3}], "\t")
    with pytest.raises(TableError, match=r"no column of embolism or .*columns are 'impression_id', 'age'"):
        inspect_ctpa(root)
    write_table(root / f"impressions_{DATE}.tsv", [{"impression_id": "100", "text": "x"}], "\t")
    with pytest.raises(
        TableError, match=r"lacks the column 'impressions'\. Its .* are 'impression_id', 'text'"
    ):
        inspect_ctpa(root)
    (root / f"study_mapping_{DATE}.tsv").unlink()
    with pytest.raises(TableError, match=r"holds no study_mapping_DATE\.tsv"):
        inspect_ctpa(root)
    with pytest.raises(TableError, match="none of the 1 volumes"):
        inspect_ctpa(write(tmp_path / "other", images=["scan1"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="holds no volumes"):
        inspect_ctpa(tmp_path / "empty")


def test_many_rows_of_few_volumes(tmp_path):
    write(tmp_path, **tables(6000))
    assert len(inspect_ctpa(tmp_path)) == COUNT


@pytest.mark.parametrize(("minutes", "contradicting"), [(1440, False), (1, True)])
def test_times_in_another_unit_are_told_by_the_labels(tmp_path, minutes, contradicting):
    """Of four patients followed for 400 days, two die on day 100; written in days, nobody lives on."""
    kinds = tables()
    for n, row in enumerate(kinds["labels"]):
        died = n % 2 == 0
        row["tte_mortality"] = (100 if died else 400) * minutes if n < 4 else ""
        row["is_censored_mortality"] = "FALSE" if died else "TRUE"
        row["12_month_mortality"] = row["6_month_mortality"] = "TRUE" if died else "FALSE"
    said = "\n".join(inspect_ctpa(write(tmp_path, **kinds)).remarks)
    assert ("contradict the time to the event" in said) == contradicting
    if contradicting:
        # Those who live were not followed for a month; those who died did so within the first.
        assert "labels: 8 of 12 outcomes by a month contradict" in said
