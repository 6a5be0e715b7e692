"""The best step by a metric: kept, used, and the end of a run that finds no better one, also when resumed."""

import logging
import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from killed_best import METRIC, config, ending_early, judge_by_vectors
from toy import SPEC, Toy, Words, make_data, make_records

from medclip_jax.evaluation import run as evaluation_run
from medclip_jax.parameters import flatten
from medclip_jax.sweeps.collect import collect
from medclip_jax.sweeps.progress import progress
from medclip_jax.training.best import Best
from medclip_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    best_step,
    restore_weights,
    used_step,
)
from medclip_jax.training.config import to_json
from medclip_jax.training.loop import Data, train
from medclip_jax.training.start import check_evaluation
from medclip_jax.training.status import read_status
from medclip_jax.training.workdir import Workdir, read_metrics
from tests.training.test_loop import assert_equal_runs


def best(higher=True, patience=0):
    return Best(SimpleNamespace(metric=METRIC, patience=patience, higher=higher))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_first_of_equal_ones_is_the_best_and_nan_never_is(sign):
    judge = best(higher=sign > 0, patience=2)
    values = [math.nan, 0.5, 0.5, 0.75, math.nan]
    seen = [judge.see(step, {METRIC: sign * value}) for step, value in enumerate(values)]
    assert seen == [False, True, False, True, False]
    assert (judge.step, judge.value, judge.since) == (3, sign * 0.75, 1)
    assert not judge.exhausted
    judge.see(5, {METRIC: sign * 0.7})
    assert judge.exhausted


def test_without_patience_or_metric_nothing_ends():
    judge = best()
    for step in range(9):
        judge.see(step, {METRIC: -step})
    assert judge.since == 8
    assert not judge.exhausted
    assert not Best(SimpleNamespace(metric="", patience=1, higher=True)).exhausted


def test_a_metric_that_is_not_there_is_named():
    with pytest.raises(
        ValueError, match=r"score/value' is none of the numbers of the evaluation: score/other$"
    ):
        best().see(1, {"score/other": 1.0, "seconds": 2.0})


SCORES = {2: 0.3, 4: 0.8, 6: 0.8, 8: 0.5, 10: 0.6, 12: 0.7}


@pytest.fixture
def scored(monkeypatch):
    """Evaluations give `SCORES` by their order; the list of what was embedded then."""
    vectors = []

    def evaluate(embedder, evaluators, **options):
        volume = {"volume": np.full(SPEC.shape, 300, np.int16)}
        vectors.append(embedder.volumes(1, lambda index: volume)[0])
        return {METRIC: SCORES[2 * len(vectors)]}

    monkeypatch.setattr(evaluation_run, "evaluate", evaluate)
    return vectors


def test_the_best_is_kept_and_used(tmp_path, scored):
    sweep, tmp_path = tmp_path, tmp_path / "one"
    train(config(), tmp_path, data=make_data(), objective_class=Toy)
    (sweep / "sweep.json").write_text('{"one": {"seed": 0}}')
    (row,) = collect(sweep, METRIC).rows
    assert (row.step, row.value) == (4, 0.8)
    assert best_step(tmp_path) == 4
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4, 10, 12]
    used, named, last = (flatten(restore_weights(tmp_path, step=step)) for step in (None, 4, 12))
    for name, value in used.items():
        np.testing.assert_array_equal(value, named[name])
    assert any(not np.array_equal(value, last[name]) for name, value in used.items())
    assert len(scored) == 6


def test_a_run_ends_early_and_stays_ended(tmp_path, scored):
    settings = config()
    settings.evaluation.best.patience = 2
    last = train(settings, tmp_path, data=make_data(), objective_class=Toy)
    assert progress(tmp_path, to_json(settings)) == ("finished", 8, 8)
    assert used_step(tmp_path) == 4
    assert last[METRIC] == 0.5
    assert max(step for step, *_ in read_metrics(tmp_path / "metrics.jsonl")) == 8
    assert read_status(tmp_path).state == "finished"
    again = train(settings, tmp_path, data=make_data(), objective_class=Toy)
    assert again[METRIC] == 0.5
    assert len(scored) == 4
    settings.evaluation.best.patience = 3  # more patience, and it goes on
    train(settings, tmp_path, data=make_data(), objective_class=Toy)
    assert max(step for step, *_ in read_metrics(tmp_path / "metrics.jsonl")) == 10
    assert best_step(tmp_path) == 4


class Breaking:
    """Records that break off after so many reads."""

    def __init__(self, reads):
        self.records, self.left = make_records(24), reads

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.records[index]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run that is judged by its own vectors, and the evaluation that judges."""
    patch = pytest.MonkeyPatch()
    workdir = tmp_path_factory.mktemp("straight")
    patch.setattr(evaluation_run, "evaluate", judge_by_vectors)
    settings = ending_early()
    train(settings, workdir, data=make_data(), objective_class=Toy)
    yield workdir, settings
    patch.undo()


@pytest.mark.parametrize("where", ["evaluation 1", "evaluation 3", "step 5", "step 7"])
def test_a_run_that_breaks_off_resumes_to_the_bit(straight, tmp_path, monkeypatch, where):
    workdir, settings = straight
    what, count = where.split()
    calls = []

    def broken(*arguments, **options):
        calls.append(None)
        if len(calls) == int(count):
            raise KeyboardInterrupt
        return judge_by_vectors(*arguments, **options)

    with monkeypatch.context() as patch:
        if what == "evaluation":
            patch.setattr(evaluation_run, "evaluate", broken)
        source = Breaking(8 * int(count)) if what == "step" else make_records(24)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path, data=Data(source, SPEC, Words()), objective_class=Toy)
    train(settings, tmp_path, data=make_data(), objective_class=Toy)
    assert_equal_runs(workdir, tmp_path)
    assert best_step(tmp_path) == best_step(workdir)
    with Checkpoints(tmp_path) as resumed, Checkpoints(workdir) as whole:
        assert best_step(workdir) in resumed.steps()
        assert resumed.steps()[-1] == whole.steps()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["evaluation 3", "step 7"])
def test_a_killed_run_ends_by_the_same_decision(straight, tmp_path, monkeypatch, where):
    """SIGKILL, which nothing can answer: resumed, it ends at the same step, with the same best one."""
    workdir, settings = straight
    script = str(Path(__file__).with_name("killed_best.py"))
    words = [sys.executable, script, str(tmp_path / "run"), *where.split()]
    ended = subprocess.run(words, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    train(settings, tmp_path / "run", data=make_data(), objective_class=Toy)
    assert_equal_runs(workdir, tmp_path / "run")
    assert best_step(tmp_path / "run") == best_step(workdir) == 4
    assert used_step(tmp_path / "run") == 4
    assert max(step for step, *_ in read_metrics(tmp_path / "run/metrics.jsonl")) == 8
    assert read_status(tmp_path / "run").state == "finished"


def test_a_best_step_without_its_checkpoint_begins_the_search_anew(tmp_path, caplog):
    lines = [f'{{"step": {step}, "{METRIC}": {value}}}' for step, value in SCORES.items()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    judge = best()
    judge.recall(Workdir(tmp_path), 10, (4, 10))
    assert (judge.step, judge.since) == (4, 3)
    judge = best()
    with caplog.at_level(logging.WARNING):
        judge.recall(Workdir(tmp_path), 12, (10, 12))
    assert judge.step is None
    assert "step 4 was the best by score/value and has no checkpoint" in caplog.text


def test_a_damaged_best_checkpoint_is_not_replaced_by_another(tmp_path, scored):
    train(config(), tmp_path, data=make_data(), objective_class=Toy)
    for file in (tmp_path / "checkpoints" / "4" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"step 4 in .* cannot be read.*another \(--step, step=\) of 4, 10"
    ):
        restore_weights(tmp_path)
    assert restore_weights(tmp_path, step=12)


def test_settings_that_choose_nothing_are_refused():
    settings = config()
    settings.evaluation.best.metric = "prediction/auroc_mean"
    with pytest.raises(ValueError, match=r"begins with none of the evaluators of the run \(score\)"):
        check_evaluation(settings)
    settings = config()
    settings.evaluation.every_steps = 0
    with pytest.raises(ValueError, match="only the last step is evaluated"):
        check_evaluation(settings)
