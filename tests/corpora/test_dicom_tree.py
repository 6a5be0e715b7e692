"""Trees of DICOM files as hospitals export them: series by their headers, and which of them are taken."""

import csv
import json
import os

import pydicom
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.dicom_tree import dicom_tree
from medclip_jax.corpora.tables import TableError
from medclip_jax.shards.read import open_shards
from medclip_jax.volumes.dicom_selection import SeriesChoice
from tests.corpora.made_dicom_tree import SHAPE, codes, reasons, series, table, taken
from tests.corpora.tiny_training import train_step
from tests.volumes.made_scans import (
    SECRETS,
    chest,
    dicom_header,
    lps_stack,
    write_enhanced,
)


class TestDiscovery:
    def test_any_structure(self, tmp_path):
        """Two series in one folder, one over several folders, one multi-frame file, other files beside."""
        series(tmp_path / "mixed", 1, 1, 1)
        series(tmp_path / "mixed", 2, 1, 1)
        for n, path in enumerate(series(tmp_path / "spread", 3, 1, 1)):
            (tmp_path / "spread" / f"f{n}").mkdir()
            path.rename(tmp_path / "spread" / f"f{n}" / "IMG")
        (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
        (tmp_path / "notes.txt").write_text("DOE JANE")
        (tmp_path / "empty").write_bytes(b"")
        voxels = lps_stack(chest(SHAPE, 9))
        write_enhanced(tmp_path / "enhanced.dcm", voxels, [(1.0, -1024.0)] * 6, range(6))
        report = dicom_header("1.2.840.10008.5.1.4.1.1.88.11")
        report.Modality = "SR"
        report.save_as(tmp_path / "dose.dcm", enforce_file_format=True)
        scout = dicom_header()
        scout.ImageType, scout.Rows, scout.Columns = ["ORIGINAL", "PRIMARY", "LOCALIZER"], 20, 22
        scout.PixelData = b"\0" * 880
        scout.save_as(tmp_path / "scout", enforce_file_format=True)
        found = dicom_tree(tmp_path)
        assert taken(found) == ["1.2.3.4.5", "1.3.1.1.1", "1.3.2.1.1", "1.3.3.1.1"]
        spread = next(study for study in found if study.series[0].uid == "1.3.3.1.1")
        assert spread.path == tmp_path / "spread"
        assert len(spread.series[0].files) == 6
        assert found.remarks[:4] == (
            "24 files looked at",
            "files that are no slices of a scan: 1 SR, 1 localizer",
            "files without images: 2 no DICOM, 1 DICOMDIR",
            "4 series in 4 studies of 4 patients; 4 series are taken",
        )
        assert not any(secret in " ".join(found.remarks) for secret in SECRETS)

    def test_copies_count_once(self, tmp_path):
        files = series(tmp_path / "a", 1, 1, 1)
        (tmp_path / "again").mkdir()
        for path in files:
            (tmp_path / "again" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "a" / "twice").write_bytes(files[2].read_bytes())
        (tmp_path / "a" / "cut").write_bytes(files[3].read_bytes()[:-100])
        found = dicom_tree(tmp_path)
        (study,) = found
        assert study.rejection is None
        assert sorted(study.series[0].files) == sorted(files)
        assert "8 files repeat another one, and are passed over" in found.remarks
        assert [row["code"] for row in found.left_out] == ["copy"] * 8

    def test_one_instance_uid_for_all_tells_nothing(self, tmp_path):
        for path in series(tmp_path, 1, 1, 1):
            header = pydicom.dcmread(path)
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.9"
            header.save_as(path)
        (study,) = dicom_tree(tmp_path)
        assert len(study.series[0].files) == 6

    def test_one_uid_of_two_series_keeps_both(self, tmp_path):
        series(tmp_path / "a", 1, 1, 1)
        series(tmp_path / "b", 1, 1, 1, ConvolutionKernel="B70f")
        found = dicom_tree(tmp_path, choice=SeriesChoice(rule="all"))
        assert len(found) == 2
        assert len({study.record_id for study in found}) == 2

    def test_without_ids(self, tmp_path):
        """Files without SeriesInstanceUID stay with their folder, those without PatientID with a study."""
        series(tmp_path / "a", 1, 1, 1, SeriesInstanceUID="")
        series(
            tmp_path / "b",
            1,
            2,
            1,
            SeriesInstanceUID="",
            positions=[(-30, -40, 300 + 3 * n) for n in range(6)],
        )
        series(tmp_path / "c", 2, 1, 1, PatientID="", AccessionNumber="")
        found = dicom_tree(tmp_path)
        assert [len(study.series[0].files) for study in found] == [6, 6, 6]
        assert [(study.patient_id, study.study_id) for study in found] == [
            ("MRN1", "ACC11"),
            ("MRN1", "ACC12"),
            ("unknown-1.2.2.1", "1.2.2.1"),
        ]

    def test_nothing_there(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(TableError, match="holds no DICOM slices: 1 files looked at"):
            dicom_tree(tmp_path)
        with pytest.raises(TableError, match="--root must be the folder"):
            dicom_tree(tmp_path / "gone")


class TestDamage:
    def test_a_study_without_a_whole_series_is_rejected_with_its_reason(self, tmp_path):
        series(tmp_path / "a", 1, 1, 1)[3].unlink()
        path = series(tmp_path / "b", 2, 1, 1)[2]
        path.write_bytes(path.read_bytes()[:-200])
        series(tmp_path / "c", 3, 1, 1, FrameOfReferenceUID="1.5.1")
        for n, file in enumerate(sorted((tmp_path / "c").iterdir(), key=lambda file: file.name[-1])):
            header = pydicom.dcmread(file)
            header.FrameOfReferenceUID = f"1.5.{n // 3}"
            header.save_as(file)
        for n, file in enumerate(series(tmp_path / "d", 4, 1, 1)):
            header = pydicom.dcmread(file)
            header.Modality = "MR" if n % 2 else "CT"
            header.save_as(file)
        found = dicom_tree(tmp_path)
        assert codes(found) == [
            "missing-slices",
            "damaged-dicom",
            "several-frames-of-reference",
            "mixed-modality",
        ]

    def test_a_frame_of_reference_for_each_slice_tells_nothing(self, tmp_path):
        for n, file in enumerate(series(tmp_path, 1, 1, 1)):
            header = pydicom.dcmread(file)
            header.FrameOfReferenceUID = f"1.5.{n}"
            header.save_as(file)
        assert taken(dicom_tree(tmp_path)) == ["1.3.1.1.1"]

    def test_a_broken_series_beside_a_whole_one_is_left_out(self, tmp_path):
        series(tmp_path / "a", 1, 1, 1)[3].unlink()
        series(tmp_path / "a", 1, 1, 2)
        found = dicom_tree(tmp_path)
        assert taken(found) == ["1.3.1.1.2"]
        assert len(found) == 1
        assert reasons(found) == {"1.3.1.1.1": "missing-slices"}

    def test_what_cannot_be_opened_may_pass(self, tmp_path, monkeypatch):
        """Beside a single series it may be a slice of it; else it is a rejection of its own."""
        root = tmp_path / "tree"
        lost = [series(root / "a", 1, 1, 1)[2], series(root / "b", 2, 1, 1)[0]]
        series(root / "b", 2, 2, 1)
        opened = open

        def deny(path, *rest, **options):
            if path in lost:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *rest, **options)

        cache = tmp_path / "cache.jsonl"
        with monkeypatch.context() as denied:
            denied.setattr("builtins.open", deny)
            found = dicom_tree(root, cache=cache)
        assert lost[0] in found.studies[0].series[0].files
        assert codes(found) == [None, None, None, "unreadable"]
        assert found.studies[3].split == "train"
        assert "2 files cannot be opened: fix their permissions, and run again" in found.remarks
        assert [study.rejection for study in dicom_tree(root, cache=cache)] == [None] * 3

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
    def test_a_closed_folder_may_pass(self, tmp_path):
        series(tmp_path / "a", 1, 1, 1)
        (tmp_path / "closed").mkdir(mode=0)
        assert codes(dicom_tree(tmp_path)) == [None, "unreadable"]


class TestChoice:
    @pytest.fixture
    def root(self, tmp_path):
        """One study: soft and sharp, thick, a MIP, a coronal reformat, a short one, PET, a derived one."""
        series(tmp_path / "1", 1, 1, 1)
        series(tmp_path / "2", 1, 1, 2, ConvolutionKernel="B70f")
        thin = [(-30.0, -40.0, 100.0 + 1.5 * n) for n in range(12)]
        series(tmp_path / "3", 1, 1, 3, shape=(12, 20, 22), positions=thin, ConvolutionKernel="B60f")
        series(tmp_path / "4", 1, 1, 4, ImageType=["DERIVED", "SECONDARY", "MIP"])
        coronal = [(-30.0, -40.0 + 3.0 * n, 100.0) for n in range(6)]
        series(tmp_path / "5", 1, 1, 5, positions=coronal, orientation=(1, 0, 0, 0, 0, -1))
        series(tmp_path / "6", 1, 1, 6, shape=(3, 20, 22))
        series(tmp_path / "7", 1, 1, 7, Modality="PT")
        series(tmp_path / "8", 1, 1, 8, ImageType=["DERIVED", "PRIMARY", "AXIAL"])
        return tmp_path

    @pytest.mark.parametrize(
        ("choice", "wanted"),
        [
            ({}, "1"),
            ({"rule": "thinnest"}, "3"),
            ({"rule": "largest"}, "3"),
            ({"rule": "original", "kernel": "sharp"}, "3"),
            ({"kernel": "B7*"}, "2"),
            ({"rule": "all"}, "1235687"[:5] + "8"),
            ({"rule": "all", "orientation": "axial", "min_slices": 4}, "1238"),
            ({"rule": "all", "orientation": "axial", "min_slices": 4, "original": True}, "123"),
            ({"rule": "all", "kernel": "soft", "orientation": "axial", "original": True}, "16"),
            ({"modality": "PT", "rule": "all"}, "7"),
        ],
    )
    def test_a_rule(self, root, choice, wanted):
        found = dicom_tree(root, choice=SeriesChoice(**choice))
        assert taken(found) == sorted({f"1.3.1.1.{number}" for number in wanted})
        assert len(taken(found)) + len(reasons(found)) == 8

    def test_every_reason(self, root):
        choice = SeriesChoice(kernel="B30f", min_slices=4, orientation="axial", original=True)
        assert reasons(dicom_tree(root, choice=choice)) == {
            "1.3.1.1.2": "other-kernel",
            "1.3.1.1.3": "other-kernel",
            "1.3.1.1.4": "projection",
            "1.3.1.1.5": "not-axial",
            "1.3.1.1.6": "too-few-slices",
            "1.3.1.1.7": "wrong-modality",
            "1.3.1.1.8": "derived",
        }

    def test_reconstructions_share_study_and_report(self, root, tmp_path):
        reports = table(tmp_path / "r.csv", "AccessionNumber,report", "acc11,There is cardiomegaly.")
        choice = SeriesChoice(rule="all", orientation="axial", min_slices=4)
        found = dicom_tree(root, table=reports, choice=choice)
        assert {(study.study_id, study.patient_id, study.report) for study in found} == {
            ("ACC11", "MRN1", "There is cardiomegaly.")
        }
        assert len({study.record_id for study in found}) == len(found) == 4


class TestCache:
    def test_a_second_run_reads_what_has_changed(self, tmp_path, monkeypatch):
        from medclip_jax.volumes import dicom_survey

        root, cache = tmp_path / "tree", tmp_path / "cache.jsonl"
        series(root / "flat", 1, 1, 1)
        for n, path in enumerate(series(root / "spread", 2, 1, 1)):
            (root / "spread" / f"{n}").mkdir()
            path.rename(root / "spread" / f"{n}" / "IMG")
        first = dicom_tree(root, cache=cache)
        read = []
        before = dicom_survey.read_file
        monkeypatch.setattr(
            dicom_survey, "read_file", lambda path, also=(): read.append(path.name) or before(path, also)
        )
        assert dicom_tree(root, cache=cache).studies == first.studies
        assert not read
        (new,) = series(root / "flat", 3, 1, 1, shape=(1, 20, 22))
        os.utime(root / "spread" / "0" / "IMG", (1, 1))
        found = dicom_tree(root, cache=cache)
        assert sorted(read) == sorted([new.name, "IMG"])
        assert "13 files looked at; 2 headers were read, the cache has the rest" in found.remarks
        assert found.studies[2].series[0].files == first.studies[1].series[0].files
        (new).unlink()
        assert dicom_tree(root, cache=cache).studies == first.studies

    def test_it_holds_no_names_and_dates_and_is_private(self, tmp_path):
        cache = tmp_path / "cache.jsonl"
        series(tmp_path / "tree", 1, 1, 1, PatientID="MRN1")
        dicom_tree(tmp_path / "tree", cache=cache)
        assert cache.stat().st_mode & 0o777 == 0o600
        (line,) = cache.read_text().splitlines()
        kept = json.loads(line)["survey"]["series"][0]["values"]
        assert kept == {"PatientID": "MRN1", "StudyInstanceUID": "1.2.1.1", "AccessionNumber": "ACC11"}
        for secret in ("DOE", "JANE^", "19561231", "SAINT-ELSEWHERE", "CHEST"):
            assert secret not in line
        from medclip_jax.volumes.dicom_cache import decode_headers

        assert "DOE" not in str(decode_headers("", json.loads(line)["headers"]))

    def test_damaged_lines_count_as_not_there(self, tmp_path):
        cache = tmp_path / "cache.jsonl"
        series(tmp_path / "tree", 1, 1, 1)
        first = dicom_tree(tmp_path / "tree", cache=cache)
        cache.write_text(cache.read_text()[:-40] + "\n{}\nnot json\n")
        assert dicom_tree(tmp_path / "tree", cache=cache).studies == first.studies
        assert len(cache.read_text().splitlines()) == 1

    def test_headers_come_back_as_they_were(self, tmp_path):
        from medclip_jax.volumes.dicom_cache import decode_headers, encode_headers
        from medclip_jax.volumes.dicom_survey import read_folder

        series(tmp_path, 1, 1, 1, PixelPaddingValue=-2000, FrameOfReferenceUID="1.5")
        (tmp_path / "x.txt").write_text("x")
        write_enhanced(tmp_path / "e.dcm", chest(SHAPE), [(1.0, float(-n)) for n in range(6)], range(6))
        names = sorted(os.listdir(tmp_path))
        files = read_folder(str(tmp_path), names, ("PatientID",)).files
        back = decode_headers(str(tmp_path), encode_headers(files)).files
        assert list(back) == names
        for name in names:
            assert str(vars(back[name]) if back[name] else None) == str(
                vars(files[name]) if files[name] else None
            )


def test_from_a_tree_to_a_training_step(tmp_path, capsys):
    root = tmp_path / "PACS"
    for patient in range(6):
        series(root / f"{patient}", patient, 1, 1, shape=(12, 20, 22))
        series(root / f"{patient}", patient, 1, 2, shape=(12, 20, 22), ConvolutionKernel="B70f")
    series(root / "0", 0, 2, 1, shape=(12, 20, 22))[4].unlink()
    rows = [f"ACC{patient}1,Heart size is normal in case {patient}." for patient in range(5)]
    reports = table(tmp_path / "r.csv", "AccessionNumber,report", *rows, "ACC77,Gone.")
    words = ["prepare", "--corpus", "dicom", "--root", str(root), "--table", str(reports), "--workers", "1"]
    words += ["--shape", "16", "32", "32", "--spacing", "3", "2", "2", "--vocabulary-size", "200"]
    words += [
        "--fractions",
        "1",
        "0",
        "0",
        "--max-rejected",
        "1",
        "--series-rule",
        "all",
        "--list-left-out",
        str(tmp_path / "left.csv"),
    ]
    out = tmp_path / "shards"
    assert main([*words, "--out", str(out), "--list-unmatched", str(tmp_path / "un.csv")]) == 0
    assert sum(open_shards(out).splits.values()) == 10
    manifest = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(entry.get("reason", "") for entry in manifest) == [""] * 10 + [
        "empty-report",
        "empty-report",
        "missing-slices",
    ]
    assert len({entry["study"] for entry in manifest if entry["class"] != "rejected-with-reason"}) == 5
    with open(tmp_path / "un.csv") as opened:
        assert [(row["missing"], row["id"]) for row in csv.DictReader(opened)] == [
            ("row", "ACC02"),
            ("row", "ACC51"),
            ("volume", "ACC77"),
        ]
    assert (tmp_path / "left.csv").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "shards.headers.jsonl").stat().st_mode & 0o777 == 0o600
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for secret in ("MRN", "ACC", "1.2.0.1", "1.3.0.1", *SECRETS):
        assert secret.encode() not in kept
    train_step(out, tmp_path / "run")
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "soft"), "--kernel", "soft", "--empty-report", "note"]) == 0
    assert sum(open_shards(tmp_path / "soft").splits.values()) == 6
    assert main([*words, "--out", str(out)]) == 0
    assert "is already prepared from these studies and settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--corpus", "folder", "--table", "r.csv", "--min-slices", "4"], "does not search for series"),
        (["--corpus", "folder", "--table", "r.csv", "--series-rule", "all"], "does not search for series"),
        (["--corpus", "dicom"], "--corpus dicom needs --root"),
        (["--corpus", "dicom", "--root", ".", "--min-slices", "0"], "it must be 1 or more"),
        (["--corpus", "dicom", "--root", ".", "--sentences", "r.csv"], "has no --sentences"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.csv").write_text("volume,report\na.nii,x\n")
    assert main(["prepare", "--out", "shards", *words]) == 2
    assert message in capsys.readouterr().err
