"""medclip embed: a few scans printed; many into Parquet, past damaged files and through kills."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_scans import chest, lps_stack, write_nifti, write_slices

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.inference import archive as archives
from medclip_jax.inference import table as tables
from tests.tiny_run import FINDINGS

GOOD = [
    *(f"scan{i}.nii.gz" for i in (0, 2, 4, 6)),
    *(f"below/scan{i}.nii.gz" for i in (1, 3, 5, 7)),
    "series",
]
BAD = ["cut.nii.gz", "below/empty.nii"]

SLOWLY = """\
import sys, time
from medclip_jax.cli.main import main
from medclip_jax.inference import table as tables

def add(self, row, before=tables.Table.add):
    before(self, row)
    time.sleep(0.5)

tables.PART, tables.Table.add = 2, add
sys.exit(main(sys.argv[1:]))
"""
"""The command line with parts of two scans, half a second for each scan."""


@pytest.fixture(scope="module")
def workdir(tiny_run):
    return str(tiny_run / "workdir")


@pytest.fixture(scope="module")
def model(workdir):
    return medclip_jax.load(workdir, progress=False)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Eight NIfTI files, a DICOM series, two damaged files, and what is no scan."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "below").mkdir()
    for i in range(8):
        write_nifti(folder / ("below" if i % 2 else ".") / f"scan{i}.nii.gz", chest(seed=i))
    content = (folder / "scan0.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "below" / "empty.nii").write_bytes(b"")
    (folder / "notes.txt").write_text("no scan")
    (folder / "._scan0.nii.gz").write_text("a shadow file of another system")
    write_slices(folder / "series", lps_stack(chest(seed=9)))
    return folder


@pytest.fixture(scope="module")
def scan(archive):
    return archive / "scan0.nii.gz"


def read(path):
    """Columns by name, the vectors as one array."""
    table = pq.read_table(path)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return columns | {"embedding": np.array(columns["embedding"], np.float32)}


class TestAFewScans:
    def test_prints_cosines_and_probabilities(self, workdir, model, scan, capsys):
        text = "There is cardiomegaly."
        assert main(["embed", workdir, "--text", text, str(scan)]) == 0
        printed = capsys.readouterr().out
        assert f"{float(model.embed_volumes(scan)[0] @ model.embed_texts(text)[0]):+.4f}" in printed
        probability = model.zero_shot(scan, ["pericardial_effusion"])["pericardial_effusion"]
        assert f"{probability:.3f}" in printed
        assert "1 of 1 scans embedded, 16 numbers each" in printed

    def test_prints_and_writes(self, workdir, model, scan, tmp_path, capsys):
        out = tmp_path / "made" / "vectors.parquet"
        text = "There is cardiomegaly."
        assert main(["embed", workdir, str(scan), "--text", text, "--out", str(out)]) == 0
        assert "Zero-shot probability" in capsys.readouterr().out
        found = read(out)
        assert found["scan"] == [str(scan)]
        np.testing.assert_allclose(found["embedding"], model.embed_volumes(scan), atol=1e-6)
        cosine = float(model.embed_volumes(scan)[0] @ model.embed_texts(text)[0])
        assert found[f"cosine:{text}"] == pytest.approx([cosine], abs=1e-6)
        for name, probability in model.zero_shot(scan, FINDINGS).items():
            assert found[f"probability:{name}"] == pytest.approx([probability], abs=1e-6)
        assert [path.name for path in out.parent.iterdir()] == ["vectors.parquet"]

    def test_unreadable_files_are_listed(self, workdir, scan, archive, tmp_path, capsys):
        missing = tmp_path / "missing.nii.gz"
        assert main(["embed", workdir, str(scan), str(archive / "cut.nii.gz"), str(missing)]) == 1
        printed = capsys.readouterr()
        assert "1 of 3 scans embedded" in printed.out
        assert f"not read: {archive / 'cut.nii.gz'}: The gzip data end early" in printed.err
        assert f"not read: {missing}: There is no such file" in printed.err

    def test_nothing_readable(self, workdir, archive, tmp_path, capsys):
        out = tmp_path / "out.parquet"
        assert main(["embed", workdir, str(archive / "cut.nii.gz"), "--out", str(out)]) == 2
        assert "not read" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["out.failed.csv"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--findings", "heartbreak"], "unknown finding 'heartbreak'"),
            (["--out", "vectors.npz"], r"name it \.parquet"),
            (["--batch-size", "0"], "must be 1 or more"),
            (["--workers", "0"], "must be 1 or more"),
            (["*.nrrd"], r"no file matches \*\.nrrd"),
            (["--list", "gone.txt"], "no list gone"),
        ],
    )
    def test_wrong_arguments(self, workdir, scan, capsys, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        assert main(["embed", workdir, str(scan), *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not list(tmp_path.iterdir())

    def test_no_scan(self, workdir, capsys):
        assert main(["embed", workdir]) == 2
        assert "name files or folders" in capsys.readouterr().err

    def test_many_need_a_file(self, workdir, tmp_path, capsys):
        (tmp_path / "list.txt").write_text("".join(f"{i}.nii\n" for i in range(65)))
        assert main(["embed", workdir, "--list", str(tmp_path / "list.txt")]) == 2
        assert "65 scans: write" in capsys.readouterr().err

    def test_no_model(self, scan, tmp_path, capsys):
        assert main(["embed", str(tmp_path), str(scan)]) == 2
        assert "no config.json" in capsys.readouterr().err


class TestArchive:
    def test_searches_folders(self, workdir, model, archive, tmp_path, capsys):
        out = tmp_path / "out.parquet"
        assert main(["embed", workdir, str(archive), "--out", str(out), "--workers", "1"]) == 1
        found = read(out)
        assert found["scan"] == [str(archive / name) for name in GOOD]
        np.testing.assert_allclose(found["embedding"], model.embed_volumes(found["scan"]), atol=1e-6)
        with (tmp_path / "out.failed.csv").open(newline="") as file:
            failed = list(csv.DictReader(file))
        assert [row["scan"] for row in failed] == [str(archive / name) for name in BAD]
        assert [row["code"] for row in failed] == ["truncated-file", "truncated-file"]
        assert "9 of 11 scans embedded" in capsys.readouterr().out

    def test_exported_folder(self, model, archive, tmp_path):
        from medclip_jax.export.folder import write_folder

        folder = write_folder(model, tmp_path / "clip")
        out = tmp_path / "out.parquet"
        assert main(["embed", str(folder), str(archive / "scan*.nii.gz"), "--out", str(out)]) == 0
        found = read(out)
        assert len(found["scan"]) == 4
        np.testing.assert_allclose(found["embedding"], model.embed_volumes(found["scan"]), atol=1e-6)

    def test_list_carries_centers_and_ids(self, workdir, model, archive, tmp_path):
        table = tmp_path / "list.csv"
        rows = ["scan2.nii.gz,b,0,0,110", "scan0.nii.gz,a,,,", "scan2.nii.gz,c,10,0,110"]
        table.write_text("volume,id,center_x,center_y,center_z\n" + "\n".join(rows) + "\n")
        out = tmp_path / "out.parquet"
        command = ["embed", workdir, "--list", str(table), "--root", str(archive), "--out", str(out)]
        assert main(command) == 0
        found = read(out)
        assert found["scan"] == ["scan2.nii.gz", "scan0.nii.gz", "scan2.nii.gz"]
        assert found["id"] == ["b", "a", "c"]
        assert found["center_x"] == [0, None, 10]
        paths = [archive / name for name in found["scan"]]
        expected = model.embed_volumes(paths, center=[(0, 0, 110), None, (10, 0, 110)])
        np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)
        content = out.read_bytes()
        assert main(command) == 0
        assert out.read_bytes() == content

    def test_notes(self, workdir, scan, tmp_path):
        thin = chest((3, 40, 44))
        thin[:, :10] = -3024  # what some scanners write outside of their field of view
        write_nifti(tmp_path / "thin.nii.gz", thin)
        out = tmp_path / "out.parquet"
        assert main(["embed", workdir, str(scan), str(tmp_path / "thin.nii.gz"), "--out", str(out)]) == 0
        none, notes = read(out)["notes"]
        assert none == ""
        assert re.fullmatch(r"padding:-3024:\S+; mostly-padding:\d+%", notes)

    def test_a_masked_autoencoder_has_vectors_only(self, workdir, model, scan, tmp_path, monkeypatch):
        from medclip_jax.objectives.clip import Clip

        monkeypatch.setattr(Clip, "has_text", False)
        out = tmp_path / "out.parquet"
        assert main(["embed", workdir, str(scan), "--out", str(out)]) == 0
        assert list(read(out)) == ["scan", "embedding", "notes"]
        assert main(["embed", workdir, str(scan), "--text", "Heart.", "--out", str(out)]) == 2

    def test_names_that_are_not_utf8(self, workdir, tmp_path):
        """Their bytes stand in the table as text, and the next run knows them again."""
        folder, out = tmp_path / "archive", tmp_path / "out.parquet"
        folder.mkdir()
        write_nifti(folder / "plain.nii", chest())
        os.rename(write_nifti(folder / "a.nii", chest(seed=1)), os.fsencode(folder) + b"/sc\xe4n.nii")
        os.rename(write_nifti(folder / "b.nii", chest()[:1]), os.fsencode(folder) + b"/b\xe4d.nii")
        for _ in range(2):
            assert main(["embed", workdir, str(folder), "--findings", "none", "--out", str(out)]) == 1
            assert read(out)["scan"] == [f"{folder}/plain.nii", f"{folder}/sc\\xe4n.nii"]
            assert f"{folder}/b\\xe4d.nii" in (tmp_path / "out.failed.csv").read_text()


class TestGoingOn:
    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch):
        monkeypatch.setattr(tables, "PART", 2)

    @pytest.fixture
    def prepared(self, monkeypatch):
        """Names of the files that are read, as they come."""
        names = []

        def attempt(task, preparation, before=archives._attempt):
            names.append(task[0].name)
            return before(task, preparation)

        monkeypatch.setattr(archives, "_attempt", attempt)
        return names

    @pytest.fixture(scope="class")
    def whole(self, workdir, archive, tmp_path_factory):
        """What a run writes that nothing disturbs."""
        out = tmp_path_factory.mktemp("whole") / "out.parquet"
        assert main(command(workdir, archive, out)) == 1
        return out

    def test_workers_change_no_bit(self, workdir, archive, whole, tmp_path):
        out = tmp_path / "out.parquet"
        assert main([*command(workdir, archive, out)[:-1], "2"]) == 1
        assert out.read_bytes() == whole.read_bytes()
        assert (tmp_path / "out.failed.csv").read_bytes() == whole.with_suffix(".failed.csv").read_bytes()

    @pytest.mark.slow
    def test_killed_and_stopped(self, workdir, archive, whole, prepared, tmp_path):
        """Struck three times in the middle of the work, then left to end."""
        out, parts = tmp_path / "out.parquet", tmp_path / "out.parts"

        def count():
            return len(list(parts.glob("part-*.parquet")))

        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            before = count()
            process = start(command(workdir, archive, out))
            wait_for(lambda before=before: count() > before, process)
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
            if number == signal.SIGKILL:
                assert process.returncode == -signal.SIGKILL
            else:
                assert process.returncode == 130
                assert "the same command resumes" in errors
                assert "Traceback" not in errors
            assert not out.exists()
        kept = sum(pq.read_metadata(part).num_rows for part in parts.glob("part-*.parquet"))
        assert 6 <= kept < len(GOOD)
        assert main(command(workdir, archive, out)) == 1
        assert len(prepared) == len(GOOD) + len(BAD) - kept
        assert out.read_bytes() == whole.read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed.csv", "out.parquet"]

    def test_failed_ones_are_tried_again(self, workdir, archive, prepared, tmp_path):
        scans = tmp_path / "scans"
        scans.mkdir()
        for name in ("scan0.nii.gz", "cut.nii.gz", "scan2.nii.gz"):
            (scans / name).write_bytes((archive / name).read_bytes())
        out, fresh = tmp_path / "out.parquet", tmp_path / "fresh.parquet"
        assert main(command(workdir, scans, out)) == 1
        (scans / "cut.nii.gz").write_bytes((archive / "scan4.nii.gz").read_bytes())
        del prepared[:]
        assert main(command(workdir, scans, out)) == 0
        assert prepared == ["cut.nii.gz"]
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".csv"] == []
        assert main(command(workdir, scans, fresh)) == 0
        assert out.read_bytes() == fresh.read_bytes()

    def test_other_texts_take_no_embedding(self, workdir, scan, prepared, tmp_path):
        out = tmp_path / "out.parquet"
        assert main(["embed", workdir, str(scan), "--out", str(out), "--text", "A."]) == 0
        assert (
            main(["embed", workdir, str(scan), "--out", str(out), "--text", "B.", "--findings", "none"]) == 0
        )
        assert len(prepared) == 1
        assert list(read(out)) == ["scan", "embedding", "cosine:B.", "notes"]

    def test_another_model_is_refused(self, workdir, scan, prepared, tmp_path, capsys):
        out = tmp_path / "out.parquet"
        plain = ["embed", workdir, str(scan), "--out", str(out)]
        assert main(plain) == 0
        content = out.read_bytes()
        for changed, name in ((["--dtype", "bfloat16"], "model"), (["--center", "0", "0", "100"], "center")):
            assert main([*plain, *changed]) == 2
            assert f"was made with another {name}: use another --out" in capsys.readouterr().err
            assert out.read_bytes() == content
        assert main([*plain, "--dtype", "bfloat16", "--restart"]) == 0
        assert out.read_bytes() != content
        assert len(prepared) == 2

    def test_nothing_is_dropped_silently(self, workdir, archive, tmp_path, capsys):
        out = tmp_path / "out.parquet"
        first, second = str(archive / "scan0.nii.gz"), str(archive / "scan2.nii.gz")
        assert main(["embed", workdir, first, "--out", str(out)]) == 0
        assert main(["embed", workdir, second, "--out", str(out)]) == 2
        assert f"holds 1 scans that are not among those given, such as {first}" in capsys.readouterr().err
        assert main(["embed", workdir, second, first, "--out", str(out)]) == 0
        assert read(out)["scan"] == [second, first]

    def test_foreign_and_damaged_files(self, workdir, scan, tmp_path, capsys):
        out = tmp_path / "out.parquet"
        out.write_text("someone's own")
        plain = ["embed", workdir, str(scan), "--out", str(out)]
        assert main([*plain, "--restart"]) == 2
        assert "was not written by medclip embed" in capsys.readouterr().err
        assert out.read_text() == "someone's own"
        out.unlink()
        (tmp_path / "out.parts").mkdir()
        (tmp_path / "out.parts" / "part-00003.parquet").write_bytes(b"PAR1 cut short")
        assert main(plain) == 0
        assert read(out)["scan"] == [str(scan)]

    def test_two_at_once(self, workdir, scan, tmp_path, capsys):
        out = tmp_path / "out.parquet"
        with tables.Table(out, {}):
            assert main(["embed", workdir, str(scan), "--out", str(out)]) == 2
        assert "another process is writing" in capsys.readouterr().err

    def test_no_path_of_the_model_is_kept(self, workdir, whole):
        origin = json.loads(pq.read_schema(whole).metadata[b"medclip"])
        assert origin["shape"] == [8, 16, 16]
        assert str(Path(workdir).parent) not in json.dumps(origin)


def command(workdir, scans, out):
    return ["embed", workdir, str(scans), "--out", str(out), "--batch-size", "3", "--workers", "1"]


def start(arguments):
    """Start the slow command line, in a process that hears Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process):
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
