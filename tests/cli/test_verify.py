"""`medclip verify` on a made archive with one fault of each kind."""

import csv
import gzip
import json
import stat

import nibabel
import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.pages.verification import far_from_others

SMALL = ["--shape", "8", "8", "8", "--spacing", "12", "12", "12", "--workers", "1"]
AFFINE = np.diag([5.0, 5.0, 6.0, 1.0])
SECRET = "MRN4711"


def body(seed: int) -> np.ndarray:
    voxels = np.full((20, 20, 16), -1000.0)
    voxels[4:16, 4:16] = 40
    return (voxels + np.random.default_rng(seed).normal(0, 10, voxels.shape)).astype(np.int16)


def write(root, faults: bool):
    """Eight studies of eight patients; with faults, five of them cannot be used and three are noted."""
    rows = []
    for index in range(8):
        name = f"{SECRET}_{index}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(body(index), AFFINE), root / name)
        report = f"Case {index}. There is {'no ' if index % 2 else ''}pericardial effusion."
        rows.append([name, f"{SECRET}-{index}", report, "1" if index < 3 else "-1" if index < 5 else ""])
    if faults:
        path = root / rows[0][0]
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()))[:2000])
        nibabel.save(nibabel.Nifti1Image(np.full((20, 20, 16), 7, np.int16), AFFINE), root / rows[1][0])
        nibabel.save(nibabel.Nifti1Image(body(2), np.diag([90.0, 90, 90, 1])), root / rows[2][0])
        rows[3][2] = ""
        (root / rows[4][0]).unlink()
        rows[6][2] = rows[5][2]
        nibabel.save(nibabel.Nifti1Image(body(5), AFFINE), root / rows[7][0])
    table = root / "studies.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["volume", "patient", "report", "label:pericardial_effusion"])
        writer.writerows(rows)
    return table


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return write(tmp_path_factory.mktemp("broken"), faults=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole"), faults=False)


def test_every_fault_is_counted_and_shown(broken, tmp_path, capsys):
    page, numbers, listed = (tmp_path / name for name in ("page.html", "numbers.json", "list.csv"))
    arguments = ["verify", "--table", str(broken), *SMALL, "--page", str(page), "--json", str(numbers)]
    assert main([*arguments, "--list", str(listed)]) == 1
    found = json.loads(numbers.read_text())
    assert found["classes"] == {"accepted": 0, "accepted-with-note": 3, "rejected-with-reason": 5}
    assert found["rejected"] == {
        "truncated-file": [1],
        "constant": [2],
        "implausible-spacing": [3],
        "empty-report": [4],
        "missing-file": [5],
    }
    assert found["notes"]["duplicate-report"] == 2
    assert found["notes"]["duplicate-volume"] == 1
    assert found["reports"]["empty"] == 1
    assert found["reports"]["different"] == 6
    assert found["reports"]["repeated"] == 2
    assert found["labels"]["pericardial_effusion"] == {"present": 3, "absent": 2, "unknown": 3}
    # Rows 6, 7 and 8 are accepted; row 7 has row 6's report: denied, denied, denied.
    assert found["reports"]["findings"]["pericardial_effusion"] == {
        "stated": 0,
        "denied": 3,
        "not_mentioned": 0,
    }
    assert found["quantiles"]["slices"]["50%"] == 16
    assert found["quantiles"]["mm between slices"]["50%"] == 6
    assert sum(found["voxels_by_hu"].values()) == 3 * 4 * 5 * 5
    assert sum(split["patients"] for split in found["splits"].values()) == 3
    printed = "".join(capsys.readouterr())
    assert "The gzip data end early" in printed
    # The constant volume and that of impossible spacing open, and are drawn; the truncated one is not.
    html = page.read_text()
    assert html.count("data:image/png") == 2 + 3 + 3
    for text in (printed, html, numbers.read_text()):
        assert SECRET not in text
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    assert {row["code"] for row in rows if row["kind"] == "rejected"} == set(found["rejected"])
    assert all(SECRET in row["path"] for row in rows)
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600


def test_what_verify_says_is_what_prepare_does(broken, tmp_path, capsys):
    key = tmp_path / "key"
    arguments = ["--table", str(broken), *SMALL, "--key", str(key)]
    out = tmp_path / "shards"
    main(["prepare", *arguments, "--out", str(out), "--max-rejected", "1", "--tokenizer", "none"])
    numbers = tmp_path / "numbers.json"
    main(["verify", *arguments, "--json", str(numbers)])
    found = json.loads(numbers.read_text())
    entries = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    for code, rows in found["rejected"].items():
        assert rows == sorted(entry["row"] for entry in entries if entry.get("reason") == code)
    notes = [note for entry in entries for note in entry.get("notes", ())]
    assert {note: notes.count(note) for note in notes} == found["notes"]
    kept = [entry["split"] for entry in entries if "reason" not in entry]
    assert {name: split["studies"] for name, split in found["splits"].items()} == {
        name: kept.count(name) for name in found["splits"]
    }


def test_a_sample_reads_no_more_and_checks_every_row(broken, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    main(["verify", "--table", str(broken), *SMALL, "--sample", "2", "--json", str(numbers)])
    found = json.loads(numbers.read_text())
    assert found["unread"] == 8 - 2 - 2  # rows without a file or a report are not among those drawn
    assert found["rejected"]["missing-file"] == [5]
    assert found["rejected"]["empty-report"] == [4]
    assert found["reports"]["different"] == 6


def test_exit_status(whole, broken, tmp_path, capsys):
    assert main(["verify", "--table", str(whole), *SMALL]) == 0
    assert main(["verify", "--table", str(whole), *SMALL, "--limit", "0"]) == 3
    assert main(["verify", "--table", str(tmp_path / "none.csv"), *SMALL]) == 2
    assert main(["verify", "here", "--root", "there", "--table", str(whole)]) == 2
    assert main(["verify", "--corpus", "phantom"]) == 2
    assert "--phantom-folder" in capsys.readouterr().err


def test_the_folder_may_stand_alone(whole, tmp_path, capsys):
    assert main(["verify", str(whole.parent), "--table", str(whole), *SMALL]) == 0
    assert "8 " in capsys.readouterr().out


def test_no_table_of_findings_where_nobody_says_anything(whole, tmp_path, capsys):
    with whole.open(newline="") as file:
        rows = list(csv.DictReader(file))
    silent = whole.with_name("silent.csv")
    with silent.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["volume", "patient", "report"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"report": ""} for row in rows)
    for table, shown in ((whole, True), (silent, False)):
        main(["verify", "--table", str(table), *SMALL])
        assert ("what reports say" in capsys.readouterr().out) == shown


def test_values_far_from_the_others():
    assert far_from_others(np.array([1.0] * 20 + [1.26])).nonzero()[0].tolist() == [20]
    assert not far_from_others(np.array([1.0] * 20 + [1.1])).any()
    assert not far_from_others(np.array([1.0] * 5 + [9.0])).any()  # too few to tell
    spread = np.append(np.linspace(3, 5, 31), (12.0, -0.5))
    assert far_from_others(spread).nonzero()[0].tolist() == [31, 32]
