"""Tables with a row for each MR series, and what becomes of rows that do not agree."""

import csv
from pathlib import Path

import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.cmr import cmr
from medclip_jax.corpora.folder import TableError
from medclip_jax.corpora.study import Series
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from tests.made_frames import beating, write_nifti

EFFUSION, LABEL = "pericardial_effusion", "label:pericardial_effusion"


def write_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "studies.csv"
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(patient: str, study: str, series: str, path: str, **more: str) -> dict[str, str]:
    return {"patient_id": patient, "study_id": study, "series": series, "path": path, **more}


def test_rows_of_a_study_are_joined(tmp_path):
    said = {"impression": "No scar.", "split": "test", LABEL: "1", "measurement:lv_ejection_fraction": "61"}
    table = cmr(
        write_table(
            tmp_path,
            [
                row("P1", "S1", "LGE SA", "a/lge", series_uid="1.2.3"),
                row("", "S1", "own_map", "a/map.nii"),
                row("P1", "S1", "cine_sa", "a/cine.nii", **said),
                row("P2", "S2", "cine_sa", "b/cine.nii", impression="Scar.", modality="CT"),
            ],
        )
    )
    first, second = table.studies
    assert first.series == (
        Series(tmp_path / "a/cine.nii", "cine_sa", "MR"),
        Series(tmp_path / "a/lge", "lge_sa", "MR", uid="1.2.3"),
        Series(tmp_path / "a/map.nii", "own_map", "MR"),
    )
    assert (first.patient_id, first.study_id, first.row, first.split) == ("P1", "S1", 1, "test")
    assert first.sections == {"impression": "No scar."}
    assert (first.labels, first.measurements) == ({EFFUSION: 1}, {"lv_ejection_fraction": 61.0})
    assert (first.rejection, first.notes) == (None, ())
    assert (second.patient_id, second.series[0].modality) == ("P2", "CT")
    assert "4 rows are 2 studies, with these series: cine_sa 2, lge_sa 1, own_map 1" in table.remarks
    assert first.record_id != second.record_id


def test_the_first_of_several_rows_of_one_series_counts(tmp_path):
    rows = [row("P1", "S1", "cine_sa", f"{name}.nii", report="Normal.") for name in "abc"]
    rows.append(row("P1", "S1", "lge_sa", "", report="Normal."))
    table = cmr(write_table(tmp_path, rows))
    (study,) = table.studies
    assert study.series == (Series(tmp_path / "a.nii", "cine_sa", "MR"),)
    assert study.notes == ("series-repeated:cine_sa",)
    assert any(remark.startswith("rows 2, 3 name a series") for remark in table.remarks)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("report", ("Normal.", "Scar.")),
        ("impression", ("Normal.", "Scar.")),
        ("split", ("train", "test")),
        (LABEL, ("1", "-1")),
        ("measurement:lv_ejection_fraction", ("40", "60")),
    ],
)
def test_rows_that_contradict_each_other_reject_the_study(tmp_path, column, values):
    report = {} if column in ("report", "impression") else {"report": "Normal."}
    rows = [
        row("P1", "S1", name, f"{name}.nii", **report | {column: value})
        for name, value in zip(("cine_sa", "lge_sa"), values, strict=True)
    ]
    (study,) = cmr(write_table(tmp_path, rows)).studies
    code, message = study.rejection
    assert code == "rows-differ"
    assert f"contradict each other in {column}: correct them" in message
    rows[1][column] = ""  # a row may say nothing
    assert cmr(write_table(tmp_path, rows)).studies[0].rejection is None
    rows[1][column] = f" {values[0]} "
    assert cmr(write_table(tmp_path, rows)).studies[0].rejection is None


def test_rows_without_a_series_are_passed_over(tmp_path):
    rows = [row("P1", "S1", "cine_sa", "a.nii", report="Normal."), row("", "", "", "localizer.nii")]
    table = cmr(write_table(tmp_path, rows))
    assert [len(study.series) for study in table.studies] == [1]
    assert "1 rows name no series, and are passed over" in table.remarks


def test_a_file_in_several_studies_rejects_them(tmp_path):
    rows = [row(patient, "1", "cine_sa", f"{patient}.nii", report="R.") for patient in ("P1", "P2", "P3")]
    rows.append(row("P2", "1", "lge_sa", "P1.nii"))
    studies = cmr(write_table(tmp_path, rows)).studies
    assert [study.rejection and study.rejection[0] for study in studies] == [
        "volume-in-several-studies",
        "volume-in-several-studies",
        None,
    ]
    assert "The file of lge_sa stands in rows of different patients" in studies[1].rejection[1]


def test_studies_numbered_anew_for_each_patient_are_told_apart(tmp_path):
    rows = [row(patient, "1", "cine_sa", f"{patient}.nii", report="R.") for patient in ("P1", "P2")]
    table = cmr(write_table(tmp_path, rows))
    assert [study.patient_id for study in table.studies] == ["P1", "P2"]
    assert any("1 study ids stand beside several patients" in remark for remark in table.remarks)
    rows.append(row("", "1", "lge_sa", "lge.nii"))
    with pytest.raises(TableError, match=r"row 3 .*'patient_id': empty"):
        cmr(write_table(tmp_path, rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study_id": ""}, r"'study_id': empty; every row needs the id"),
        ({"series": ""}, r"names no series: fill in the column 'series', such as cine_lax"),
        ({"series": "4 ch"}, r"'series': must be a name of letters"),
    ],
)
def test_rows_that_say_too_little(tmp_path, change, message):
    rows = [row("P1", "S1", "cine_sa", "a.nii", report="Normal.")]
    with pytest.raises(TableError, match=message):
        cmr(write_table(tmp_path, [rows[0] | change]))


@pytest.mark.parametrize(
    ("column", "named"), [("study_id", "'study'"), ("series", "'series'"), ("path", "path")]
)
def test_columns_that_are_needed(tmp_path, column, named):
    rows = [row("P1", "S1", "cine_sa", "a.nii", report="Normal.")]
    del rows[0][column]
    with pytest.raises(TableError, match=rf"lacks the column {named}"):
        cmr(write_table(tmp_path, rows))


@pytest.fixture
def archive(tmp_path) -> Path:
    """Studies of four patients: complete, without late enhancement, with a bad file, with other reports."""
    rows = []
    for index in range(4):
        write_nifti(tmp_path / f"DOE{index}/cine.nii.gz", beating(phases=6 + index, seed=index))
        said = {"impression": f"No pericardial effusion. Case {index}."}
        rows.append(row(f"DOE{index}", f"ACC{index}", "cine_sa", f"DOE{index}/cine.nii.gz", **said))
        if index != 1:
            stack = beating(slices=4, phases=1, seed=9 + index)[:, 0]
            write_nifti(tmp_path / f"DOE{index}/lge.nii.gz", stack)
            rows.append(row("", f"ACC{index}", "lge_sa", f"DOE{index}/lge.nii.gz"))
    rows[-1]["impression"] = "Pericardial effusion."
    (tmp_path / "DOE2/cine.nii.gz").write_bytes((tmp_path / "DOE2/cine.nii.gz").read_bytes()[:900])
    return write_table(tmp_path, rows)


def prepare(*words: object) -> int:
    return main(["prepare", *map(str, words), "--workers", "1", "--max-rejected", "1"])


def test_the_command(archive, tmp_path, capsys):
    out = tmp_path / "set"
    size = ("--frame-shape", 24, 20, "--frame-spacing", 2.5, 2.5, "--fractions", 1, 0, 0)
    chosen = ("--series", "cine_sa:middle", "lge_sa")
    assert prepare("--corpus", "cmr", "--table", archive, "--out", out, *size, *chosen) == 0
    said = capsys.readouterr().err
    assert "table: 7 rows are 4 studies, with these series: cine_sa 4, lge_sa 3" in said
    info = open_shards(out)
    assert [(one.name, one.frames, one.shape, one.percentiles) for one in info.series] == [
        ("cine_sa", "middle", (None, 24, 20), (1.0, 99.0)),
        ("lge_sa", "all", (None, 24, 20), (1.0, 99.0)),
    ]
    assert "late_gadolinium_enhancement" in info.findings
    samples = {len(one["cine_sa"]): one for one in map(open_split(info, "train").__getitem__, range(2))}
    assert sorted(samples) == [6, 7]
    assert samples[6]["impression"] == "No pericardial effusion. Case 0."
    assert samples[6]["lge_sa_frames"].tolist() == [4, 1]
    entries = {entry["row"]: entry for entry in read_manifest(out)}
    assert entries[3]["notes"] == ["series-missing:lge_sa"]
    assert entries[4]["reason"] in ("truncated-file", "damaged-gzip")
    assert entries[6]["reason"] == "rows-differ"
    for path in out.iterdir():
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in (b"DOE", b"ACC0", str(tmp_path).encode()))
    assert main(["inspect", str(out), "--count", "2"]) == 0


def test_dicom_series_of_one_folder(tmp_path):
    from tests.volumes.test_dicom_frames import write_cine

    pictures = beating(2, 4, 24)

    def magnitude(header, place, phase):
        header.SeriesInstanceUID, header.SeriesNumber = "1.2.3.4.5", 5
        return True

    def other(header, place, phase):
        header.SeriesInstanceUID, header.SeriesNumber = "1.2.3.4.6", 6
        return True

    write_cine(tmp_path / "scan", pictures, magnitude)
    write_cine(tmp_path / "scan" / "more", pictures[::-1], other)
    said = {"report": "Normal.", "split": "train"}
    rows = [row("P1", "S1", "cine_sa", "scan", **said), row("P2", "S2", "cine_sa", "scan", **said)]
    rows[0]["series_uid"], rows[1]["series_uid"] = "1.2.3.4.5", "6"
    rows.append(row("P3", "S3", "cine_sa", "scan", **said))
    words = ("--corpus", "cmr", "--table", write_table(tmp_path, rows), "--out", tmp_path / "set")
    assert prepare(*words, "--frame-shape", 24, 24, "--frame-spacing", 1.5, 1.25) == 0
    entries = {entry["row"]: entry for entry in read_manifest(tmp_path / "set")}
    assert entries[1]["notes"] == entries[2]["notes"] == ["duplicate-report"]
    # Nobody says which of the two is meant.
    assert entries[3]["reason"] == "same-place-and-time"
    assert "`series_uid`" in entries[3]["message"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--corpus", "cmr", "--series", "lge_lax"),
            "--series lge_lax: no study has it; they have cine_sa, lge_sa",
        ),
        (("--corpus", "cmr", "--series", "cine_sa:first"), "behind the name stands all or middle"),
        (("--corpus", "cmr", "--shape", 8, 8, 8), "take --frame-shape"),
        (("--corpus", "cmr", "--kernel", "soft"), "--kernel is of volumes"),
        (("--corpus", "cmr", "--fit", "resize", "--frame-spacing", 2, 2), "leave --frame-spacing out"),
        (("--corpus", "cmr", "--crop", "heart"), "Leave --crop out"),
        (
            (
                "--corpus",
                "acdc",
            ),
            "--corpus acdc has no --table: it takes --root",
        ),
    ],
)
def test_options_that_do_not_go_together(archive, tmp_path, capsys, words, message):
    more = ("--root", tmp_path) if "acdc" in words else ()
    assert prepare(*words, *more, "--table", archive, "--out", tmp_path / "set") == 2
    assert message in capsys.readouterr().err


def test_frames_are_not_of_volumes(tmp_path, capsys):
    (tmp_path / "studies.csv").write_text("volume,report\na.nii,Normal.\n")
    words = ("--table", tmp_path / "studies.csv", "--out", tmp_path / "set", "--slices", "middle")
    assert prepare(*words) == 2
    assert "--slices is of frames, and --corpus folder has none" in capsys.readouterr().err


def test_pictures_may_be_resized_as_they_are(archive, tmp_path):
    words = ("--corpus", "cmr", "--table", archive, "--out", tmp_path / "set", "--series", "cine_sa")
    assert prepare(*words, "--fit", "resize", "--frame-shape", 20, 20, "--fractions", 1, 0, 0) == 0
    sample = open_split(tmp_path / "set", "train")[0]
    assert sample["cine_sa"].shape[1:] == (20, 20)
    assert sample["cine_sa_spacing"] == pytest.approx((8, 3, 3), rel=1e-4)
