"""medclip evaluate --suite: what it trains, what it takes from results, and a short run that is resumed."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medclip_jax.cli import suite
from medclip_jax.cli.demo_stages import Stages
from medclip_jax.cli.evaluation_config import load_evaluation
from medclip_jax.cli.main import main
from medclip_jax.cli.suite_plan import (
    DATA_SECONDS,
    EVALUATION_SECONDS,
    MINUTES,
    SEGMENTATION_SECONDS,
    SYSTEMS,
    TASKS,
    Task,
)
from medclip_jax.evaluation.bootstrap import draw_patients
from medclip_jax.evaluation.scored import FindingTask, Scored, ValueTask
from medclip_jax.evaluation.settings import check_evaluators
from medclip_jax.training.config import load_config, shipped_configs


def test_systems_are_trained_after_what_they_begin_with():
    names = list(SYSTEMS)
    for name, system in SYSTEMS.items():
        if system.begins_with:
            assert names.index(system.begins_with) < names.index(name)
    assert suite.chosen_systems("t3d, cardiac_clip") == ["cardiac_clip", "t3d"]
    assert suite.chosen_systems(None) == names
    assert suite._with_starts(["cardiac_clip"]) == ["mae", "cardiac_clip"]
    with pytest.raises(ValueError, match=r"--systems cardiac_clop: there are .* Did you mean cardiac_clip"):
        suite.chosen_systems("cardiac_clop")


def test_the_plan_fits_its_half_hour():
    seconds = DATA_SECONDS + sum(
        one.seconds + EVALUATION_SECONDS + SEGMENTATION_SECONDS for one in SYSTEMS.values()
    )
    assert seconds <= 60 * MINUTES


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_configs_of_all_systems_take_what_the_suite_sets(name):
    system = SYSTEMS[name]
    config = load_config(
        shipped_configs() / system.config, [f"--config.steps={system.steps}", *system.overrides]
    )
    load_config(shipped_configs() / system.config, suite.SHORT.overrides)
    assert config.steps == system.steps
    assert config.optimizer.warmup_steps < config.steps
    segmentation = load_config(shipped_configs() / system.segmentation)
    assert segmentation.optimizer.warmup_steps < segmentation.steps
    load_config(shipped_configs() / system.segmentation, suite.SHORT.overrides)
    # Organ cells of the suite's set divide the patches of all systems that read organs.
    cell = config.data.prepare.organ_cell
    assert cell % 2 == 0


def test_every_task_is_asked_of_the_systems():
    asked = load_evaluation(suite.EVALUATION).evaluators.to_dict()
    assert check_evaluators(asked)
    assert {task.evaluator for task in TASKS if not task.fine_tuned} == set(asked)
    assert len({task.key for task in TASKS}) == len(TASKS)


RESULTS = {
    "metrics": {
        "zero_shot/auroc_mean": 0.7,
        "probe/10%/auroc_mean": 0.6,
        "probe/10%/auroc_low_mean": 0.5,
        "probe/10%/auroc_high_mean": 0.65,
        "mlp_probe/accuracy/classes": 0.4,
        "mlp_probe/accuracy_low/classes": 0.3,
        "spectrum/effective_rank/block_1": 3.0,
        "spectrum/effective_rank/final": 4.0,
        "spectrum/volume_rank/final": 0.2,
        "few_shot/1_shot/auroc_mean": None,
    },
    "intervals": {"zero_shot/auroc_mean": [0.6, None]},
    "skipped": {"retrieval": "no text tower"},
}


@pytest.mark.parametrize(
    ("evaluator", "metric", "expected"),
    [
        ("zero_shot", "auroc_mean", (0.7, 0.6, math.nan)),
        ("probe", "10%/auroc_mean", (0.6, 0.5, 0.65)),
        ("spectrum", "effective_rank/", (4.0, math.nan, math.nan)),
        ("few_shot", "1_shot/auroc_mean", (math.nan, math.nan, math.nan)),
        ("few_shot", "2_shot/auroc_mean", (math.nan, math.nan, math.nan)),
        ("retrieval", "text_to_image/R@10", (math.nan, math.nan, math.nan)),
    ],
)
def test_what_a_file_of_results_says_of_a_task(evaluator, metric, expected):
    score = suite.score_of(Task("", evaluator, metric, ""), RESULTS)
    np.testing.assert_equal((score.value, score.low, score.high), expected)
    assert bool(score.reason) == math.isnan(score.value)


def test_intervals_by_the_scores_of_every_volume():
    """As drawn by hand, with scikit-learn's AUROC, and the mean of values; ties, a finding of one class."""
    generator = np.random.default_rng(0)
    patients = np.arange(40) // 2
    labels = generator.random((2, 40)) < 0.5
    scores = np.round(labels + generator.normal(size=(2, 40)))
    rows = np.arange(40)
    tasks = {name: FindingTask(rows, labels[i], scores[i][None]) for i, name in enumerate("ab")}
    tasks["c"] = FindingTask(rows, np.ones(40, bool), scores[0][None])
    found = suite.drawn_interval(Scored([str(n) for n in rows], patients, tasks), "auroc", mean=True)
    means = []
    for weights in draw_patients(patients, suite.DRAWS, 0):
        drawn = np.repeat(rows, weights)
        means.append(np.mean([roc_auc_score(labels[i][drawn], scores[i][drawn]) for i in range(2)]))
    assert found == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)

    hits = Scored([str(n) for n in rows], patients, {"R@1": ValueTask(rows, labels[:1].astype(float), "R@1")})
    means = [np.average(labels[0], weights=w) for w in draw_patients(patients, suite.DRAWS, 0)]
    found = suite.drawn_interval(hits, "R@1", mean=False)
    assert found == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)
    np.testing.assert_equal(suite.drawn_interval(hits, "R@5", mean=False), (math.nan, math.nan))
    # A mean of accuracies is no AUROC, and neither is its interval.
    np.testing.assert_equal(suite.drawn_interval(hits, "auroc", mean=True), (math.nan, math.nan))


def test_another_suite_in_the_same_folder_is_refused(tmp_path, capsys):
    (tmp_path / "suite.made.json").write_text(json.dumps({"suite": "phantom", "short": False, "seed": 0}))
    assert main(["evaluate", "--suite", "phantom", "--short", "--out", str(tmp_path)]) == 2
    assert "holds another suite (suite phantom, short False" in capsys.readouterr().err


def results(auroc, skipped=(), seconds=1.0):
    """Content of a file of results of which only zero-shot is there."""
    return {
        "settings": {},
        "metrics": {} if skipped else {"zero_shot/auroc_mean": auroc},
        "intervals": {},
        "skipped": dict.fromkeys(skipped, "no text tower"),
        "seconds_of": {"zero_shot": seconds},
    }


def test_page_and_numbers_are_made_of_the_files_of_results(tmp_path, monkeypatch):
    """Whatever systems have one; in the order of the suite, the best and the reasons told."""
    from medclip_jax.shards import read

    monkeypatch.setattr(read, "open_shards", lambda _: SimpleNamespace(splits={"train": 70, "test": 13}))
    (tmp_path / "results").mkdir()
    files = {
        "t3d": results(0.7, seconds=3.0),
        "mae": results(0.0, ["zero_shot"]),
        "cardiac_clip": results(0.8, seconds=1.0),
        "cardiac_clip.segmentation": results(0.0)
        | {"metrics": {"segmentation/dice_mean": 0.25}, "seconds_of": {"segmentation": 4.0}},
    }
    for name, content in files.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(content))
    clock = Stages(tmp_path / "seconds.json", 1)
    clock.path.write_text(
        json.dumps({"phantoms": 10.0, "prepare": 5.0, "train mae": 7.0, "train strong": 9.0})
    )
    args = SimpleNamespace(out=tmp_path, suite="phantom", short=False, seed=0)
    page, numbers = suite.write_outputs(args, clock)
    found = json.loads(numbers.read_text())
    assert list(found["scores"]) == ["mae", "cardiac_clip", "t3d"]
    assert found["best"]["zero_shot/auroc_mean"] == ["cardiac_clip"]
    assert found["best"]["segmentation/dice_mean"] == ["cardiac_clip"]
    assert found["scores"]["mae"]["zero_shot/auroc_mean"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "no text tower",
    }
    assert found["scores"]["t3d"]["segmentation/dice_mean"]["reason"] == "not measured"
    assert found["seconds"]["phantoms and shards"] == {"planned": DATA_SECONDS, "measured": 15.0}
    assert found["seconds"]["train mae"]["measured"] == 7.0
    assert "train strong" not in found["seconds"]  # it has no results
    assert found["seconds_of_tasks"] == {"segmentation": 4.0, "zero_shot": 2.0}  # where they ran
    text = page.read_text()
    assert '<td class="best">0.800</td>' in text
    assert "no text tower" in text
    assert "CMR-CLIP is not in this table" in text


def test_a_suite_has_its_own_models(capsys):
    assert main(["evaluate", "--suite", "phantom", "--workdir", "runs/x"]) == 2
    assert "leave out --workdir" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_suite_is_written_and_resumed(tmp_path, monkeypatch):
    """Minutes: it trains for two steps, evaluates, writes both files; again, it does nothing anew."""
    arguments = ["evaluate", "--suite", "phantom", "--short", "--systems", "random", "--out", str(tmp_path)]
    assert main(arguments) == 0
    numbers = json.loads((tmp_path / "suite.json").read_text())
    assert list(numbers["scores"]) == ["random"]
    assert 0 <= numbers["scores"]["random"]["zero_shot/auroc_mean"]["value"] <= 1
    page = (tmp_path / "suite.html").read_text()
    assert "random weights" in page
    assert "CMR-CLIP is not in this table" in page
    monkeypatch.setattr(suite, "train_config", lambda *_: pytest.fail("trained again"))
    (tmp_path / "suite.html").unlink()
    assert main(arguments) == 0
    assert json.loads((tmp_path / "suite.json").read_text())["scores"] == numbers["scores"]
    assert (tmp_path / "suite.html").exists()
