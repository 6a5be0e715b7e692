"""The launchers, with stubs on the PATH that record how schedulers and ssh were called."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medclip_jax.sweeps.emit import emit_slurm, emit_xpk, workload_name
from medclip_jax.sweeps.units import expand, write
from medclip_jax.training.config import load_config

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

RECORD = """#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    names = [name for name in os.environ if name.startswith(("JAX_", "CUDA_", "SRUN_"))]
    call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    file.write(json.dumps([call, {{name: os.environ[name] for name in names}}]) + "\\n")
"""

SAVING = """
import signal, sys, time, pathlib
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).write_text("saved"), sys.exit(0)))
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(60)
"""
"""What `medclip train` does: works until SIGTERM, saves, ends with 0."""


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """`add(name, code)` makes an executable that records its arguments, then does what the code says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PAUSE", "0")
    for name in list(os.environ):
        if name.startswith(("JAX_NUM", "JAX_PROC", "JAX_COORD", "SLURM_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)

    def add(name, code=""):
        (folder / name).write_text(RECORD.format(python=sys.executable) + code)
        (folder / name).chmod(0o755)

    return add


@pytest.fixture
def calls(tmp_path):
    def read(name=None):
        file = tmp_path / "calls"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [(call[1:], names) for call, names in found if name in (None, call[0])]

    return read


def bash(script, *arguments, **options):
    return subprocess.run(
        ["bash", str(script), *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


def split(command):
    """The words that a shell makes of a line."""
    shown = ["bash", "-c", f"set -- {command}; printf '%s\\n' \"$@\""]
    return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.splitlines()


def begin(script, *arguments, ready, **options):
    """Start a script and wait until what it runs is under way."""
    command = ["bash", str(script), *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    for _ in range(1200):
        if all(path.exists() and path.read_text() for path in ready):
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError("it did not start")


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_parses_and_explains_itself(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    head = [line for line in lines[1:] if line.startswith("#")]
    assert any("launch/" in line for line in head)
    assert any("medclip" in line for line in head)
    if script.name != "until_done.sh":
        done = bash(script, env={"PATH": os.environ["PATH"], "PAUSE": "0"})
        assert done.returncode == 2
        assert "usage:" in done.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", *LAUNCH.glob("*.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class TestUntilDone:
    def test_passes_arguments_and_exit_codes_on(self, stubs, calls):
        stubs("medclip", "sys.exit(3)")
        assert bash(LAUNCH / "until_done.sh", "medclip", "a b", "--x='(1,2)'").returncode == 3
        assert calls("medclip")[0][0] == ["a b", "--x='(1,2)'"]
        assert bash(LAUNCH / "until_done.sh", "true").returncode == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_saved_and_stopped_is_not_finished(self, tmp_path, number):
        state = tmp_path / "state"
        process = begin(LAUNCH / "until_done.sh", sys.executable, "-c", SAVING, state, ready=[state])
        process.send_signal(number)
        assert process.wait(timeout=30) == 143
        assert state.read_text() == "saved"

    def test_a_closed_connection_stops(self, tmp_path):
        state = tmp_path / "state"
        process = begin(
            LAUNCH / "until_done.sh",
            sys.executable,
            "-c",
            SAVING,
            state,
            ready=[state],
            stdin=subprocess.PIPE,
            env={**os.environ, "STOP_AT_EOF": "1"},
        )
        process.stdin.close()
        assert process.wait(timeout=30) == 143
        assert state.read_text() == "saved"


class TestLocal:
    def test_processes_find_each_other_and_share_gpus(self, stubs, calls, monkeypatch):
        stubs("medclip")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
        assert bash(LAUNCH / "local.sh", 2, "medclip", "train", "a b").returncode == 0
        seen = sorted(calls("medclip"), key=lambda call: call[1]["JAX_PROCESS_ID"])
        assert [arguments for arguments, _ in seen] == [["train", "a b"]] * 2
        assert [names["JAX_PROCESS_ID"] for _, names in seen] == ["0", "1"]
        assert [names["CUDA_VISIBLE_DEVICES"] for _, names in seen] == ["0,1", "2,3"]
        assert {names["JAX_NUM_PROCESSES"] for _, names in seen} == {"2"}
        assert len({names["JAX_COORDINATOR_ADDRESS"] for _, names in seen}) == 1

    def test_starts_again_after_a_failure_and_gives_up_in_the_end(self, stubs, calls, tmp_path, monkeypatch):
        once = tmp_path / "once"
        stubs("medclip", f"if os.environ['JAX_PROCESS_ID'] == '1' and not os.path.exists('{once}'):\n"
                         f"    open('{once}', 'w'); sys.exit(7)")  # fmt: skip
        assert bash(LAUNCH / "local.sh", 2, "medclip", "train").returncode == 0
        assert len(calls("medclip")) == 4
        stubs("medclip", "sys.exit(7)")
        monkeypatch.setenv("RESTARTS", "1")
        done = bash(LAUNCH / "local.sh", 2, "medclip", "train")
        assert done.returncode == 7
        assert len(calls("medclip")) == 8
        assert "start 2 of 2" in done.stderr

    def test_asked_to_stop_all_save_and_none_starts_again(self, tmp_path):
        code = SAVING.replace("sys.argv[1]", "sys.argv[1] + os.environ['JAX_PROCESS_ID']")
        code = "import os" + code
        states = [tmp_path / "state0", tmp_path / "state1"]
        process = begin(LAUNCH / "local.sh", 2, sys.executable, "-c", code, tmp_path / "state", ready=states)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert [state.read_text() for state in states] == ["saved", "saved"]


SSH = "import subprocess; sys.exit(subprocess.call(['bash', '-c', sys.argv[-1]], stdin=sys.stdin))"


class TestSsh:
    def test_one_process_a_host(self, stubs, calls):
        stubs("ssh", SSH)
        stubs("medclip")
        done = bash(LAUNCH / "ssh.sh", "me@one,two", "medclip", "train", "--x=(1,'a b')", cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert sorted(arguments[-2] for arguments, _ in calls("ssh")) == ["me@one", "two"]
        seen = sorted(calls("medclip"), key=lambda call: call[1]["JAX_PROCESS_ID"])
        assert [arguments for arguments, _ in seen] == [["train", "--x=(1,'a b')"]] * 2
        assert {names["JAX_COORDINATOR_ADDRESS"] for _, names in seen} == {"one:12355"}
        assert [names["JAX_PROCESS_ID"] for _, names in seen] == ["0", "1"]

    def test_a_lost_host_makes_all_start_again(self, stubs, calls, tmp_path):
        once = tmp_path / "once"
        stubs("ssh", f"if sys.argv[-2] == 'two' and not os.path.exists('{once}'):\n"
                     f"    open('{once}', 'w'); sys.exit(255)\n" + SSH)  # fmt: skip
        stubs("medclip")
        assert bash(LAUNCH / "ssh.sh", "one,two", "medclip", "train", cwd=ROOT).returncode == 0
        assert len(calls("ssh")) == 4

    def test_asked_to_stop_every_host_saves(self, stubs, calls, tmp_path):
        stubs("ssh", SSH)
        code = "import os" + SAVING.replace("sys.argv[1]", "sys.argv[1] + os.environ['JAX_PROCESS_ID']")
        (tmp_path / "saving.py").write_text(code)
        states = [tmp_path / "state0", tmp_path / "state1"]
        process = begin(
            LAUNCH / "ssh.sh",
            "one,two",
            sys.executable,
            tmp_path / "saving.py",
            tmp_path / "state",
            ready=states,
            cwd=ROOT,
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert [state.read_text() for state in states] == ["saved", "saved"]
        assert len(calls("ssh")) == 2


def directives(script):
    """The options that sbatch reads from a script."""
    lines = Path(script).read_text().splitlines()
    found = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH ")]
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in found)}


SRUN = """
command = next(place for place, word in enumerate(sys.argv) if place and not word.startswith("-"))
os.execvp(sys.argv[command], sys.argv[command:])
"""


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_array.sh"])
class TestSlurm:
    def test_runs_the_command_by_srun(self, stubs, calls, monkeypatch, name):
        stubs("srun", SRUN)
        stubs("scontrol")
        stubs("medclip", "sys.exit(5)")
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        assert bash(LAUNCH / name, "medclip", "train", "a b").returncode == 5
        ((arguments, names),) = calls("medclip")
        assert arguments == ["train", "a b"]
        assert names["SRUN_CPUS_PER_TASK"] == "12"
        assert calls("scontrol") == []
        options = directives(LAUNCH / name)
        assert "requeue" in options
        assert options["signal"].startswith("B:TERM@")
        assert options["open-mode"] == "append"

    def test_out_of_time_it_saves_and_is_queued_again(self, stubs, calls, monkeypatch, tmp_path, name):
        stubs("srun", SRUN)
        stubs("scontrol")
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        (tmp_path / "saving.py").write_text(SAVING)
        state = tmp_path / "state"
        process = begin(LAUNCH / name, sys.executable, tmp_path / "saving.py", state, ready=[state])
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        assert state.read_text() == "saved"
        assert calls("scontrol")[0][0] == ["requeue", "77"]


CONFIG = """
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = {"name": "mae"}
    config.data.shards = "shards"
    config.steps = 3
    return config
"""


@pytest.fixture
def units(tmp_path):
    (tmp_path / "run.py").write_text(CONFIG)
    out = tmp_path / "with space"
    found = expand(tmp_path / "run.py", out, ["optimizer.betas=(0.9,0.95),(0.9,0.99)"], seeds=(0, 1))
    write(found, out)
    return found


def resolved(arguments):
    """The config that a recorded `medclip train` would have trained."""
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    return load_config(arguments[arguments.index("--config") + 1], overrides)


class TestEmitted:
    def test_each_task_of_the_array_trains_its_unit(self, stubs, calls, monkeypatch, units):
        script = emit_slurm(units, units[0].folder.parent, parallel=2)
        assert directives(script)["array"] == "0-3%2"
        assert directives(script)["chdir"] == os.getcwd()
        stubs("srun", SRUN)
        stubs("medclip", "sys.exit(int('seed=1' in sys.argv[5]))")
        for task, unit in enumerate(units):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            seed = unit.config.seed
            assert bash(script).returncode == seed
            assert (unit.folder / "exit_code").read_text() == f"{seed}\n"
            srun = calls("srun")[-1][0]
            assert f"--output={unit.folder}/log.txt" in srun
            arguments = calls("medclip")[-1][0]
            assert arguments[arguments.index("--workdir") + 1] == str(unit.folder)
            assert resolved(arguments) == unit.config

    def test_a_task_out_of_time_is_queued_again(self, stubs, calls, monkeypatch, units):
        state = units[0].folder / "state"
        (units[0].folder / "saving.py").write_text(SAVING)
        stubs("srun", SRUN)
        stubs("scontrol")
        stubs(
            "medclip",
            f"os.execv(sys.executable, ['python', {str(state.with_name('saving.py'))!r}, {str(state)!r}])",
        )
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
        monkeypatch.setenv("SLURM_JOB_ID", "78")
        process = begin(emit_slurm(units, units[0].folder.parent), ready=[state])
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        assert state.read_text() == "saved"
        assert calls("scontrol")[0][0] == ["requeue", "78"]

    def test_each_unit_becomes_a_workload(self, stubs, calls, units):
        stubs("xpk")
        script = emit_xpk(units, units[0].folder.parent)
        assert bash(script).returncode == 2
        assert bash(script, "--cluster", "c", "--tpu-type", "v5litepod-16").returncode == 0
        assert len(calls("xpk")) == 4
        for unit, (arguments, _) in zip(units, calls("xpk"), strict=True):
            options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
            assert arguments[:2] == ["workload", "create"]
            assert options["--workload"] == workload_name(unit, unit.folder.parent)
            assert options["--cluster"] == "c"
            words = split(options["--command"])
            assert words[:3] == ["exec", "bash", "launch/until_done.sh"]
            assert tuple(words[3:]) == unit.command

    def test_nothing_is_emitted_where_nothing_is_left(self, units):
        for unit in units:
            (unit.folder / "metrics.jsonl").write_text('{"step": 3}\n')
            (unit.folder / "checkpoints" / "3").mkdir(parents=True)
        assert emit_slurm(units, units[0].folder.parent) is None
        assert emit_xpk(units, units[0].folder.parent) is None


def test_xpk_gets_its_options_and_one_command(stubs, calls):
    stubs("xpk")
    done = bash(
        LAUNCH / "xpk.sh", "--cluster", "c", "--workload", "w", "--", "medclip", "train", "--x=(1,'a b')"
    )
    assert done.returncode == 0, done.stderr
    arguments = calls("xpk")[0][0]
    options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    assert (options["--cluster"], options["--workload"]) == ("c", "w")
    assert int(options["--max-restarts"]) > 0
    shown = subprocess.run(
        ["bash", "-c", f"set -- {options['--command']}; printf '%s\\n' \"$@\""],
        capture_output=True,
        text=True,
    )
    words = ["exec", "bash", "launch/until_done.sh", "medclip", "train", "--x=(1,'a b')"]
    assert shown.stdout.splitlines() == words
    assert bash(LAUNCH / "xpk.sh", "--cluster", "c").returncode == 2


GCLOUD = """
state = os.environ["CALLS"] + ".state"
read = lambda: open(state).read() if os.path.exists(state) else ""
put = lambda text: open(state, "w").write(text)
runs = os.environ["CALLS"] + ".runs"
verb, text = sys.argv[4], " ".join(sys.argv)
if verb == "describe":
    if not read():
        sys.exit(1)
    print(read())
elif verb == "create":
    put("READY")
elif verb == "delete":
    put("")
elif verb == "ssh" and "until_done.sh medclip" in text:
    count = len(open(runs).read()) if os.path.exists(runs) else 0
    open(runs, "a").write("x")
    outcome = os.environ["OUTCOMES"].split(",")[count]
    if outcome == "PREEMPTED":
        put("PREEMPTED")
    sys.exit(0 if outcome == "ok" else 255)
"""


class TestTpuPod:
    @pytest.fixture
    def pod(self, stubs, monkeypatch):
        def run(outcomes):
            stubs("gcloud", GCLOUD)
            stubs("git", "print('README.md', end='\\0')")
            for name, value in {
                "NAME": "slice",
                "ZONE": "zone",
                "TYPE": "v5litepod-64",
                "VERSION": "v2",
                "STORAGE": "10.0.0.2:/share",
                "OUTCOMES": outcomes,
            }.items():
                monkeypatch.setenv(name, value)
            return bash(LAUNCH / "tpu_pod.sh", "medclip", "train", "--x=(1,'a b')", cwd=ROOT)

        return run

    def test_made_preempted_made_anew_finished_deleted(self, pod, calls):
        done = pod("PREEMPTED,error,ok")
        assert done.returncode == 0, done.stderr
        verbs = [arguments[3] for arguments, _ in calls("gcloud")]
        assert [verb for verb in verbs if verb in ("create", "delete")] == [
            "create",
            "delete",
            "create",
            "delete",
        ]
        assert verbs[-1] == "delete"
        creation = next(arguments for arguments, _ in calls("gcloud") if arguments[3] == "create")
        assert creation[creation.index("--accelerator-type") + 1] == "v5litepod-64"
        assert "--spot" in creation
        runs = [a for a, _ in calls("gcloud") if a[3] == "ssh" and "until_done.sh medclip" in a[-1]]
        assert len(runs) == 3
        assert all("--worker=all" in arguments for arguments in runs)
        assert r"medclip train --x=\(1\,\'a\ b\'\)" in runs[0][-1]

    def test_three_failures_on_a_healthy_slice_end(self, pod, calls):
        done = pod("error,error,error")
        assert done.returncode == 1
        assert "failed three times" in done.stderr
        assert "delete" not in [arguments[3] for arguments, _ in calls("gcloud")]
