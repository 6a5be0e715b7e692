"""`medclip reports` on files made here."""

import io
import json

import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.report_files import read_report_files
from medclip_jax.reports.agreement import Agreement

TABLE = (
    "report,Cardiomegaly,label: emphysema\n"
    '"FINDINGS: Cardiomegaly.\nNo emphysema.",1,0\n'
    "Heart size is normal. Emphysema.,1,1\n"
    "Clear lungs.,0,0\n"
)


def test_a_report_through_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("HISTORY: emphysema.\nFINDINGS: The heart isn't enlarged."))
    assert main(["reports", "-", "--findings", "Cardiomegaly", "emphysema"]) == 0
    out = capsys.readouterr().out
    assert "HISTORY (not read: clinical information)" in out
    assert 'cardiomegaly: negated, "heart is not enlarged" by "not"' in out
    assert "cardiomegaly: absent" in out
    assert "emphysema:" not in out


def test_a_table_is_compared_with_its_labels(tmp_path, capsys):
    path = tmp_path / "reports.csv"
    path.write_text(TABLE)
    found = read_report_files(str(path))
    assert found.two_valued
    assert [report.labels for report in found.reports] == [
        {"cardiomegaly": 1, "emphysema": -1},
        {"cardiomegaly": 1, "emphysema": 1},
        {"cardiomegaly": -1, "emphysema": -1},
    ]
    assert main(["reports", str(path), "--summary", "--findings", "cardiomegaly", "emphysema"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cardiomegaly", "1", "1", "1", "0"] in lines
    assert ["emphysema", "1", "1", "1", "0"] in lines
    assert ["cardiomegaly", "3", "0.667", "1", "1.000", "0.500", "0.667"] in lines
    assert ["emphysema", "3", "1.000", "0", "1.000", "1.000", "1.000"] in lines
    assert main(["reports", str(path), "--differences"]) == 0
    out = capsys.readouterr().out
    assert "labeled otherwise: cardiomegaly: read absent, labeled present" in out
    assert "row 2\n" in out
    assert "row 1\n" not in out


def test_a_table_of_single_statements_and_sections_in_columns(tmp_path):
    path = tmp_path / "statements.csv"
    path.write_text("text,finding,status\nNo effusion.,Pleural effusion,-1\nClear.,emphysema,0\n")
    found = read_report_files(str(path))
    assert [report.labels for report in found.reports] == [{"pleural_effusion": -1}, {"emphysema": 0}]
    assert not found.two_valued
    path.write_text("Findings_EN;Impressions_EN\nClear lungs.;Normal.\n")
    (report,) = read_report_files(str(path)).reports
    assert report.text == "FINDINGS: Clear lungs.\nIMPRESSION: Normal."
    path.write_text("id,said\n1,Cardiomegaly.\n")
    with pytest.raises(ValueError, match="--column"):
        read_report_files(str(path))
    (report,) = read_report_files(str(path), column="said").reports
    assert report.text == "Cardiomegaly."


def test_a_folder_and_its_page_and_json(tmp_path, capsys):
    folder = tmp_path / "reports"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("No <script>alert(1)</script> consolidation.")
    (folder / "b" / "c.txt").write_bytes("Œdème; cardiomegaly.".encode("utf-16"))
    (folder / "scan.nii").write_bytes(b"\0")
    page, lines = tmp_path / "out" / "page.html", tmp_path / "out" / "lines.jsonl"
    assert main(["reports", str(folder), "--out", str(page)]) == 0
    assert "no text files (.txt, .text, .md, .rpt): 1 files" in capsys.readouterr().out
    text = page.read_text()
    assert "b/c.txt" in text
    assert "<script>" not in text
    assert main(["reports", str(folder), "--out", str(lines), "--summary"]) == 0
    first, second = map(json.loads, lines.read_text().splitlines())
    assert first["findings"]["consolidation"]["status"] == -1
    assert second["findings"]["cardiomegaly"]["status"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "no 'nowhere.txt'"),
        (["report.txt", "--findings", "cardiomegali"], "perhaps cardiomegaly"),
        (["report.txt", "--out", "page.pdf"], "writes .html or .jsonl"),
        (["report.txt", "--differences"], "no labels"),
        (["latin.txt"], "--encoding"),
        (["."], None),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.txt").write_text("Clear.")
    (tmp_path / "latin.txt").write_bytes(b"\xd6dem.")
    assert main(["reports", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert (message or "--encoding") in error


def test_agreement_by_its_definition():
    pairs = [(1, 1), (1, -1), (-1, 1), (0, 1), (0, -1), (-1, -1), (0, 0)]
    three, two = Agreement(), Agreement()
    for status, label in pairs:
        three.add(status, label)
        two.add(status, label, two_valued=True)
    assert (three.labeled, three.equal, three.swapped) == (7, 3, 2)
    assert (two.labeled, two.equal, two.swapped) == (7, 4, 1)
    assert (three.true_positive, three.false_positive, three.false_negative) == (1, 1, 2)
    assert (three + two).labeled == 14
    assert three.precision == 1 / 2
    assert three.recall == 1 / 3
    assert three.f1 == 2 / 5
    assert Agreement().f1 == Agreement().share == 0
