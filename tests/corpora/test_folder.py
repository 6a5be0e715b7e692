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
    assert study.path == tmp_path / "a/1.nii.gz"
    assert (study.record_id, study.study_id, study.patient_id) == ("a/1.nii.gz", "s1", "p1")
    assert study.report == "Whole, with\nbreak"
    assert study.sections == {"findings": "F", "impression": "I"}
    assert study.split == "validation"
    assert study.series[0].modality == "MR"
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
    assert study.path == tmp_path / "a"
    assert "b" in (study.report, *study.sections.values())


def test_missing_cells(tmp_path):
    studies = list(folder(table(tmp_path, "volume,report,study\na,NaN,\n,alone,s\nb,\n")))
    assert [study.report for study in studies] == ["", "alone", ""]
    # A row without a volume is the manifest's to reject.
    assert [study.path for study in studies] == [tmp_path / "a", Path(), tmp_path / "b"]
    assert [study.study_id for study in studies] == ["a", "s", "b"]
    assert [study.patient_id for study in studies] == ["a", "s", "b"]


def test_root_and_absolute_paths(tmp_path):
    (tmp_path / "scans").mkdir()
    path = table(tmp_path, f"volume,report\na,r\n{tmp_path}/b,r\n")
    assert [study.path for study in folder(path, root=tmp_path / "scans")] == [
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
    assert study.series[0].rescale == rescale


@pytest.mark.parametrize("text", ["3 0.75 0.7", '"3, 0.75, 0.7"', '"[3.0,0.75,0.70]"', "3x0.75x0.7"])
def test_spacing_column(tmp_path, text):
    first, second = folder(table(tmp_path, f"volume,report,spacing\na,r,{text}\nb,r,\n"))
    assert first.series[0].spacing == (3.0, 0.75, 0.7)
    assert second.series[0].spacing is None


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
        ("volume,report,label:big heart\na,b,1\n", "label of an unknown finding 'big heart'.*cardiomegaly"),
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
    with pytest.raises(TableError, match=r"cannot be read as a spreadsheet.*copy it again"):
        list(folder(table(tmp_path, "PK", name="studies.xlsx")))
    with pytest.raises(TableError, match="not UTF-8"):
        list(folder(table(tmp_path, "volume,report\na,größe\n", encoding="latin-1")))
    with pytest.raises(TableError):
        list(folder(table(tmp_path, json.dumps([{"a": 1}]))))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("volume,report,report", r"several columns that mean 'report': columns 2 \('report'\) and 3"),
        ("volume,report,Report ", "several columns that mean 'report'"),
        ("Image Path,image-path,report", r"mean 'volume': columns 1 \('Image Path'\) and 2 \('image-path'\)"),
        ("volume,report,label:cardiomegaly,Label: cardiomegaly", "several columns that mean 'cardiomegaly'"),
        ("volume,report,measurement:a,measurement:a", "several columns that mean 'a'"),
        ("volume,report,measurement:MRN 4711823", "name of a measurement is written into the prepared set"),
        ("volume,text,caption", "could mean 'report': 'text', 'caption', and they differ in row 1. Rename"),
    ],
)
def test_two_columns_of_one_meaning(tmp_path, header, message):
    cells = ",".join(["a.nii", "Today's.", "Yesterday's.", "1", "2"][: header.count(",") + 1])
    with pytest.raises(TableError, match=message) as error:
        folder(table(tmp_path, f"{header}\n{cells}\n"))
    assert "Today" not in str(error.value)


def test_a_columns_own_name_goes_before_others(tmp_path):
    read = folder(table(tmp_path, "volume,path,study_id,accession,report\na,b,s,s,r\n"))
    (study,) = read
    assert (study.record_id, study.study_id) == ("a", "s")
    assert "column 'volume' is read as 'volume'; not read, though it could mean it: 'path'" in read.remarks
    assert any("'study_id' is read as 'study'; not read" in remark for remark in read.remarks)


def test_columns_that_nobody_reads_are_named(tmp_path):
    header = "volume,report,Pericardial effusion,label_emphysema,pateint,measurement_agatston,age,"
    text = f"{header}\na,r,1,1,p,3,60,\n"
    (remark,) = (
        r for r in folder(table(tmp_path, text)).remarks if r.startswith("columns that are not read")
    )
    assert "'Pericardial effusion' (for ground truth, name it 'label:pericardial_effusion')" in remark
    assert "'label_emphysema' (for ground truth, name it 'label:emphysema')" in remark
    assert "'pateint' (is it 'patient'?)" in remark
    assert "'measurement_agatston' (for a measurement, name it 'measurement:agatston')" in remark
    assert remark.endswith("'age'")


@pytest.mark.parametrize(
    ("cells", "meaning", "values"),
    [
        (["1", "0", "", "0.0"], "absent", [1, -1, 0, -1]),
        (["1", "0", "-1", "0"], "unknown", [1, 0, -1, 0]),
        (["yes", "0", "no", "unknown"], "unknown", [1, 0, -1, 0]),
        (["0", "0", "", "0"], "unknown", [0, 0, 0, 0]),
        (["1", "-1", "", "1"], None, [1, -1, 0, 1]),
        (["TRUE", "positive", "neg", "FALSE"], None, [1, 1, -1, -1]),
    ],
)
def test_what_zero_means_is_told_by_the_table(tmp_path, cells, meaning, values):
    rows = "".join(f"{place}.nii,p,r,{text}\n" for place, text in enumerate(cells))
    read = folder(table(tmp_path, f"volume,patient,report,label:emphysema\n{rows}"))
    assert [study.labels["emphysema"] for study in read] == values
    assert read.zero_label == meaning
    said = [remark for remark in read.remarks if remark.startswith("labels: 0 is read as ")]
    assert [remark.split()[5].strip(",") for remark in said] == ([meaning] if meaning else [])


def test_label_columns_decide_together(tmp_path):
    """A finding that is never denied does not make 0 mean absent in a table that writes -1."""
    text = "volume,patient,report,label:Emphysema,label: cardiomegaly\n0.nii,p,r,1,-1\n1.nii,p,r,0,1\n"
    first, second = folder(table(tmp_path, text))
    assert (first.labels["emphysema"], second.labels["emphysema"]) == (1, 0)


def test_one_rows_masks_do_not_refuse_the_table(tmp_path):
    for name in ("a", "b", "empty"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "heart.nii.gz").touch()
    rows = "".join(f"{n}.nii,p{n},r,{organs}\n" for n, organs in enumerate(("a", "empty", "no", "b", "")))
    read = folder(table(tmp_path, f"volume,patient,report,organs\n{rows}"))
    assert [sorted(study.organs) for study in read] == [["heart"], [], [], ["heart"], []]
    assert [study.notes for study in read] == [(), ("organs-folder-empty",), ("organs-not-found",), (), ()]
    assert sum("prepared without masks" in remark for remark in read.remarks) == 2
    assert any("row 2 of" in remark and "holds no .nii" in remark for remark in read.remarks)


def test_one_scan_has_one_name(tmp_path):
    (tmp_path / "scans").mkdir()
    names = ("scans/0.nii", "./scans//0.nii", "scans\\0.nii", f"{tmp_path}/scans/0.nii", "scans/x/../0.nii")
    rows = "".join(f"{name},p{n},r\n" for n, name in enumerate(names))
    studies = folder(table(tmp_path, f"volume,patient,report\n{rows}"))
    assert {study.record_id for study in studies} == {"scans/0.nii"}
    assert {study.path for study in studies} == {tmp_path / "scans/0.nii"}
    read = folder(table(tmp_path, "volume,patient,report\nC:\\scans\\0.nii,p,r\n"))
    assert any("row 1 name paths of a Windows drive" in remark for remark in read.remarks)


def test_different_reports_of_one_study(tmp_path):
    rows = "0.nii,p1,study1,Cardiomegaly.\n1.nii,p2,study1,Normal.\n2.nii,p2,study1,NORMAL\n"
    read = folder(table(tmp_path, f"volume,patient,study,report\n{rows}"))
    assert not read.remarks  # of different patients
    text = "".join(row.replace(",p1", "").replace(",p2", "") + "\n" for row in rows.splitlines())
    with pytest.raises(TableError, match="rows 1, 2, 3 have the study of another row and another report"):
        folder(table(tmp_path, f"volume,study,report\n{text}"))
    read = folder(table(tmp_path, f"volume,patient,study,report\n{rows.replace('p1', 'p2')}"))
    assert any("rows 1, 2, 3 have patient and study of another row" in remark for remark in read.remarks)


def test_a_table_without_a_header_is_not_quoted(tmp_path):
    with pytest.raises(TableError, match="does the table begin with a header line") as error:
        folder(table(tmp_path, "DOE^JANE.nii,DOE^JANE,Cardiomegaly.\n"))
    assert "DOE" not in str(error.value)
