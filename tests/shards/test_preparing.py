"""The whole way from a table of files to shards, in good and in bad weather."""

import csv
import dataclasses
import errno
import fnmatch
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medclip_jax.corpora.folder import folder as read_table
from medclip_jax.shards import commit, merge, work
from medclip_jax.shards import prepare as preparing
from medclip_jax.shards.manifest import read_manifest, summarize
from medclip_jax.shards.prepare import prepare
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.settings import PrepareSettings
from tests.shards import small_set
from tests.shards.deadly import square
from tests.shards.small_set import KEY, QUIET, SECRET, digest

SETTINGS = dataclasses.replace(small_set.SETTINGS, per_shard=3)


def run(table: Path, out: Path, settings: PrepareSettings = SETTINGS, **more):
    return prepare(read_table(table), out, settings, **(QUIET | more))


@pytest.fixture(scope="module")
def prepared(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "set"
    run(archive, out)
    return out


def test_what_is_prepared(prepared, archive):
    info = open_shards(prepared)
    assert sum(info.splits.values()) == 10
    assert set(info.splits) == {"train", "validation", "test"}
    assert info.findings == ("cardiomegaly", "pericardial_effusion")
    assert info.organs == ("aorta", "heart")
    assert info.measurements == ("agatston_score",)
    assert (info.shape, info.spacing, info.cell) == ((12, 16, 16), (8.0, 5.0, 5.0), 4)
    with open(archive) as file:
        rows = {row["report"]: row for row in csv.DictReader(file)}
    for split in info.splits:
        for sample in open_split(prepared, split):
            row = rows.pop(sample["report"])
            assert sample["findings_text"].startswith("the heart is enlarged")
            assert "Cardiomegaly is present" in sample["impression"]
            assert sample["statements"] == "There is cardiomegaly. There is no pericardial effusion."
            assert sample["findings"].tolist() == [1, -1]
            assert sample["labels"].tolist() == [int(row["label:cardiomegaly"] or 0), 0]
            score = row["measurement:agatston_score"]
            np.testing.assert_array_equal(sample["measurements"], np.float32([score or np.nan]))
            assert sample["volume"].shape == (12, 16, 16)
            # 96 mm deep as the source; 80 mm of its 80 (front) and 96 (right) are kept: body and air show.
            assert -1100 < np.percentile(sample["volume"], 1) < -850
            assert 30 < sample["volume"][:, 1:4, 7:9].max() < 100
            aorta, heart = sample["organs"]
            assert not aorta.any()
            assert heart.any()
    assert not rows


def test_organ_maps_lie_where_the_organ_is(prepared):
    sample = open_split(prepared, "train")[0]
    heart = sample["organs"][1].astype(float)
    # The mask spans x 8..13, y 10..13, z 5..8 of 24x20x16 voxels at 4x4x6 mm: its middle lies 4 mm left,
    # 8 mm front and 6 mm below the middle of the scan, which is the middle of the crop.
    d, h, w = (
        np.tensordot(heart.sum(tuple({0, 1, 2} - {axis})), np.arange(n), 1) / heart.sum()
        for axis, n in enumerate(heart.shape)
    )
    world = (np.array([d, h, w]) - (np.array(heart.shape) - 1) / 2) * 4 * np.array(SETTINGS.spacing)
    np.testing.assert_allclose(world, [-6, 8, -4], atol=6)
    # Volume of the organ: 6*4*4 voxels of 96 mm3, to the size of a cell's rounding.
    cells = heart.sum() / 255 * 4**3 * np.prod(SETTINGS.spacing)
    assert cells == pytest.approx(6 * 4 * 4 * 96, rel=0.35)


def test_the_prepared_volume_equals_the_plain_way(archive, prepared):
    from medclip_jax.volumes import crop_or_pad, read_volume, resample

    by_report = {
        s["report"]: s["volume"]
        for split in ("train", "validation", "test")
        for s in open_split(prepared, split)
    }
    for study in read_table(archive):
        plain = crop_or_pad(resample(read_volume(study.path), SETTINGS.spacing), SETTINGS.shape)
        np.testing.assert_array_equal(by_report[study.report], plain.voxels)


def test_patients_do_not_cross_splits(prepared):
    seen = {}
    for split in open_shards(prepared).splits:
        for sample in open_split(prepared, split, fields=["patient"]):
            assert seen.setdefault(int(sample["patient"]), split) == split
    assert len(seen) == 6


def test_manifest(prepared):
    entries = read_manifest(prepared)
    assert sorted(entry["row"] for entry in entries) == list(range(1, 11))
    assert {entry["class"] for entry in entries} == {"accepted"}
    by_id = {entry["id"]: entry for entry in entries}
    for split in open_shards(prepared).splits:
        for sample in open_split(prepared, split, fields=["id", "study", "patient"]):
            entry = by_id[sample["id"]]
            assert (entry["split"], entry["study"], entry["patient"]) == (
                split,
                sample["study"],
                sample["patient"],
            )
    assert entries[0]["provenance"]["format"]


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_makes_the_same_bytes(archive, prepared, tmp_path, workers):
    run(archive, tmp_path / "set", workers=workers)
    assert digest(tmp_path / "set") == digest(prepared)


def test_ids_are_stable_under_the_key_and_differ_under_another(archive, prepared, tmp_path):
    run(archive, tmp_path / "other", key=b"another key")
    ours = {entry["row"]: entry for entry in read_manifest(prepared)}
    for entry in read_manifest(tmp_path / "other"):
        for name in ("id", "study", "patient"):
            assert entry[name] != ours[entry["row"]][name]


def test_every_class_of_input(messy, tmp_path):
    run(messy, tmp_path / "set", max_rejected=1.0)
    with open(messy) as file:
        expected = {row: cells["expected"] for row, cells in enumerate(csv.DictReader(file), start=1)}
    entries = {entry["row"]: entry for entry in read_manifest(tmp_path / "set")}
    assert set(entries) == set(expected)
    for row, entry in entries.items():
        kind, _, code = expected[row].partition(":")
        if kind == "rejected":
            assert entry["class"] == "rejected-with-reason", (row, entry)
            assert fnmatch.fnmatch(entry["reason"], code), (row, entry)
            assert entry["message"].endswith((".", "!")), entry
            assert "shard" not in entry
        else:
            assert entry["class"] in ("accepted", "accepted-with-note"), (row, entry)
            if code == "duplicate-volume":
                continue
            if code:
                assert code in entry["notes"], (row, entry)
            else:
                assert entry["class"] == "accepted", entry
    # Of two equal volumes the later one in the set's order is noted, whichever row it is.
    twins = [e for e in entries.values() if "duplicate-volume" in e.get("notes", ())]
    assert len(twins) == 1
    assert twins[0]["row"] in (1, 8)


def test_empty_reports_can_be_kept(messy, tmp_path):
    settings = SETTINGS.__class__(**{**SETTINGS.__dict__, "empty_report": "note"})
    run(messy, tmp_path / "set", settings, max_rejected=1.0)
    entries = [e for e in read_manifest(tmp_path / "set") if "empty-report" in e.get("notes", ())]
    assert len(entries) == 3
    ids = {entry["id"] for entry in entries}
    samples = [
        s for split in open_shards(tmp_path / "set").splits for s in open_split(tmp_path / "set", split)
    ]
    for sample in samples:
        if sample["id"] in ids:
            assert sample["report"] == sample["statements"] == ""
            assert not sample["findings"].any()


def test_no_raw_id_in_any_output(messy, archive, tmp_path, capfd):
    run(messy, tmp_path / "set", max_rejected=1.0, workers=2, progress=True)
    run(archive, tmp_path / "clean", progress=True, key=tmp_path / "some.key")
    output = "".join(capfd.readouterr())
    output = output.replace(str(tmp_path), "")
    written = b"".join(
        p.read_bytes() for f in ("set", "clean") for p in (tmp_path / f).rglob("*") if p.is_file()
    )
    assert b"There is cardiomegaly" in written
    for secret in SECRET:
        assert secret not in output
        assert secret.encode() not in written


def test_a_name_in_two_reports_does_not_come_into_the_vocabulary(archive, tmp_path):
    studies = [
        dataclasses.replace(
            study,
            report=f"{study.report} Hello {'Zabrocki' if place < 4 else 'there'}. Signed by Dr. Kowalczyk.",
            split="train",
        )
        for place, study in enumerate(read_table(archive))
    ]

    def pieces(name, **changes):
        settings = dataclasses.replace(SETTINGS, vocabulary_size=400, **changes)
        prepare(studies, tmp_path / name, settings, **QUIET)
        vocabulary = (tmp_path / name / "tokenizer/vocab.txt").read_text(encoding="utf-8").split()
        return {piece.removeprefix("##") for piece in vocabulary}

    assert "zabrocki" in pieces("all", vocabulary_patients=1)
    few = pieces("few")
    assert {"heart", "hello", "signed"} <= few
    assert not any(len(piece) > 1 and piece in ("zabrocki", "kowalczyk") for piece in few)
    assert not any(len(piece) > 3 and (piece in "zabrocki" or piece in "kowalczyk") for piece in few)


def test_too_many_rejections_stop_the_run(messy, tmp_path):
    with pytest.raises(
        ShardError, match=r"rejected.*--max-rejected 0.1.*empty-report \(3, rows \d+, \d+, \d+\): \w.*higher"
    ):
        run(messy, tmp_path / "set")
    with pytest.raises(ShardError, match="not finished"):
        open_shards(tmp_path / "set")


def test_rejections_that_show_only_on_reading_stop_the_run_too(messy, tmp_path):
    studies = [s for s in read_table(messy) if "cut" in s.path.name or "flat" in s.path.name]
    with pytest.raises(ShardError, match=r"truncated-file|constant"):
        prepare(
            studies, tmp_path / "set", PrepareSettings(shape=(4, 4, 4)), key=KEY, workers=1, progress=False
        )


KILLED = """
import sys, itertools, time
from medclip_jax.corpora.folder import folder
from medclip_jax.shards import commit, merge, work
from medclip_jax.shards import prepare as preparing
from tests_settings import SETTINGS, KEY
if __name__ == "__main__":
    preparing.prepare(folder(sys.argv[1]), sys.argv[2], SETTINGS, workers=int(sys.argv[3]), key=KEY)
"""


@pytest.mark.parametrize(("workers", "delays"), [(1, (0.0, 0.05)), (2, (0.0,))])
@pytest.mark.slow
def test_kill_9_and_resume(archive, prepared, tmp_path, workers, delays):
    plain = {field.name: getattr(SETTINGS, field.name) for field in dataclasses.fields(SETTINGS)}
    del plain["definitions"]  # the default's; their repr is no code
    (tmp_path / "tests_settings.py").write_text(
        "from medclip_jax.shards.settings import PrepareSettings\n"
        f"SETTINGS = PrepareSettings(**{plain!r})\nKEY = {KEY!r}\n"
    )
    (tmp_path / "killed.py").write_text(KILLED)
    out = tmp_path / "set"
    kills = 0
    for delay in delays:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "killed.py"), str(archive), str(out), str(workers)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        committed = len(list(out.glob(".parts/*-*.json")))
        # Killed after one more part was committed, or a little later.
        while process.poll() is None and len(list(out.glob(".parts/*-*.json"))) <= committed:
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert _group_ends(process.pid)
        if (out / "prepare.json").exists():
            break  # a fast machine was done before the kill
        kills += 1
        assert list(out.glob(".parts/*-*.json"))  # there is something to resume from
    assert kills
    run(archive, out, workers=workers)
    assert digest(out) == digest(prepared)


def _group_ends(group: int, seconds: float = 60) -> bool:
    """Whether no process of the group is left: workers must not outlive a run that is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("step", range(12))
def test_cut_off_at_every_step_of_the_merge(archive, prepared, tmp_path, monkeypatch, step):
    """Power lost between any two changes to the file system while the set is put together."""
    calls = 0

    class Cut(BaseException):
        pass

    def cut(function):
        def counted(*arguments, **more):
            nonlocal calls
            calls += merging
            if merging and calls > step:
                raise Cut
            return function(*arguments, **more)

        return counted

    merging = False
    assemble = preparing.assemble

    def start_merge(*arguments):
        nonlocal merging
        merging = True
        return assemble(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "assemble", start_merge)
        patch.setattr(os, "replace", cut(os.replace))
        try:
            run(archive, tmp_path / "set")
        except Cut:
            assert not (tmp_path / "set" / "prepare.json").exists()
    run(archive, tmp_path / "set")
    assert digest(tmp_path / "set") == digest(prepared)


def test_finished_parts_are_not_done_again(archive, tmp_path, monkeypatch):
    done = []
    original = work.prepare_study

    def counting(item, settings):
        done.append(item.row)
        if len(done) == 8:
            raise KeyboardInterrupt
        return original(item, settings)

    with monkeypatch.context() as patch:
        patch.setattr(work, "prepare_study", counting)
        with pytest.raises(KeyboardInterrupt):
            run(archive, tmp_path / "set")
    finished = sum(
        len(json.loads(p.read_text())["entries"]) for p in (tmp_path / "set").glob(".parts/*-*.json")
    )
    assert finished >= 4
    again = []
    with monkeypatch.context() as patch:
        patch.setattr(
            work,
            "prepare_study",
            lambda item, settings: again.append(item.row) or original(item, settings),
        )
        run(archive, tmp_path / "set")
    assert len(again) == 10 - finished


def test_a_changed_input_is_done_again(archive, tmp_path, monkeypatch):
    studies = list(read_table(archive))
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(archive, tmp_path / "set")
    changed = [studies[0].__class__(**{**studies[0].__dict__, "report": "No cardiomegaly."}), *studies[1:]]
    prepare(changed, tmp_path / "set", SETTINGS, key=KEY, workers=1, progress=False)
    prepare(changed, tmp_path / "fresh", SETTINGS, key=KEY, workers=1, progress=False)
    assert digest(tmp_path / "set") == digest(tmp_path / "fresh")


def test_a_finished_set_is_left_alone(archive, prepared):
    before = digest(prepared)
    run(archive, prepared)
    with pytest.raises(ShardError, match="finished set made from other"):
        run(archive, prepared, PrepareSettings(shape=(4, 4, 4)))
    assert digest(prepared) == before


def test_a_folder_with_other_files_is_left_alone(archive, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ShardError, match="holds other files"):
        run(archive, tmp_path)


def test_two_runs_at_once(archive, tmp_path):
    (tmp_path / "set" / ".parts").mkdir(parents=True)
    with merge.lock(tmp_path / "set"), pytest.raises(ShardError, match="another run"):
        run(archive, tmp_path / "set")


@pytest.mark.parametrize("failing", [2, 4])
def test_full_disk(archive, prepared, tmp_path, monkeypatch, failing):
    calls = 0
    original = commit.write_shard

    def full(path, records):
        nonlocal calls
        calls += 1
        if calls == failing:
            next(iter(records))
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, records)

    with monkeypatch.context() as patch:
        patch.setattr(commit, "write_shard", full)
        with pytest.raises(ShardError, match=r"disk .* full.*run the same command again"):
            run(archive, tmp_path / "set")
    assert len(list((tmp_path / "set" / ".parts").glob("*-*.json"))) == failing - 1
    run(archive, tmp_path / "set")
    assert digest(tmp_path / "set") == digest(prepared)


def test_a_file_that_kills_its_reader_is_rejected(archive, tmp_path):
    from medclip_jax.pool import map_in_order

    values = map_in_order(
        square, iter(range(6)), 2, lambda value: f"died {value}", is_suspect=lambda value: value == 4
    )
    assert list(values) == [f"died {v}" if v == 1 else v * v for v in range(6)]


def test_summary_names_rows(messy, tmp_path):
    run(messy, tmp_path / "set", max_rejected=1.0)
    text = summarize(read_manifest(tmp_path / "set")).text()
    assert "rejected empty-report: 3 (rows 11, 12, 13 of the input)" in text
    assert "rejected missing-file: 1 (row 15 of the input)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (12, 16)}, "three positive numbers"),
        ({"cell": 5}, "do not divide the shape"),
        ({"findings": ("broken_heart",)}, "unknown finding 'broken_heart'; known: "),
        ({"crop": "spleen"}, "no study has such an organ mask.*aorta, heart"),
        ({"organs": ("spleen",)}, "no study has a mask of spleen"),
        ({"fractions": (0.5, 0.1, 0.1)}, "add up to 1"),
        ({"modality": "PET"}, "modality must be 'CT' or 'MR'"),
        ({"empty_report": "maybe"}, "neither 'reject' nor 'note'"),
    ],
)
def test_settings_that_make_no_sense(archive, tmp_path, change, message):
    settings = SETTINGS.__class__(**{**SETTINGS.__dict__, **change})
    with pytest.raises(ShardError, match=message):
        run(archive, tmp_path / "set", settings)


def test_no_studies(tmp_path):
    with pytest.raises(ShardError, match="no studies"):
        prepare([], tmp_path / "set")
