"""Tables as people write them: what is understood, and what is refused with the fix."""

import json
from pathlib import Path

import pytest

from medclip_jax.corpora.folder import TableError, folder


def table(path: Path, text: str, name: str = "studies.csv", encoding: str = "utf-8") -> Path:
    (path / name).write_bytes(text.encode(encoding))
    return path / name


def test_every_column(tmp_path):
    (tmp_path / "masks").mkdir()
    for name in ("heart.nii.gz", "aorta.nii"):
        (tmp_path / "masks" / name).touch()
    header = (
        "volume,study,patient,report,findings,impression,split,organs,modality,"
        "label:cardiomegaly,label:pericardial_effusion,measurement:agatston_score,box,remark"
    )
    row = 'a/1.nii.gz,s1,p1,"Whole, with\nbreak",F,I,valid,masks,mr,1.0,,312.5,-10 20 -30 40 0 5,ignored'
    (study,) = folder(table(tmp_path, f"{header}\n{row}\n"))
    assert study.volume == tmp_path / "a/1.nii.gz"
    assert (study.volume_id, study.study_id, study.patient_id) == ("a/1.nii.gz", "s1", "p1")
    assert study.report == "Whole, with\nbreak"
    assert study.sections == {"findings": "F", "impression": "I"}
    assert study.split == "validation"
    assert study.modality == "MR"
    assert study.organs == {"heart": tmp_path / "masks/heart.nii.gz", "aorta": tmp_path / "masks/aorta.nii"}
    assert study.labels == {"cardiomegaly": 1, "pericardial_effusion": 0}
    assert study.measurements == {
        "agatston_score": 312.5,
        "box_x_min": -10,
        "box_x_max": 20,
        "box_y_min": -30,
        "box_y_max": 40,
        "box_z_min": 0,
        "box_z_max": 5,
    }


@pytest.mark.parametrize(
    "text",
    [
        "volume,report\na,b\n",
        "volume\treport\na\tb\n",
        "volume;report\na;b\n",
        "\ufeffVolume,Report\r\na,b\r\n",
        " Image Path ,REPORT-TEXT\na,b\n",
        "img_path,Impressions_EN\na,b\n",
        "VolumeName,Findings_EN,x\na,b,\n",
    ],
)
def test_headers_and_delimiters(tmp_path, text):
    (study,) = folder(table(tmp_path, text))
    assert study.volume == tmp_path / "a"
    assert "b" in (study.report, *study.sections.values())


def test_missing_cells(tmp_path):
    studies = list(folder(table(tmp_path, "volume,report,study\na,NaN,\n,alone,s\nb,\n")))
    assert [study.report for study in studies] == ["", "alone", ""]
    # A row without a volume is the manifest's to reject.
    assert [study.volume for study in studies] == [tmp_path / "a", Path(), tmp_path / "b"]
    assert [study.study_id for study in studies] == ["a", "s", "b"]
    assert [study.patient_id for study in studies] == ["a", "s", "b"]


def test_root_and_absolute_paths(tmp_path):
    (tmp_path / "scans").mkdir()
    path = table(tmp_path, f"volume,report\na,r\n{tmp_path}/b,r\n")
    assert [study.volume for study in folder(path, root=tmp_path / "scans")] == [
        tmp_path / "scans/a",
        tmp_path / "b",
    ]


@pytest.mark.parametrize(
    "classes",
    ['{"1": "heart", "2": "aorta", "0": "background"}', '{"heart": 1, "aorta": 2}', "classes.json"],
)
def test_multilabel_masks(tmp_path, classes):
    (tmp_path / "m.nii.gz").touch()
    (tmp_path / "classes.json").write_text('{"1": "heart", "2": "aorta"}')
    path = table(tmp_path, f"volume\treport\torgans\torgan_classes\na\tr\tm.nii.gz\t{classes}\n")
    (study,) = folder(path)
    assert study.organs == {"*": tmp_path / "m.nii.gz"}
    assert study.organ_classes == {1: "heart", 2: "aorta"}


@pytest.mark.parametrize(
    ("cells", "rescale"),
    [
        ("0.5,-1024", (0.5, -1024.0)),
        ("1,-8192.0", (1.0, -8192.0)),
        (",-1024", (1.0, -1024.0)),
        ("2,", (2.0, 0.0)),
        (",", None),
        ("NaN,nan", None),
    ],
)
@pytest.mark.parametrize(
    "names",
    ["rescale_slope,rescale_intercept", "RescaleSlope,RescaleIntercept", "Rescale Slope,rescale-intercept"],
)
def test_rescale_columns(tmp_path, names, cells, rescale):
    (study,) = folder(table(tmp_path, f"volume,report,{names}\na,r,{cells}\n"))
    assert study.rescale == rescale


@pytest.mark.parametrize("text", ["3 0.75 0.7", '"3, 0.75, 0.7"', '"[3.0,0.75,0.70]"', "3x0.75x0.7"])
def test_spacing_column(tmp_path, text):
    first, second = folder(table(tmp_path, f"volume,report,spacing\na,r,{text}\nb,r,\n"))
    assert first.spacing == (3.0, 0.75, 0.7)
    assert second.spacing is None


def test_long_reports(tmp_path):
    (study,) = folder(table(tmp_path, "volume,report\na," + "long " * 100_000 + "\n"))
    assert len(study.report) == 499_999


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan_name,report\na,b\n", r"lacks the column volume \(or .*image.*It has: 'scan_name', 'report'"),
        ("volume,diagnosis\na,b\n", r"lacks the column report \(or findings, impression\).*'diagnosis'"),
        ("", "It has: nothing"),
        ("volume,report\na,b,c\n", "row 1 .* more cells than the header.*double quotes"),
        ("volume,report,patient\na,b,p\nb,c,\n", "row 2 .*'patient'.*splits go by patient"),
        ("volume,report,split\na,b,holdout\n", "row 1 .*'split'.*must be one of"),
        ("volume,report,modality\na,b,PET\n", "must be CT or MR"),
        ("volume,report,label:cardiomegaly\na,b,2\n", r"'label:cardiomegaly'.*1 \(present\)"),
        ("volume,report,label:big heart\na,b,1\n", "labels of unknown findings: big heart.*cardiomegaly"),
        ("volume,report,measurement:score\na,b,high\n", "must be a number"),
        ("volume,report,measurement:score\na,b,inf\n", "must be a number"),
        ("volume,report,box\na,b,1 2 3\n", "six numbers"),
        ("volume,report,rescale_slope\na,b,0\n", "'rescale_slope'.*write 1"),
        ("volume,report,rescale_intercept\na,b,low\n", "'rescale_intercept'.*must be a number"),
        ("volume,report,spacing\na,b,3 1\n", "three positive numbers.*depth, height and width"),
        ("volume,report,spacing\na,b,3 1 0\n", "three positive numbers"),
        ("volume,report,box\na,b,2 1 0 1 0 1\n", "six numbers"),
        ("volume,report,organs\na,b,absent\n", "no such file or folder"),
        ("volume,report,organs\na,b,empty\n", "holds no .nii"),
        ("volume,report,organs\na,b,m.nii\n", "needs the column organ_classes"),
        ("volume,report,organs,organ_classes\na,b,m.nii,{heart}\n", "must be JSON"),
        ("volume,report,organs,organ_classes\na,b,m.nii,no.json\n", "must be JSON"),
    ],
)
def test_refused_tables(tmp_path, text, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.nii").touch()
    with pytest.raises(TableError, match=message):
        list(folder(table(tmp_path, text)))


def test_errors_do_not_quote_cells(tmp_path):
    for text in (
        "volume,report,split\nDOE^JANE,report of DOE^JANE,DOE^JANE\n",
        "volume,report,box\nDOE^JANE,b,DOE^JANE\n",
        "volume,report,organs\nDOE^JANE,b,DOE^JANE\n",
        "volume,report\nDOE^JANE,b,DOE^JANE\n",
    ):
        with pytest.raises(TableError) as error:
            list(folder(table(tmp_path, text)))
        assert "DOE" not in str(error.value)


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(TableError, match=r"no table .*--table"):
        list(folder(tmp_path / "absent.csv"))
    with pytest.raises(TableError, match=r"no folder .*--root"):
        list(folder(table(tmp_path, "volume,report\n"), root=tmp_path / "absent"))
    with pytest.raises(TableError, match="spreadsheet: save it as CSV"):
        list(folder(table(tmp_path, "PK", name="studies.xlsx")))
    with pytest.raises(TableError, match="not UTF-8"):
        list(folder(table(tmp_path, "volume,report\na,größe\n", encoding="latin-1")))
    with pytest.raises(TableError):
        list(folder(table(tmp_path, json.dumps([{"a": 1}]))))
