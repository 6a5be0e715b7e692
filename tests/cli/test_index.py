"""medclip index: an archive of DICOM files becomes a table that medclip prepare takes as it is."""

import csv

import pydicom
import pytest
from made_scans import chest, dicom_header, lps_stack, write_slices

from medclip_jax.cli import index
from medclip_jax.cli.main import main
from medclip_jax.shards.read import open_shards
from medclip_jax.volumes import dicom_survey

SHAPE = (6, 20, 22)
SMALL = ["--shape", "8", "8", "8", "--spacing", "9", "9", "9", "--workers", "1", "--vocabulary-size", "200"]


def series(folder, patient, accession, number, **tags):
    """A series of six slices in a folder, which may hold others."""
    uids = {"StudyInstanceUID": f"1.2.{accession}", "SeriesInstanceUID": f"1.3.{accession}.{number}"}
    who = {"PatientID": f"MRN{patient}", "AccessionNumber": f"ACC{accession}", "SeriesNumber": number}
    voxels = lps_stack(chest(SHAPE, 10 * accession + number))
    return write_slices(folder, voxels, prefix=f"{number}_{accession}", **uids, **who, **tags)


@pytest.fixture
def archive(tmp_path):
    """Four examinations of three patients; two of them in one folder, one with two kernels, one damaged."""
    root = tmp_path / "PACS"
    series(root / "a", 1, 11, 1, ConvolutionKernel="B30f")
    series(root / "a", 1, 11, 2, ConvolutionKernel="B70f")
    series(root / "a", 1, 12, 1)
    series(root / "b" / "deep", 2, 21, 1)
    series(root / "c", 3, 31, 1)[3].unlink()
    report = dicom_header("1.2.840.10008.5.1.4.1.1.88.11")
    report.Modality = "SR"
    report.save_as(root / "b" / "dose.dcm", enforce_file_format=True)
    with open(tmp_path / "reports.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Accession Number", "Report", "note"])
        for number in ("ACC11", "acc12 ", "ACC77"):
            table.writerow([number, f"Case {number.strip()}. There is cardiomegaly.", "x"])
    return root


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_series(archive, tmp_path, capsys):
    out = tmp_path / "studies.csv"
    assert main(["index", str(archive), "--out", str(out), "--workers", "1"]) == 0
    rows = read(out)
    assert [(row["series"], row["patient"], row["study"], row["slices"]) for row in rows] == [
        ("1.3.11.1", "MRN1", "ACC11", "6"),
        ("1.3.12.1", "MRN1", "ACC12", "6"),
        ("1.3.11.2", "MRN1", "ACC11", "6"),
        ("1.3.21.1", "MRN2", "ACC21", "6"),
    ]
    assert rows[3]["volume"] == str(archive / "b" / "deep")
    assert [row["kernel_class"] for row in rows] == ["soft", "", "sharp", ""]
    (left_out,) = read(tmp_path / "studies.left-out.csv")
    assert (left_out["series"], left_out["code"]) == ("1.3.31.1", "missing-slices")
    for name in ("studies.csv", "studies.left-out.csv", "studies.cache.jsonl"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    printed = capsys.readouterr().out
    assert "5 series; 4 rows" in printed
    assert "1 SR" in printed
    assert "MRN" not in printed


def test_joined_with_reports_it_goes_into_prepare(archive, tmp_path, capsys):
    out, shards = tmp_path / "studies.csv", tmp_path / "shards"
    reports = ["--reports", str(tmp_path / "reports.csv")]
    assert main(["index", str(archive), "--out", str(out), "--workers", "1", *reports]) == 0
    assert [row["Report"][:11] for row in read(out)] == ["Case ACC11.", "Case acc12.", "Case ACC11."]
    left_out = {(entry["code"], entry["accession"]) for entry in read(tmp_path / "studies.left-out.csv")}
    assert left_out == {
        ("no-report", "ACC21"),
        ("report-without-series", "ACC77"),
        ("missing-slices", "ACC31"),
    }
    assert main(["prepare", "--table", str(out), "--out", str(shards), *SMALL]) == 0
    assert sum(open_shards(shards).splits.values()) == 3


def test_ambiguous_reports_are_left_out(archive, tmp_path):
    with open(tmp_path / "reports.csv", "a", newline="") as file:
        csv.writer(file).writerows([["ACC11", "Another report.", ""], ["ACC21", "Case of two.", ""]])
    for file in (archive / "b" / "deep").iterdir():
        header = pydicom.dcmread(file)
        header.AccessionNumber = "ACC12"
        header.save_as(file)
    options = ["--out", str(tmp_path / "s.csv"), "--workers", "1", "--reports", str(tmp_path / "reports.csv")]
    assert main(["index", str(archive), *options]) == 2
    codes = [entry["code"] for entry in read(tmp_path / "s.left-out.csv")]
    assert codes.count("several-reports") == 2
    assert codes.count("several-patients") == 2


@pytest.mark.parametrize(
    ("options", "wanted", "left_out"),
    [
        (["--series-rule", "best"], {"1.3.11.1", "1.3.12.1"}, ["not-chosen"]),
        (["--kernel", "sharp"], {"1.3.11.2"}, ["other-kernel", "other-kernel"]),
        (["--kernel", "B?0f", "--series-rule", "all"], {"1.3.11.1", "1.3.11.2"}, ["other-kernel"]),
    ],
)
def test_series_of_an_examination_by_a_rule(archive, tmp_path, options, wanted, left_out):
    out = tmp_path / "studies.csv"
    assert main(["index", str(archive / "a"), "--out", str(out), "--workers", "1", *options]) == 0
    assert {row["series"] for row in read(out)} == wanted
    assert [entry["code"] for entry in read(tmp_path / "studies.left-out.csv")] == left_out


def test_a_second_run_reads_what_has_changed(archive, tmp_path, monkeypatch):
    out = tmp_path / "studies.csv"
    command = ["index", str(archive), "--out", str(out), "--workers", "1"]
    assert main(command) == 0
    first = out.read_bytes()
    opened = []
    before = dicom_survey.read_file
    monkeypatch.setattr(
        dicom_survey, "read_file", lambda path, also=(): opened.append(path) or before(path, also)
    )
    with open(tmp_path / "studies.cache.jsonl", "a") as file:
        file.write('{"state": "cut sh')
    assert main(command) == 0
    assert out.read_bytes() == first
    assert not opened
    series(archive / "b" / "deep", 2, 22, 1)
    assert main(command) == 0
    assert {path.parent.name for path in opened} == {"deep"}
    assert len(read(out)) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone", "--out", "s.csv"], "no folder 'gone'"),
        ([".", "--out", "s.parquet"], "name it .csv"),
        ([".", "--out", "s.csv"], "no DICOM slices were found"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["index", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_says_that_it_is_private():
    assert "PRIVATE" in index.HELP


def test_series_of_frames_go_into_prepare(tmp_path, capsys):
    from tests.made_frames import beating
    from tests.volumes.test_dicom_frames import write_cine

    (tmp_path / "PACS").mkdir()
    for study in range(2):
        for number, (name, pictures) in enumerate(
            {
                "cine_sax": beating(3, 4, 24),
                "lge": beating(2, 1, 24, seed=study),
                "loc": beating(1, 1, 24),
            }.items()
        ):

            def tags(header, place, phase, study=study, number=number, name=name):
                header.PatientID, header.AccessionNumber = f"MRN{study}", f"ACC{study}"
                header.StudyInstanceUID, header.SeriesInstanceUID = f"1.2.{study}", f"1.3.{study}.{number}"
                header.SeriesNumber, header.SeriesDescription = number, name
                return True

            write_cine(tmp_path / "PACS" / f"{study}_{name}", pictures, tags)
    with open(tmp_path / "reports.csv", "w") as file:
        file.write("accession,impression\nACC0,Normal study.\nACC1,Pericardial effusion.\n")
    out = tmp_path / "series.csv"
    words = ["index", str(tmp_path / "PACS"), "--frames", "--out", str(out), "--workers", "1"]
    assert main([*words, "--reports", str(tmp_path / "reports.csv")]) == 0
    rows = read(out)
    assert [(row["description"], row["slices"], row["phases"], row["patient"]) for row in rows[:3]] == [
        ("cine_sax", "3", "4", "MRN0"),
        ("lge", "2", "1", "MRN0"),
        ("loc", "1", "1", "MRN0"),
    ]
    assert rows[5]["impression"] == "Pericardial effusion."
    assert {row["series"] for row in rows} == {""}
    names = {"cine_sax": "cine_sa", "lge": "lge_sa"}
    with open(out, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({**row, "series": names.get(row["description"], "")} for row in rows)
    size = ["--frame-shape", "24", "24", "--frame-spacing", "1.5", "1.5", "--workers", "1"]
    shards = tmp_path / "shards"
    assert main(["prepare", "--corpus", "cmr", "--table", str(out), "--out", str(shards), *size]) == 0
    assert "table: 2 rows name no series, and are passed over" in capsys.readouterr().err
    info = open_shards(shards)
    assert (sum(info.splits.values()), [one.name for one in info.series]) == (2, ["cine_sa", "lge_sa"])
    assert main([*words, "--kernel", "soft"]) == 2
    assert "--frames lists all series" in capsys.readouterr().err
