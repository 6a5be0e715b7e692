import csv
import itertools
import json
import math

import numpy as np
import pytest

from medclip_jax.sweeps.collect import collect, to_csv, to_markdown, write_results
from medclip_jax.sweeps.units import expand, write

FILE = """
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = {"name": "mae", "vision": {"patch": (4, 4, 4)}}
    config.data.shards = "shards"
    config.steps = 3
    return config
"""


@pytest.fixture
def sweep(tmp_path):
    """Makes units and what their runs left: `numbers` maps a unit's name to metrics by step."""
    (tmp_path / "run.py").write_text(FILE)

    def make(grid, numbers, seeds=()):
        units = expand(tmp_path / "run.py", tmp_path / "out", grid, seeds=seeds)
        write(units, tmp_path / "out")
        for unit in units:
            for step, metrics in numbers.get(unit.name, {}).items():
                with (unit.folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps({"step": step, **metrics}) + "\n")
                (unit.folder / "checkpoints" / str(step)).mkdir(parents=True)
        return tmp_path / "out"

    return make


@pytest.fixture
def two_by_two(sweep):
    scores = {(4, 0): 0.5, (4, 1): 0.7, (8, 0): 0.8, (8, 1): 0.9}
    return sweep(
        ["batch_size=4,8"],
        {
            f"batch_size={size},seed={seed}": {2: {"auroc": 0.99}, 3: {"auroc": score, "loss": size}}
            for (size, seed), score in scores.items()
        },
        seeds=(0, 1),
    )


def test_seeds_become_mean_and_spread_best_first(two_by_two):
    results = collect(two_by_two, "auroc")
    assert [setting.values for setting in results.settings] == [{"batch_size": 8}, {"batch_size": 4}]
    best, other = results.settings
    assert (best.mean, best.low, best.high, best.count) == (pytest.approx(0.85), 0.8, 0.9, 2)
    # Sample standard deviation of two numbers: their difference by the root of 2.
    assert other.deviation == pytest.approx(0.2 / math.sqrt(2))
    assert results.best == "highest"
    assert collect(two_by_two, "auroc", best="lowest").settings[0].values == {"batch_size": 4}
    assert collect(two_by_two, "loss").best == "lowest"
    assert collect(two_by_two, "loss").settings[0].values == {"batch_size": 4}


def test_folds_and_seeds_of_a_share_are_its_runs(sweep):
    runs = list(itertools.product((0.1, 1.0), (0, 1), (0, 1)))
    scores = {(share, seed, fold): share + seed / 10 + fold / 100 for share, seed, fold in runs}
    out = sweep(
        [
            "data.subset.share=0.1,1.0",
            "seed+data.subset.seed=0,1",
            "data.subset.fold=0,1",
            "data.subset.folds=2",
        ],
        {
            f"fold={fold},folds=2,share={share},subset.seed={seed},seed={seed}": {3: {"auroc": score}}
            for (share, seed, fold), score in scores.items()
            if (share, seed, fold) != (0.1, 1, 1)
        },
    )
    results = collect(out, "auroc")
    assert results.keys == ("data.subset.folds", "data.subset.share")
    best, other = results.settings
    assert (best.values["data.subset.share"], best.count) == (1, 4)
    assert (other.values["data.subset.share"], other.count) == (0.1, 3)
    found = [score for (share, *_), score in scores.items() if share == 1]
    assert best.mean == pytest.approx(np.mean(found))
    assert best.deviation == pytest.approx(np.std(found, ddof=1))
    text = to_markdown(results)
    assert "| ± over runs | lowest | highest | runs |" in text
    assert "* fold=1,folds=2,share=0.1,subset.seed=1,seed=1: waiting" in text
    keys = "data.subset.folds,data.subset.share,seed,data.subset.seed,data.subset.fold"
    assert to_csv(results).splitlines()[0] == f"unit,{keys},state,step,auroc"
    write_results(results, out)


def test_results_of_evaluate(two_by_two):
    units = sorted(path for path in two_by_two.iterdir() if path.is_dir())
    for place, unit in enumerate(units[:3]):
        (unit / "fold.json").write_text(json.dumps({"metrics": {"probe/auroc_mean": place / 10}}))
    results = collect(two_by_two, "probe/auroc_mean", results="fold.json")
    assert [(setting.mean, setting.count) for setting in results.settings] == [(0.2, 1), (0.05, 2)]
    assert f"* {units[3].name}: no number" in to_markdown(results)
    (units[3] / "fold.json").write_text("{}")
    with pytest.raises(ValueError, match=r"fold\.json is no result of `medclip evaluate --json`"):
        collect(two_by_two, "probe/auroc_mean", results="fold.json")


def test_tables_and_plot_are_written(two_by_two):
    paths = write_results(collect(two_by_two, "auroc"), two_by_two)
    assert [path.name for path in paths] == ["results.csv", "results.md", "results.svg"]
    rows = list(csv.DictReader(paths[0].open()))
    assert [(row["unit"], row["batch_size"], row["seed"], row["state"]) for row in rows] == [
        (f"batch_size={size},seed={seed}", str(size), str(seed), "finished")
        for size in (4, 8)
        for seed in (0, 1)
    ]
    assert [float(row["auroc"]) for row in rows] == [0.5, 0.7, 0.8, 0.9]
    lines = paths[1].read_text().splitlines()
    assert lines[2] == "| 8 | 0.85 | 0.07071 | 0.8 | 0.9 | 2 |"
    assert paths[2].read_text().lstrip().startswith("<?xml")


def test_only_finished_units_count_and_the_others_are_named(sweep):
    out = sweep(
        ["batch_size=4,8", "objective.vision.patch=(4,4,4),(8,8,8)"],
        {
            "batch_size=4,patch=4x4x4": {3: {"auroc": 0.5}},
            "batch_size=4,patch=8x8x8": {2: {"auroc": 0.9}},
            "batch_size=8,patch=4x4x4": {3: {"auroc": None}},
        },
    )
    results = collect(out, "auroc")
    assert [setting.mean for setting in results.settings] == [0.5]
    assert math.isnan(results.settings[0].deviation)
    text = to_markdown(results)
    assert "* batch_size=4,patch=8x8x8: stopped" in text
    assert "* batch_size=8,patch=4x4x4: no number" in text
    assert "* batch_size=8,patch=8x8x8: waiting" in text
    assert '"[4, 4, 4]",0,finished,3,0.5' in to_csv(results)
    write_results(results, out)


def test_a_key_swept_later_is_read_from_earlier_units(sweep):
    sweep(["batch_size=4"], {"batch_size=4": {3: {"auroc": 0.5}}})
    both = {"batch_size=4,learning_rate=0.1": {3: {"auroc": 0.6}}}
    results = collect(sweep(["batch_size=4", "optimizer.learning_rate=0.1"], both), "auroc")
    assert [setting.values["optimizer.learning_rate"] for setting in results.settings] == [0.1, 1e-4]


def test_what_is_missing_is_said(sweep, tmp_path):
    with pytest.raises(FileNotFoundError, match="no sweep in"):
        collect(tmp_path, "auroc")
    out = sweep(["batch_size=4,8"], {"batch_size=4": {2: {"auroc": 0.5}}})
    with pytest.raises(ValueError, match=r"1 stopped, 1 waiting"):
        collect(out, "auroc")
    out = sweep(["batch_size=4"], {"batch_size=4": {3: {"zero_shot/auroc_mean": 0.5, "loss": 1.0}}})
    with pytest.raises(ValueError, match=r"Did you mean zero_shot/auroc_mean"):
        collect(out, "zero_shot/auroc")
