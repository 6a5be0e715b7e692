"""Groups of patients (scanner, sex): from the table into records, and to the evaluators."""

import dataclasses
import json

import numpy as np
import pytest

from medclip_jax.corpora.columns import find_columns
from medclip_jax.corpora.folder import TableError, folder
from medclip_jax.evaluation.embeddings import embed_split
from medclip_jax.shards.check import check
from medclip_jax.shards.mixture import check_alike
from medclip_jax.shards.plan import make_plan
from medclip_jax.shards.prepare import prepare
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.settings import PrepareSettings, resolve
from tests.shards.conftest import body, save, write_table

SETTINGS = PrepareSettings(shape=(16, 20, 24), spacing=(6.0, 4.0, 4.0), tokenizer=None, empty_report="note")


def rows(tmp_path, *groups):
    """A table of as many scans, each with what is given."""
    found = []
    for number, given in enumerate(groups):
        save(tmp_path / f"{number}.nii.gz", body(number))
        row = {"volume": f"{number}.nii.gz", "patient": f"p{number}", "report": f"Case {number}."}
        found.append(row | {"split": "train"} | given)
    return write_table(tmp_path / "studies.csv", found)


def test_groups_reach_the_records_and_older_sets_have_none(tmp_path):
    table = rows(
        tmp_path,
        {"group:scanner": "Site A", "group:sex": "F"},
        {"group:scanner": "  Site   B ", "group:sex": "nan"},
        {"group:scanner": "Site A", "group:sex": ""},
    )
    info = prepare(folder(table), tmp_path / "out", SETTINGS, workers=1, key=b"k", progress=False)
    assert open_shards(tmp_path / "out").groups == info.groups == ("scanner", "sex")
    found = [one["groups"] for one in open_split(info, "train", fields=["groups"])]
    assert sorted(found, key=str) == [
        {"scanner": "Site A", "sex": "F"},
        {"scanner": "Site A"},
        {"scanner": "Site B"},
    ]
    counted = check(info, progress=False).groups
    assert counted == {"scanner": {"Site A": 2, "Site B": 1}, "sex": {"F": 1, "": 2}}
    written = resolve(SETTINGS, folder(table).studies).to_json()
    again = PrepareSettings.from_json(json.loads(json.dumps(written)))
    assert again.groups == ("scanner", "sex")


def test_a_set_without_groups_is_what_it_was(tmp_path):
    studies = folder(rows(tmp_path, {}, {}))
    settings = resolve(SETTINGS, studies.studies)
    assert "groups" not in settings.to_json()
    assert "groups" not in settings.schema.arrays
    named = [dataclasses.replace(study, groups={"sex": "F"}) for study in studies]
    digests = [
        [shard.digest for shard in make_plan(given, settings, b"k")] for given in (studies.studies, named)
    ]
    assert digests[0] != digests[1]  # a new value is a new shard


def test_sets_with_and_without_groups_can_be_mixed(tmp_path):
    first, second = (
        prepare(folder(rows(tmp_path, given)), tmp_path / name, SETTINGS, workers=1, key=b"k", progress=False)
        for name, given in (("a", {"group:sex": "F"}), ("b", {}))
    )
    check_alike([first, second])
    check_alike([second, first])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["19580203"], r"row 1 .*'group:birth'.*a group is a category.*without a number of five digits"),
        (["x" * 41], "at most 40 characters"),
        ([f"v{n}" for n in range(101)], r"101 different values.*Ids and dates are no groups.*age 60-69"),
    ],
)
def test_what_is_no_group_is_refused(tmp_path, values, message):
    lines = "\n".join(f"a{n}.nii,p{n},text,{value}" for n, value in enumerate(values))
    (tmp_path / "t.csv").write_text(f"volume,patient,report,group:birth\n{lines}\n")
    with pytest.raises(TableError, match=message) as error:
        folder(tmp_path / "t.csv")
    assert values[0] not in str(error.value)


def test_values_that_differ_in_capitals_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("volume,report,group:sex\na,r,F\nb,s,f\n")
    remarks = folder(tmp_path / "t.csv").remarks
    assert any("'F' and 'f' differ in capitals alone" in remark for remark in remarks)


def test_names_of_groups(tmp_path):
    with pytest.raises(TableError, match="the name of a group is written into the prepared set"):
        find_columns(["volume", "report", "group:MRN 4711823"], tmp_path, False)
    with pytest.raises(TableError, match="several columns that mean 'sex'"):
        find_columns(["volume", "report", "group:sex", "Group: sex"], tmp_path, False)
    (ignored,) = find_columns(["volume", "report", "subgroup_scanner"], tmp_path, False).ignored
    assert "name it 'group:scanner'" in ignored


class Embedder:
    """Reads the records, and embeds nothing."""

    pooling = "none"

    def features(self, count, read, kinds, *, label):
        for index in range(count):
            read(index)
        yield {"mean": np.zeros((count, 2), np.float32)}

    def inputs(self, record, index):
        return {}

    def logit_scale(self):
        return 1.0


def test_evaluators_see_groups_in_the_order_of_the_volumes():
    ids = {"id": "a", "study": 1, "patient": 1}
    given = [ids | {"groups": {"sex": sex}} for sex in "FMF"] + [ids | {"groups": {}}, ids]
    data = embed_split("test", given, Embedder(), groups=("sex", "scanner"))
    assert data.groups["sex"].tolist() == ["F", "M", "F", "", ""]
    assert data.groups["scanner"].tolist() == [""] * 5
    assert data.take(np.array([3, 1])).groups["sex"].tolist() == ["", "M"]
