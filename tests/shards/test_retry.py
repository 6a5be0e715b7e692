"""What could not be read today may be read tomorrow: in a set that is finished, and to the byte."""

import dataclasses
import json
import os
import shutil

import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.folder import folder as read_table
from medclip_jax.corpora.study import Series, Study
from medclip_jax.pool import map_in_order
from medclip_jax.shards import scan, work
from medclip_jax.shards.files import content_state, earlier_state, is_missing
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.parts import Part
from medclip_jax.shards.plan import examine, make_plan
from medclip_jax.shards.prepare import prepare, prepare_part
from medclip_jax.shards.read import open_shards
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.settings import resolve
from tests.shards import small_set
from tests.shards.deadly import square
from tests.shards.small_set import KEY, QUIET, digest

SETTINGS = dataclasses.replace(small_set.SETTINGS, per_shard=1)
ALL = {**QUIET, "max_rejected": 1.0}


@pytest.fixture
def scans(archive, tmp_path):
    """A copy of the archive to spoil; returns the table."""
    return shutil.copytree(archive.parent, tmp_path / "archive") / "studies.csv"


@pytest.fixture
def away(monkeypatch):
    """Numbers of the scans that cannot be read just now."""
    numbers: set[int] = set()
    original = scan.read_volume

    def read(path, **more):
        if int(path.name.split("_")[1].split(".")[0]) in numbers:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, **more)

    monkeypatch.setattr(scan, "read_volume", read)
    return numbers


def run(table, out, **more):
    summaries = []
    info = prepare(read_table(table), out, SETTINGS, **(ALL | {"observe": summaries.append} | more))
    return info, summaries


def rejected(out):
    return {e["row"]: e["reason"] for e in read_manifest(out) if e["class"] == "rejected-with-reason"}


def test_the_same_command_tries_again_what_could_not_be_read(scans, tmp_path, away):
    run(scans, tmp_path / "fresh")
    out = tmp_path / "set"
    away |= {2, 7}
    _, (summary,) = run(scans, out)
    assert summary.passing == (3, 8)
    assert "2 could not be read for a reason that may pass (rows 3, 8)" in summary.text()
    assert rejected(out) == {3: "unreadable", 8: "unreadable"}
    before = digest(out)
    _, (summary,) = run(scans, out)  # still away: nothing is touched
    assert summary.passing == (3, 8)
    assert digest(out) == before
    away -= {7}
    _, (summary,) = run(scans, out)
    assert summary.passing == (3,)
    assert rejected(out) == {3: "unreadable"}
    away.clear()
    info, (summary,) = run(scans, out)
    assert not summary.passing
    assert sum(info.splits.values()) == 10
    assert digest(out) == digest(tmp_path / "fresh")
    assert run(scans, out)[1] == []  # and then it is done


def test_a_run_that_was_cut_off_tries_again_too(scans, tmp_path, away):
    run(scans, tmp_path / "fresh")
    away.add(2)
    for index in (1, 2):
        prepare_part(Part(index, 3), read_table(scans), tmp_path / "set", SETTINGS, **ALL)
    away.clear()
    run(scans, tmp_path / "set")
    assert digest(tmp_path / "set") == digest(tmp_path / "fresh")


def test_a_part_leaves_a_finished_set_to_a_whole_run(scans, tmp_path, away, capsys):
    away.add(2)
    run(scans, tmp_path / "set")
    before = digest(tmp_path / "set")
    away.clear()
    passing = []
    for index in (1, 2):
        options = ALL | {"progress": True, "observe": lambda summary: passing.extend(summary.passing)}
        prepare_part(Part(index, 2), read_table(scans), tmp_path / "set", SETTINGS, **options)
    assert passing == [3]
    assert "leave --part out" in capsys.readouterr().err
    assert digest(tmp_path / "set") == before


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("step", range(0, 16, 3))
def test_cut_off_while_a_finished_set_is_opened_again(scans, tmp_path, away, monkeypatch, step, links):
    run(scans, tmp_path / "fresh")
    away.add(2)
    run(scans, tmp_path / "set")
    away.clear()
    calls = 0

    class Cut(BaseException):
        pass

    def cut(function, works=True):
        def counted(*arguments, **more):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Cut
            if not works:
                raise OSError(95, "Operation not supported")
            return function(*arguments, **more)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", cut(os.link, links))
        patch.setattr(os, "replace", cut(os.replace))
        with pytest.raises(Cut):
            run(scans, tmp_path / "set")
    run(scans, tmp_path / "set")
    assert digest(tmp_path / "set") == digest(tmp_path / "fresh")


def test_what_was_rejected_for_good_is_tried_again_if_asked(scans, tmp_path):
    run(scans, tmp_path / "fresh")
    lost = scans.parent / "scans" / "DOE^JANE_4.nii.gz"
    broken = scans.parent / "scans" / "DOE^JANE_5.nii.gz"
    whole = broken.read_bytes()
    os.rename(lost, tmp_path / "elsewhere")
    broken.write_bytes(whole[:1000])
    _, (summary,) = run(scans, tmp_path / "set")
    assert not summary.passing  # these do not pass by themselves
    assert rejected(tmp_path / "set") == {5: "missing-file", 6: "truncated-file"}
    os.rename(tmp_path / "elsewhere", lost)
    run(scans, tmp_path / "set")
    assert rejected(tmp_path / "set") == {6: "truncated-file"}
    before = digest(tmp_path / "set")
    run(scans, tmp_path / "set", retry_rejected=True)
    assert digest(tmp_path / "set") == before
    broken.write_bytes(whole)
    with pytest.raises(ShardError, match=r"have changed.*--retry-rejected"):
        run(scans, tmp_path / "set")
    run(scans, tmp_path / "set", retry_rejected=True)
    assert digest(tmp_path / "set") == digest(tmp_path / "fresh")


def test_a_scan_replaced_at_equal_size_is_noticed(scans, tmp_path, monkeypatch):
    first, second = (scans.parent / "scans" / f"DOE^JANE_{n}.nii.gz" for n in (1, 2))
    small, large = sorted((first.read_bytes(), second.read_bytes()), key=len)
    first.write_bytes(large)
    second.write_bytes(small)
    with monkeypatch.context() as patch:
        patch.setattr("medclip_jax.shards.prepare.assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(scans, tmp_path / "set")
    first.write_bytes(small + b"\0" * (len(large) - len(small)))
    run(scans, tmp_path / "set")
    run(scans, tmp_path / "fresh")
    assert digest(tmp_path / "set") == digest(tmp_path / "fresh")
    first.write_bytes(large)
    with pytest.raises(ShardError, match=r"scans or masks of .* have changed"):
        run(scans, tmp_path / "set")


def test_states_of_files(tmp_path):
    file = tmp_path / "scan.nii"
    content = bytearray(os.urandom(1 << 21))
    file.write_bytes(content)
    state = content_state(file)
    os.utime(file, (0, 0))
    assert content_state(file) == state
    for place in (0, len(content) - 1, len(content) * 7 // 15):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert content_state(file) != state
    series = tmp_path / "series"
    series.mkdir()
    for name in "abcdefg":
        (series / name).write_text(f"header {name}" + 9000 * name)
    state, before = content_state(series), earlier_state(series)
    for changed in "abcdefg":
        content = (series / changed).read_text()
        for other in ("H" + content[1:], content[:-1] + "-", content + "+"):
            (series / changed).write_text(other)
            assert content_state(series) != state
        (series / changed).write_text(content)
        os.utime(series / changed, (0, 0))
    assert content_state(series) == state
    (series / "b").write_text("B")
    assert earlier_state(series) == before  # which three files alone did not tell
    (series / "b").unlink()
    assert content_state(series) != state
    assert earlier_state(file) is None
    os.mkfifo(tmp_path / "pipe")
    assert content_state(tmp_path / "pipe").startswith("special")
    assert content_state(tmp_path / "no") == "FileNotFoundError"
    assert is_missing(tmp_path / "no")
    assert is_missing(file / "below a file")
    assert not is_missing(file)


def test_what_may_not_be_looked_at_is_not_missing(monkeypatch, tmp_path):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refused)
    assert not is_missing(tmp_path / "scan.nii")


def items_of(table):
    studies = list(read_table(table))
    settings = resolve(SETTINGS, studies)
    shards = make_plan(studies, settings, KEY)
    return [item for shard in shards for item in examine(shard, settings, KEY).shard.items], settings


def test_a_study_that_ends_the_run_leaves_its_mark(archive, tmp_path, monkeypatch):
    seen = []
    (item, other, *_), settings = items_of(archive)
    with monkeypatch.context() as patch:
        # What a kill at this moment would leave.
        patch.setattr(work, "prepare_study", lambda *_: seen.extend(tmp_path.iterdir()))
        work.attempt(item, settings, tmp_path)
    (mark,) = seen
    assert item.study.record_id not in mark.name
    mark.write_text("1")
    assert work.cut_off(tmp_path, [item, other]) == {item.row}
    assert work.attempt(item, settings, tmp_path).entry["class"] == "accepted"
    assert not work.cut_off(tmp_path, [item, other])
    (tmp_path / f"attempt-{item.id}").write_text("4")
    outcome = work.attempt(item, settings, tmp_path)
    assert (outcome.entry["reason"], outcome.entry["row"]) == ("reader-died", item.row)
    assert not list(tmp_path.iterdir())  # the next run begins anew


def test_suspects_are_read_in_a_process_of_their_own():
    values = map_in_order(square, range(3), 1, lambda value: -value, lambda value: value == 1)
    assert list(values) == [0, -1, 4]


def test_a_restart_names_the_row_and_makes_the_same_set(scans, tmp_path, capsys):
    run(scans, tmp_path / "fresh")
    items, _ = items_of(scans)
    (tmp_path / "set" / ".parts").mkdir(parents=True)
    (tmp_path / "set" / ".parts" / f"attempt-{items[3].id}").write_text("")
    run(scans, tmp_path / "set", progress=True)
    assert f"row {items[3].row} of the input: an earlier run" in capsys.readouterr().err
    assert digest(tmp_path / "set") == digest(tmp_path / "fresh")


def test_sets_of_other_rules_and_damaged_manifests(scans, tmp_path):
    out = tmp_path / "set"
    run(scans, out)
    written = json.loads((out / "prepare.json").read_text())
    manifest = (out / "manifest.jsonl").read_text()
    (out / "manifest.jsonl").write_text("\n".join(reversed(manifest.splitlines())))
    with pytest.raises(ShardError, match=r"manifest\.jsonl does not list the studies"):
        run(scans, out)
    (out / "manifest.jsonl").write_text(manifest)
    del written["settings"]["id_rule"]
    (out / "prepare.json").write_text(json.dumps(written))
    with pytest.raises(ShardError, match=r"earlier version of medclip.*can still be read.*new folder"):
        run(scans, out)
    assert sum(open_shards(out).splits.values()) == 10


def test_exit_status(scans, tmp_path, away, capsys):
    away.add(2)
    command = ["prepare", "--table", str(scans), "--out", str(tmp_path / "set"), "--workers", "1"]
    command += ["--shape", "8", "8", "8", "--spacing", "12", "12", "12", "--tokenizer", "none"]
    assert main([*command, "--max-rejected", "0.2"]) == 1
    assert "1 could not be read for a reason that may pass (row 3)" in capsys.readouterr().err
    away.clear()
    assert main(command) == 0
    assert main([*command, "--retry-rejected"]) == 0


def test_a_set_whose_folders_were_looked_at_less_is_known_again(tmp_path, monkeypatch):
    scans = []
    for index in range(2):
        scan = tmp_path / f"scan{index}"
        scan.mkdir()
        for place in range(5):
            (scan / f"{place}.dcm").write_text(f"slice {place} of {index}")
        scans.append(Study((Series(scan),), f"v{index}", f"s{index}", f"p{index}", f"Report {index}."))
    settings = resolve(small_set.SETTINGS.__class__(shape=(4, 4, 4)), scans)
    (shard, *_) = make_plan(scans, settings, small_set.KEY)
    now = examine(shard, settings, small_set.KEY)
    assert now.fingerprint != now.earlier
    with monkeypatch.context() as patch:
        patch.setattr("medclip_jax.shards.plan.content_state", earlier_state)
        then = examine(shard, settings, small_set.KEY)
    assert now.matches(then.fingerprint)
    (shard.items[0].study.path / "1.dcm").write_text("another one")
    changed = examine(shard, settings, small_set.KEY)
    assert not changed.matches(now.fingerprint)
    assert changed.matches(then.fingerprint)
