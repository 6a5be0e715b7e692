"""`medclip verify` of trees of DICOM files: what is read, what is left out, and what is joined to it."""

import csv
import json

import pytest

from medclip_jax.cli.main import main
from tests.corpora.made_dicom_tree import series, table

SMALL = ["--shape", "16", "32", "32", "--spacing", "3", "2", "2", "--workers", "1"]


@pytest.mark.parametrize(
    ("corpus", "joined", "header", "rows"),
    [
        ("dicom", "reports", "AccessionNumber,report", ("ACC11,Normal heart.", "ACC99,Gone.")),
        ("nlst", "participants", "pid,can_scr,candx_days,fup_days", ("MRN1,0,.N,2200", "MRN9,0,.N,2000")),
    ],
)
def test_a_tree(tmp_path, capsys, corpus, joined, header, rows):
    """Of two patients: one soft and one sharp series; a series with a gap."""
    root = tmp_path / "tree"
    series(root / "a", 1, 1, 1, shape=(12, 20, 22))
    series(root / "b", 1, 1, 2, shape=(12, 20, 22), ConvolutionKernel="B70f")
    series(root / "c", 2, 1, 1, shape=(12, 20, 22))[4].unlink()
    beside = table(tmp_path / "table.csv", header, *rows)
    lists = {name: tmp_path / f"{name}.csv" for name in ("list", "list-unmatched", "list-left-out")}
    words = ["verify", str(root), "--corpus", corpus, "--table", str(beside), *SMALL]
    words += ["--json", str(tmp_path / "counts.json"), "--page", str(tmp_path / "page.html")]
    assert main([*words, *(word for name, path in lists.items() for word in (f"--{name}", str(path)))]) == 1
    printed = capsys.readouterr()
    assert "3 series in 2 studies of 2 patients; 1 series is taken" in printed.err
    assert "missing-slices" in printed.out
    said = {name: list(csv.DictReader(path.open())) for name, path in lists.items()}
    assert [(row["kind"], row["code"]) for row in said["list"]][-1] == ("rejected", "missing-slices")
    assert [(row["table"], row["missing"]) for row in said["list-unmatched"]] == [
        (joined, "row"),
        (joined, "volume"),
    ]
    assert [(row["series"], row["code"]) for row in said["list-left-out"]] == [("1.3.1.1.2", "not-chosen")]
    # Nothing was prepared, and what may be passed on names nobody.
    assert {path.name for path in tmp_path.iterdir()} == {
        "tree", "table.csv", "counts.json", "page.html", *(path.name for path in lists.values()),
    }  # fmt: skip
    kept = (tmp_path / "counts.json").read_text() + (tmp_path / "page.html").read_text() + printed.out
    assert json.loads((tmp_path / "counts.json").read_text())
    for secret in ("MRN1", "MRN2", "ACC11", "1.3.1.1.1", "DOE"):
        assert secret not in kept
