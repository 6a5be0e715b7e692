"""One set made by many machines: the same bytes as by one, whatever happens to any of them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.folder import folder as read_table
from medclip_jax.shards import merge as merging
from medclip_jax.shards import work
from medclip_jax.shards.check import check
from medclip_jax.shards.commit import make_shard
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.merge import merge
from medclip_jax.shards.parts import Part
from medclip_jax.shards.plan import examine, make_plan
from medclip_jax.shards.prepare import prepare, prepare_part
from medclip_jax.shards.read import open_shards
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.scan import prepare_study
from medclip_jax.shards.settings import PrepareSettings, resolve
from medclip_jax.shards.work import Rejections
from tests.shards.small_set import KEY, QUIET, SECRET, SETTINGS, digest


def run_part(text: str, table: Path, out: Path, settings: PrepareSettings = SETTINGS, **more):
    index, count = map(int, text.split("/"))
    return prepare_part(Part(index, count), read_table(table), out, settings, **(QUIET | more))


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory) -> Path:
    """The set as one machine makes it."""
    out = tmp_path_factory.mktemp("whole") / "set"
    prepare(read_table(archive), out, SETTINGS, **QUIET)
    return out


def several_scans(patients: int = 60):
    """Studies of one to four scans, some patients with two studies."""
    from medclip_jax.corpora.study import Series, Study

    return [
        Study((Series(Path(f"{p}-{s}-{i}")),), f"v{p}-{s}-{i}", f"s{s}", f"p{p}", report=f"Report {p} {s}.")
        for p in range(patients)
        for s in range(1 + p % 2)
        for i in range(1 + (p + s) % 4)
    ]


@pytest.mark.parametrize("per_shard", [1, 3, 8])
def test_all_scans_of_a_study_are_in_one_shard(per_shard):
    studies = several_scans()
    random.Random(0).shuffle(studies)
    shards = make_plan(studies, resolve(PrepareSettings(per_shard=per_shard), studies), KEY)
    homes: dict[tuple[str, str], set[str]] = {}
    for shard in shards:
        for item in shard.items:
            homes.setdefault((item.study.patient_id, item.study.study_id), set()).add(shard.name)
    assert all(len(names) == 1 for names in homes.values())
    rows = Counter(item.row for shard in shards for item in shard.items)
    assert rows == Counter(range(1, len(studies) + 1))
    assert all(
        len(shard.items) <= per_shard or len({i.study.study_id for i in shard.items}) == 1 for shard in shards
    )


def test_studies_of_many_scans_do_not_come_first():
    """`train[:10%]` must be a fair sample of large and small studies."""
    studies = several_scans(400)
    shards = make_plan(studies, resolve(PrepareSettings(per_shard=4, fractions=(1, 0, 0)), studies), KEY)
    scans = Counter((study.patient_id, study.study_id) for study in studies)
    sizes = [scans[i.study.patient_id, i.study.study_id] for s in shards for i in s.items]
    half = len(sizes) // 2
    # 1500 scans of about 600 studies, sizes of 1 to 4: a mean's standard deviation is below 0.06.
    assert abs(sum(sizes[:half]) / half - sum(sizes[half:]) / (len(sizes) - half)) < 0.25


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_in_any_order_make_the_bytes_of_one_machine(archive, whole, tmp_path, count):
    parts = [f"{index}/{count}" for index in range(1, count + 1)]
    random.Random(count).shuffle(parts)
    for text in parts[:-1]:
        assert run_part(text, archive, tmp_path / "set") is None
        with pytest.raises(ShardError, match="has not finished"):
            open_shards(tmp_path / "set")
    info = run_part(parts[-1], archive, tmp_path / "set")
    assert sum(info.splits.values()) == 10
    assert digest(tmp_path / "set") == digest(whole)


def test_more_parts_than_shards(archive, whole, tmp_path):
    for index in range(20, 0, -1):
        run_part(f"{index}/20", archive, tmp_path / "set")
    assert digest(tmp_path / "set") == digest(whole)


def test_a_part_makes_only_its_share_and_nothing_twice(archive, tmp_path, monkeypatch):
    done: list[int] = []
    monkeypatch.setattr(
        work, "prepare_study", lambda item, settings: done.append(item.row) or prepare_study(item, settings)
    )
    run_part("1/2", archive, tmp_path / "set")
    first = len(done)
    assert 3 <= first <= 7
    run_part("1/2", archive, tmp_path / "set")
    assert len(done) == first
    # Shards count, not parts: what others left can be done by any number of machines.
    for text in ("3/3", "2/3", "1/3"):
        run_part(text, archive, tmp_path / "set")
    assert sorted(done) == list(range(1, 11))


def test_a_whole_run_finishes_what_parts_left(archive, whole, tmp_path):
    run_part("2/3", archive, tmp_path / "set")
    prepare(read_table(archive), tmp_path / "set", SETTINGS, **QUIET)
    assert digest(tmp_path / "set") == digest(whole)


def test_merging_needs_no_scans_and_may_be_repeated(archive, whole, tmp_path):
    moved = shutil.copytree(archive.parent, tmp_path / "scans")
    for index in (1, 2, 3):
        # As on machines that share no disk.
        run_part(f"{index}/3", moved / "studies.csv", tmp_path / f"machine{index}")
    shutil.rmtree(moved)
    for index in (2, 3):
        shutil.copytree(tmp_path / f"machine{index}", tmp_path / "machine1", dirs_exist_ok=True)
    info, summary = merge(tmp_path / "machine1")
    assert summary.classes == {"accepted": 10}
    before = digest(tmp_path / "machine1")
    assert merge(tmp_path / "machine1") == (info, None)
    assert digest(tmp_path / "machine1") == before
    assert not check(info, progress=False).problems
    # Paths are part of the fingerprints, and these scans lay elsewhere; all else is the same.
    theirs = digest(whole)
    assert {name for name in theirs if theirs[name] != before[name]} == {"prepare.json"}
    assert set(theirs) == set(before)


def test_a_finished_set_is_left_alone_by_a_late_part(archive, whole):
    before = digest(whole)
    assert run_part("2/4", archive, whole) == open_shards(whole)
    with pytest.raises(ShardError, match="finished set made from other"):
        run_part("2/4", archive, whole, replace(SETTINGS, shape=(4, 4, 4)))
    assert digest(whole) == before


def test_missing_parts_are_named_with_the_command(archive, tmp_path):
    out = tmp_path / "set"
    with pytest.raises(ShardError, match="no prepared parts to merge"):
        merge(out)
    command = ["medclip", "prepare", "--table", "my table.csv", "--out", "set"]
    for text in ("1/4", "4/4"):
        run_part(text, archive, out, command=command)
    with pytest.raises(ShardError, match=r"shards of .* are missing: part 2/4 lacks") as error:
        merge(out)
    lines = str(error.value).splitlines()
    assert [line.strip() for line in lines[1:]] == [
        f"medclip prepare --table 'my table.csv' --out set --part {index}/4" for index in (2, 3)
    ]
    # A shard that got lost, or was cut short while it was copied, is as good as missing.
    for text in ("2/4", "3/4"):
        (out / ".parts" / "elsewhere").mkdir(exist_ok=True)
        run_part(text, archive, tmp_path / "other")
    for path in (tmp_path / "other" / ".parts").glob("*-*"):
        shutil.copy(path, out / ".parts" / path.name)
    victim = next(path for path in (out / ".parts").glob("*.array_record") if path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"1 of \d shards"):
        merge(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (4, 4, 4)}, r"shape is \(12, 16, 16\) there, \(4, 4, 4\) here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"vocabulary_size": 300}, "vocabulary_size is 200 there, 300 here"),
        ({"per_shard": 3}, "per_shard is 2 there, 3 here"),
        ({"tokenizer": None}, "tokenizer is train there, None here"),
    ],
)
def test_parts_with_other_settings_are_refused(archive, tmp_path, change, message):
    run_part("1/2", archive, tmp_path / "set")
    before = digest(tmp_path / "set")
    with pytest.raises(ShardError, match=message):
        run_part("2/2", archive, tmp_path / "set", replace(SETTINGS, **change))
    assert digest(tmp_path / "set") == before


def test_parts_of_another_table_key_or_version_are_refused(archive, tmp_path, monkeypatch):
    out = tmp_path / "set"
    run_part("1/2", archive, out)
    studies = list(read_table(archive))
    with pytest.raises(ShardError, match="a table of 10 studies there, of 9 here"):
        prepare_part(Part(2, 2), studies[1:], out, SETTINGS, **QUIET)
    corrected = [replace(studies[0], report="The heart is of normal size."), *studies[1:]]
    with pytest.raises(ShardError, match=r"another table or --root: 1 of \d shards"):
        prepare_part(Part(2, 2), corrected, out, SETTINGS, **QUIET)
    with pytest.raises(ShardError, match="another key of the hashed ids"):
        run_part("2/2", archive, out, key=b"another")
    plan = out / ".parts" / "plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"version": "0.0.1"}))
    with pytest.raises(ShardError, match=r"medclip 0\.0\.1 there"):
        run_part("2/2", archive, out)


KILLED = """
import sys
from medclip_jax.cli.main import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_processes_at_once_and_one_killed(archive, tmp_path):
    """As a user would: `medclip prepare --part i/3` three times, kill -9 to one, run it again."""
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "key").write_text(KEY.hex())
    options = "--shape 12 16 16 --spacing 8 5 5 --vocabulary-size 200 --per-shard 1 --workers 1"
    common = [
        "prepare",
        "--table",
        str(archive),
        "--key",
        str(tmp_path / "key"),
        *options.split(),
        "--workers",
        "1",
    ]
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    common += ["--out", str(tmp_path / "many")]

    def start(index: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "killed.py"), *common, "--part", f"{index}/3"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    victim = start(1)
    while victim.poll() is None and not list((tmp_path / "many").glob(".parts/*-*.json")):
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    others = [start(2), start(3)]
    for other in others:
        other.communicate(timeout=300)
        assert other.returncode == 0
    assert not (tmp_path / "many" / "prepare.json").exists()
    assert main([*common, "--part", "1/3"]) == 0
    assert digest(tmp_path / "many") == digest(tmp_path / "one")


def test_two_machines_that_write_the_same_shard_do_not_mix(archive, tmp_path):
    """A scheduler may start a part again while the old one still runs."""
    studies = list(read_table(archive))
    settings = resolve(SETTINGS, studies)
    shards = make_plan(studies, settings, KEY)
    examined = examine(max(shards, key=lambda shard: len(shard.items)), settings, KEY)

    def outcomes(between):
        for item in examined.shard.items:
            yield prepare_study(item, settings)
            between()

    def other():
        commits.append(make_shard(examined, outcomes(lambda: None), tmp_path, lambda entry: None))

    commits: list = []
    commits.append(make_shard(examined, outcomes(other), tmp_path, lambda entry: None))
    assert len(commits) == 2  # the other one came and went while the first was at its second scan
    assert commits[0] == commits[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{examined.shard.name}.array_record",
        f"{examined.shard.name}.json",
    ]
    alone = tmp_path / "alone"
    alone.mkdir()
    make_shard(examined, outcomes(lambda: None), alone, lambda entry: None)
    assert digest(alone) == {name: value for name, value in digest(tmp_path).items() if "/" not in name}


def test_what_a_killed_writer_left_is_swept(archive, whole, tmp_path):
    parts = tmp_path / "set" / ".parts"
    parts.mkdir(parents=True)
    (parts / "train-00000.array_record.0badf00d.partial").write_bytes(b"x")
    run_part("1/1", archive, tmp_path / "set")
    assert digest(tmp_path / "set") == digest(whole)


@pytest.mark.parametrize("step", range(0, 9, 2))
def test_merging_cut_off_anywhere_is_taken_up_by_any_part(archive, whole, tmp_path, monkeypatch, step):
    out = tmp_path / "set"
    run_part("1/2", archive, out)

    class Cut(BaseException):
        pass

    calls = 0
    original = os.replace

    def cut(*arguments):
        nonlocal calls
        calls += 1
        if calls > step:
            raise Cut
        return original(*arguments)

    assemble = merging.assemble

    def start(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", cut)
            return assemble(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(merging, "assemble", start)
        try:
            run_part("2/2", archive, out)
        except Cut:
            assert not (out / "prepare.json").exists()
    if step % 4:
        merge(out)
    else:
        run_part("1/2", archive, out)
    assert digest(out) == digest(whole)


def test_without_locks_nothing_merges_by_itself(archive, whole, tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(merging.fcntl, "flock", no_locks)
    for text in ("1/2", "2/2"):
        assert run_part(text, archive, tmp_path / "set", progress=True) is None
    assert "medclip prepare --merge" in capsys.readouterr().err
    merge(tmp_path / "set")
    assert digest(tmp_path / "set") == digest(whole)


def test_a_whole_run_and_parts_keep_out_of_each_others_way(archive, tmp_path):
    (tmp_path / "set" / ".parts").mkdir(parents=True)
    with merging.lock(tmp_path / "set"), pytest.raises(ShardError, match="another run is preparing"):
        run_part("1/2", archive, tmp_path / "set")
    with merging.lock(tmp_path / "set", shared=True):
        run_part("1/2", archive, tmp_path / "set")
        with pytest.raises(ShardError, match="another run is preparing"):
            prepare(read_table(archive), tmp_path / "set", SETTINGS, **QUIET)
        # The last part does not fail because another one has not quite ended.
        assert run_part("2/2", archive, tmp_path / "set") is None
    assert merge(tmp_path / "set")[0].splits


def test_messy_archives_in_parts(messy, tmp_path):
    for index in range(1, 6):
        run_part(f"{index}/5", messy, tmp_path / "set", max_rejected=1.0)
    prepare(read_table(messy), tmp_path / "whole", SETTINGS, max_rejected=1.0, **QUIET)
    assert digest(tmp_path / "set") == digest(tmp_path / "whole")
    assert len(read_manifest(tmp_path / "set")) == len(list(read_table(messy)))
    written = b"".join(p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file())
    assert not any(secret.encode() in written for secret in SECRET)


def test_the_limit_of_rejections_is_that_of_the_whole(messy, tmp_path):
    out = tmp_path / "set"
    for index in (1, 2, 3):
        run_part(f"{index}/4", messy, out, max_rejected=1.0)
    # What the parts were told counts, unless merging is told otherwise.
    run_part("4/4", messy, tmp_path / "copy", max_rejected=1.0)
    for path in (tmp_path / "copy" / ".parts").glob("*-*"):
        shutil.copy(path, out / ".parts" / path.name)
    with pytest.raises(ShardError, match=r"of 21 studies rejected.*--max-rejected 0.2 allows"):
        merge(out, max_rejected=0.2)
    assert merge(out)[1].classes["rejected-with-reason"] == 11


def test_a_part_stops_when_chance_cannot_explain_its_rejections():
    allowed = Rejections(0.1, 1000, sample=True)
    allowed.add(*[("constant", "It is.", row) for row in range(130)])  # 100 expected, deviation 9.5
    with pytest.raises(ShardError, match="139 of 1000"):
        allowed.add(*[("constant", "It is.", row) for row in range(9)])
    with pytest.raises(ShardError, match="101 of 1000"):
        Rejections(0.1, 1000).add(*[("constant", "It is.", row) for row in range(101)])


def test_a_tokenizer_that_is_not_there_shows_before_the_work(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "prepare_study", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(FileNotFoundError, match="absent"):
        run_part("1/2", archive, tmp_path / "set", replace(SETTINGS, tokenizer="absent"))


def test_the_command_line(archive, tmp_path, capsys, monkeypatch):
    options = "--shape 8 8 8 --spacing 12 12 12 --per-shard 2 --workers 1 --vocabulary-size 200"
    common = ["prepare", *options.split()]
    common += ["--table", str(archive), "--out", str(tmp_path / "set"), "--key", str(tmp_path / "key")]
    monkeypatch.setattr(sys, "argv", ["medclip", *common, "--part", "1/2"])
    assert main([*common, "--part", "1/2"]) == 0
    assert "part 1/2" in capsys.readouterr().err
    assert main(["prepare", "--merge", str(tmp_path / "set")]) == 2
    printed = capsys.readouterr().err
    assert f"medclip {' '.join(common)} --part 2/2" in printed
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert main([*common, "--part", "auto/2"]) == 0
    assert "all 2 parts: 10 studies: 10 accepted" in capsys.readouterr().err
    assert main(["prepare", "--merge", str(tmp_path / "set")]) == 0
    assert "already complete" in capsys.readouterr().err


def test_ray_makes_the_same_bytes(archive, whole, tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` (240 MB) is not installed")
    prepare(read_table(archive), tmp_path / "set", SETTINGS, engine="ray", **(QUIET | {"workers": 2}))
    assert digest(tmp_path / "set") == digest(whole)


def test_without_ray_the_message_says_how_to_get_it(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ShardError, match=r"pip install 'medclip-jax\[ray\]'"):
        prepare(read_table(archive), tmp_path / "set", SETTINGS, engine="ray", **QUIET)
