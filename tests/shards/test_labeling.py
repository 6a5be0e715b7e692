"""A user's own table beside a prepared set: every state of its ids and cells, and what is said of it."""

import csv
import json

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.tables import TableError
from medclip_jax.shards.keys import hashed_integer, hashed_text
from medclip_jax.shards.label_rows import read_rows
from medclip_jax.shards.label_tables import read_label_table
from medclip_jax.shards.labeling import join_rows
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import Schema, ShardError
from medclip_jax.shards.write import write_shards
from tests.tiny_run import FINDINGS, SHAPE, SPACING, made_records

KEY = b"k" * 32
SECRET = "MRN90210"


def volume(number):
    return f"scans/{SECRET}-{number}.nii.gz"


def patient(number):
    return f"{SECRET}-P{number // 2}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Ten volumes of five patients, two of a study, and one that was rejected."""
    folder = tmp_path_factory.mktemp("label") / "shards"
    records, entries = [], []
    for number, record in enumerate(made_records(10, 1)):
        ids = {
            "id": hashed_text(KEY, "volume", volume(number)),
            "patient": hashed_integer(KEY, "patient", patient(number)),
            "study": hashed_integer(KEY, "study", json.dumps([patient(number), f"s{number // 2}"])),
        }
        records.append(record | ids)
        split, index = ("train", number) if number < 6 else ("test", number - 6)
        entries.append(
            ids
            | {"class": "accepted", "split": split, "row": number + 1, "notes": [], "checksum": ""}
            | {"shard": f"medclip-{split}.array_record-00000-of-00001", "index": index}
        )
    schema = Schema(SHAPE, SPACING, FINDINGS, (), ("cac_grade",))
    write_shards(folder, schema, {"train": records[:6], "test": records[6:]})
    entries.append(
        {
            "id": hashed_text(KEY, "volume", volume(99)),
            "patient": hashed_integer(KEY, "patient", "gone"),
            "class": "rejected-with-reason",
            "reason": "no-contrast",
            "row": 11,
        }
    )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    written = json.loads((folder / "prepare.json").read_text())
    written["settings"]["id_rule"] = 2
    (folder / "prepare.json").write_text(json.dumps(written))
    folder.with_name("shards.key").write_text(KEY.hex())
    return folder


def table(tmp_path, text, encoding="utf-8", name="mine.csv"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return tmp_path / name


def joined(shards, path, **settings):
    return join_rows(read_rows(path, **settings), read_manifest(shards), KEY, "mine")


def labels_of(found, number, unit="volume"):
    ids = {
        "volume": hashed_text(KEY, "volume", volume(number)),
        "patient": str(hashed_integer(KEY, "patient", patient(number))),
        "study": str(hashed_integer(KEY, "study", json.dumps([patient(number), f"s{number // 2}"]))),
    }
    return found.table.rows[ids[unit]][0]


@pytest.mark.parametrize(
    "text",
    [
        "id,label:cardiomegaly\n{v},1\n",
        "\ufeffID;label:Cardiomegaly\r\n{v};1\r\n",
        "VolumeName\tLABEL:cardiomegaly\n{v}\ttrue\n",
        "volume,patient,label:cardiomegaly\n{v},{p},yes\n",
        "volume,label:cardiomegaly\n./{v},1.0\n",
        'volume,label:cardiomegaly\n"{v}",+1\n',
        "id|label:cardiomegaly\n{stem}|Present\n",
    ],
)
def test_spellings_of_a_table(shards, tmp_path, text):
    filled = text.format(v=volume(3), p=patient(3), stem=volume(3).removesuffix(".nii.gz"))
    found = joined(shards, table(tmp_path, filled))
    assert found.table.unit == "volume"
    assert found.matched == (1, 1)
    assert labels_of(found, 3) == (1,)
    assert "9 volumes of the set without a row: their values stay as they were" in found.remarks


def test_patients_and_studies_go_to_all_of_their_volumes(shards, tmp_path):
    found = joined(shards, table(tmp_path, f"id,measurement:ffr\n{patient(2)},0.8\n{patient(4)},nan\n"))
    assert (found.table.unit, found.matched) == ("patient", (2, 4))
    assert (
        "joined by patient: 2 of 2 rows are of 2 patients of the set; 4 of its 10 volumes" in found.remarks[0]
    )
    assert found.counts["measurement:ffr"] == {"train": (2, 1, 4), "test": (0, 0, 4)}
    text = f"study,patient,group:site\ns1,{patient(2)},A\ns2,{patient(4)},B\n"
    found = joined(shards, table(tmp_path, text))
    assert (found.table.unit, found.matched) == ("study", (2, 4))
    with pytest.raises(TableError, match=r"none of the 2 ids.*studies beside their patients"):
        joined(shards, table(tmp_path, "study,group:site\ns1,A\ns2,B\n"))


def test_ids_with_a_float_suffix_and_numbers_that_were_rounded(tmp_path):
    rows = read_rows(table(tmp_path, "patient,label:cardiomegaly\n123.0,1\n456.0,-1\n"))
    assert [row.ids["patient"] for row in rows.rows] == ["123", "456"]
    assert any("a number with .0 behind it" in remark for remark in rows.remarks)
    with pytest.raises(TableError, match="scientific notation"):
        read_rows(table(tmp_path, "patient,label:cardiomegaly\n1.23457E+11,1\n"))
    with pytest.raises(TableError, match="leading zeros alone"):
        read_rows(table(tmp_path, "patient,label:cardiomegaly\n007,1\n7,1\n"))


def test_rows_without_a_partner_are_counted_and_named(shards, tmp_path):
    text = (
        "id,label:cardiomegaly\n"
        f"{volume(0)},1\nnobody.nii.gz,1\n,1\nnan,-1\n{volume(99)},1\n{volume(1)},-1\n\nother,\n"
    )
    found = joined(shards, table(tmp_path, text))
    assert found.matched == (2, 2)
    said = "\n".join(found.remarks)
    assert "2 of 7 rows are of 2 volumes" in said
    assert "2 rows of no volume of the set, left out: rows 2, 8" in said
    assert "2 rows without an id, left out: rows 3, 4" in said
    assert "1 row of volumes that were rejected when the set was prepared, left out: row 5" in said
    assert "1 empty rows are passed over" in said
    assert SECRET not in said
    assert [one[:2] for one in found.unmatched[:3]] == [("row", 2), ("row", 5), ("row", 8)]
    assert [one[1] for one in found.unmatched[3:]] == [3, 4, 5, 6, 7, 8, 9, 10]


def test_doubled_rows_that_agree_go_together(shards, tmp_path):
    header = "id,label:cardiomegaly,measurement:ffr,group:site\n"
    text = f"{header}{volume(0)},1,,A\n{volume(0)},1,0.5,\n{volume(0)},,0.5,A\n"
    found = joined(shards, table(tmp_path, text))
    ((labels, measured, groups),) = found.table.rows.values()
    assert (labels, measured, groups) == ((1,), (0.5,), ("A",))
    assert "2 rows with the id of an earlier row; what they say goes together: rows 2, 3" in found.remarks


def test_doubled_rows_that_contradict_each_other_are_refused(shards, tmp_path):
    header = "id,label:cardiomegaly,measurement:ffr,group:site\n"
    text = f"{header}{volume(0)},1,0.5,A\n{volume(1)},1,0.5,A\n{volume(0)},-1,0.6,A\n"
    with pytest.raises(TableError, match="contradict each other") as error:
        joined(shards, table(tmp_path, text))
    assert "column 'label:cardiomegaly': rows 1, 3" in str(error.value)
    assert "column 'measurement:ffr': rows 1, 3" in str(error.value)
    assert "group:site" not in str(error.value)
    assert SECRET not in str(error.value)


def read_labels(tmp_path, *cells, **settings):
    lines = "".join(f"p{place},{cell}\n" for place, cell in enumerate(cells))
    rows = read_rows(table(tmp_path, f"patient,label:cardiomegaly\n{lines}"), **settings)
    return [row.values[0][0] for row in rows.rows], "\n".join(rows.remarks)


def test_what_cells_mean(tmp_path):
    assert read_labels(tmp_path, "1", "0", "", "nan", "yes", "True")[0] == [1, -1, 0, 0, 1, 1]
    assert "0 is read as absent" in read_labels(tmp_path, "1", "0")[1]
    assert read_labels(tmp_path, "1", "-1", "", "N/A", "no", "?")[0] == [1, -1, 0, 0, -1, 0]
    assert "-1 is read as absent" in read_labels(tmp_path, "1", "-1")[1]
    assert read_labels(tmp_path, "0", "0.0", "")[0] == [0, 0, 0]
    assert "0 is read as unknown" in read_labels(tmp_path, "0", "")[1]
    assert read_labels(tmp_path, "1", "no", "0")[0] == [1, -1, 0]


def test_zeros_beside_minus_ones_must_be_told_apart(tmp_path):
    with pytest.raises(TableError, match=r"hold 0 and -1, and each can.*--absent -1 .*--absent 0"):
        read_labels(tmp_path, "1", "0", "-1.0")
    assert read_labels(tmp_path, "1", "0", "-1.0", "no", absent="0")[0] == [1, -1, 0, -1]
    assert read_labels(tmp_path, "1", "0", "-1.0", "no", absent="-1")[0] == [1, 0, -1, -1]


def test_cells_that_cannot_be_read_are_all_listed(tmp_path):
    text = (
        "patient,label:cardiomegaly,measurement:ffr,group:birth\n"
        'p1,2,0.5,A\np2,1,high,A\np3,maybe,0.5,19580203\np4,1,"0,8",A\n'
    )
    with pytest.raises(TableError) as error:
        read_rows(table(tmp_path, text))
    one, two, three = str(error.value).splitlines()[1:]
    assert one.startswith("  column 'label:cardiomegaly', rows 1, 3: a label is 1 (present), -1 (absent)")
    assert two.startswith("  column 'measurement:ffr', rows 2, 4: must be a number, with a point")
    assert three.startswith("  column 'group:birth', row 3: a group is a category")
    assert "19580203" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label:cardiomegaly\na,1\n", "has no column of ids: name it 'id'.*Its columns are: 'name'"),
        (
            "id,cardiomegaly\na,1\n",
            r"no column of values.*\(for ground truth, name it 'label:card",
        ),
        ("MRN4711,1\nMRN4712,0\n", "no column of ids.*none whose name is known"),
        ("id,label:gout\na,1\n", "label of an unknown finding"),
        ("id,label:cardiomegaly,label:Cardiomegaly\na,1,1\n", "several columns that mean 'cardiomegaly'"),
    ],
)
def test_tables_without_the_columns(tmp_path, text, message):
    with pytest.raises((TableError, ValueError), match=message) as error:
        read_rows(table(tmp_path, text))
    assert "4711" not in str(error.value)


def test_unknown_columns_are_named(tmp_path):
    rows = read_rows(table(tmp_path, "id,label:cardiomegaly,lable_emphysema,age\na,1,1,3\n"))
    assert any("columns that are not read: 'lable_emphysema'" in remark for remark in rows.remarks)


def test_another_patient_than_the_set_has(shards, tmp_path):
    text = f"volume,patient,label:cardiomegaly\n{volume(0)},{patient(0)},1\n{volume(1)},{patient(8)},1\n"
    with pytest.raises(TableError, match="row 2 name another patient than the set has"):
        joined(shards, table(tmp_path, text))


def label(shards, path, *more):
    return main(["label", str(shards), "--table", str(path), "--name", "mine", *more])


def test_the_command_and_the_records_with_the_table(shards, tmp_path, capsys):
    (tmp_path / "own.toml").write_text('[gout]\nphrase = "gout"\n')
    own = [record["labels"][0] for record in (open_split(shards, "test")[n] for n in range(4))]
    cells = ["".join(f",{-own[0]}" if n == 6 else ",") for n in range(10)]
    lines = "".join(
        f"{volume(n)},{'1' if n % 2 else ''}{cells[n]},{'' if n == 7 else n / 10},{'AB'[n % 2]},3\n"
        for n in range(5, 10)
    )
    header = "volume,label:gout,label:cardiomegaly,measurement:ffr,group:site,measurement:cac_grade\n"
    path = table(tmp_path, header + lines)
    assert label(shards, path) == 2
    assert "unknown finding 'gout'" in capsys.readouterr().err
    more = ["--findings", str(tmp_path / "own.toml")]
    assert label(shards, path, *more, "--dry-run") == 0
    assert "nothing is written" in capsys.readouterr().out
    assert not (shards / "tables").exists()
    assert label(shards, path, *more, "--list-unmatched", str(tmp_path / "lost.csv")) == 0
    out = capsys.readouterr().out
    assert "column 'label:cardiomegaly': 1 volume with another value in the set itself" in out
    assert SECRET not in out
    assert len(list(csv.reader((tmp_path / "lost.csv").open()))) == 6
    assert SECRET not in (shards / "tables/mine.json").read_text()
    assert label(shards, path, *more) == 2
    assert "has a table 'mine' already: give --replace" in capsys.readouterr().err

    info = open_shards(shards, tables=("mine",))
    assert info.findings == (*FINDINGS, "gout")
    assert info.measurements == ("cac_grade", "ffr")
    assert info.groups == ("site",)
    assert "gout" in info.definitions
    plain = open_split(shards, "test")
    laid = open_split(info, "test")
    for n in range(4):
        record, before = laid[n], plain[n]
        number = n + 6
        assert record["labels"].tolist() == [
            -own[0] if n == 0 else before["labels"][0],
            *before["labels"][1:],
            number % 2,
        ]
        assert record["findings"].tolist() == [*before["findings"], 0]
        np.testing.assert_array_equal(
            record["measurements"], np.array([3, np.nan if number == 7 else number / 10], np.float32)
        )
        assert record["groups"] == {"site": "AB"[number % 2]}
        np.testing.assert_array_equal(record["volume"], before["volume"])
        assert record["report"] == before["report"]
    first = open_split(info, "train", fields=["labels", "groups"])[0]
    assert set(first) == {"labels", "groups"}
    assert (first["labels"][-1], first["groups"]) == (0, {})
    assert info.fingerprint != open_shards(shards).fingerprint
    before = info.fingerprint
    path.write_text(path.read_text().replace(",3\n", ",4\n"))
    assert label(shards, path, *more, "--replace") == 0
    assert open_shards(shards, tables=("mine",)).fingerprint != before
    with pytest.raises(ShardError, match=r"'mine' and 'mine'.*both have the column"):
        open_shards(shards, tables=("mine", "mine"))
    (shards / "tables/mine.json").write_text('{"unit": "volume"}')
    with pytest.raises(ShardError, match=r"mine\.json is damaged .*--replace"):
        read_label_table(shards, "mine")
    (shards / "tables/mine.json").unlink()
    with pytest.raises(ShardError, match=r"has no table 'mine'; it has none\. `medclip label"):
        open_shards(shards, tables=("mine",))


def test_the_wrong_key_and_names(shards, tmp_path, capsys):
    path = table(tmp_path, f"id,label:cardiomegaly\n{volume(0)},1\n")
    (tmp_path / "other.key").write_text("00" * 32)
    assert label(shards, path, "--key", str(tmp_path / "other.key")) == 2
    assert "none of the 1 ids" in (err := capsys.readouterr().err)
    assert "Is --key the key that the set was prepared with" in err
    assert label(shards, path, "--key", str(tmp_path / "no.key")) == 2
    assert "no key file" in capsys.readouterr().err
    assert not (tmp_path / "no.key").exists()
    assert main(["label", str(shards), "--table", str(path), "--name", "../x"]) == 2
    assert "cannot be called '../x'" in capsys.readouterr().err
    assert label(shards, tmp_path / "none.csv") == 2
    assert "no table" in capsys.readouterr().err
