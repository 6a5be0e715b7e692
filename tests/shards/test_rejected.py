"""The private list of rejections."""

import csv
import shutil

import pytest

from medclip_jax.corpora.folder import folder as read_table
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.merge import merge
from medclip_jax.shards.parts import Part
from medclip_jax.shards.prepare import prepare, prepare_part
from medclip_jax.shards.record import ShardError
from tests.shards.small_set import QUIET, SETTINGS


def read(file):
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return list(csv.DictReader(opened))


def test_it_names_every_rejected_file_and_what_to_do(messy, tmp_path):
    studies = list(read_table(messy))
    prepare(studies, tmp_path / "set", SETTINGS, **QUIET, max_rejected=1.0)
    file = tmp_path / "set.rejected.csv"
    assert file.stat().st_mode & 0o777 == 0o600
    rejected = {e["row"]: e for e in read_manifest(tmp_path / "set") if e["class"].startswith("rejected")}
    found = read(file)
    assert [int(row["row"]) for row in found] == sorted(rejected)
    for row in found:
        entry, study = rejected[int(row["row"])], studies[int(row["row"]) - 1]
        assert (row["code"], row["what_to_do"]) == (entry["reason"], entry["message"])
        assert row["path"] == ("" if row["code"] == "report-without-volume" else str(study.path))


def test_it_is_there_when_too_many_rejections_stop_the_run(messy, tmp_path):
    with pytest.raises(ShardError, match="more than --max-rejected"):
        prepare(read_table(messy), tmp_path / "set", SETTINGS, **QUIET, max_rejected=0.0)
    assert read(tmp_path / "set.rejected.csv")


def test_parts_write_one_each_and_a_set_without_rejections_none(messy, archive, tmp_path):
    key = tmp_path / "private" / "archive.key"
    key.parent.mkdir()
    key.write_text("00" * 32)
    options = {"key": key, "workers": 1, "progress": False, "max_rejected": 1.0}
    for index in (1, 2):
        (tmp_path / f"{index}").mkdir()
        prepare_part(Part(index, 2), read_table(messy), tmp_path / f"{index}" / "set", SETTINGS, **options)
    lists = [key.with_name(f"set.rejected-{index}-of-2.csv") for index in (1, 2)]
    rows = [row for file in lists for row in read(file)]
    # The parts' folders are copied together, as from two machines, and one set is made of them.
    shutil.copytree(tmp_path / "1", tmp_path / "both")
    shutil.copytree(tmp_path / "2", tmp_path / "both", dirs_exist_ok=True)
    said = []
    merge(tmp_path / "both" / "set", key=key, say=said.append)
    rejected = [e for e in read_manifest(tmp_path / "both" / "set") if e["class"].startswith("rejected")]
    joined = read(key.with_name("set.rejected.csv"))
    assert [int(row["row"]) for row in joined] == sorted(e["row"] for e in rejected)
    assert joined == sorted(rows, key=lambda row: int(row["row"]))
    assert key.with_name("set.rejected.csv").stat().st_mode & 0o777 == 0o600
    assert not any(file.exists() for file in lists)
    assert len(said) == 1
    stale = key.with_name("clean.rejected.csv")
    stale.write_text("of an earlier run")
    prepare(read_table(archive), tmp_path / "clean", SETTINGS, **options)
    assert not stale.exists()


def test_joined_lists_say_what_they_lack(messy, tmp_path):
    """The last part joins the lists; one beside another machine's key leaves its rows without paths."""
    keys = [tmp_path / name / "archive.key" for name in ("a", "b")]
    for index, key in enumerate(keys, start=1):
        key.parent.mkdir()
        key.write_text("00" * 32)
        options = {"key": key, "workers": 1, "progress": False, "max_rejected": 1.0}
        prepare_part(Part(index, 2), read_table(messy), tmp_path / "set", SETTINGS, **options)
    lost = read(keys[0].with_name("set.rejected-1-of-2.csv"))
    joined = read(keys[1].with_name("set.rejected.csv"))
    rejected = [e["row"] for e in read_manifest(tmp_path / "set") if e["class"].startswith("rejected")]
    assert [int(row["row"]) for row in joined] == sorted(rejected)
    without = {row["row"] for row in lost}
    assert lost
    assert all((row["path"] == "") >= (row["row"] in without) for row in joined)
    assert any(row["path"] for row in joined)
