import json
import shlex

import pytest

from medclip_jax.sweeps.units import expand, parse_grid, write
from medclip_jax.training.config import load_config, to_json

FILE = """
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = {"name": "mae", "vision": {"width": 8, "patch": (4, 4, 4)}}
    config.data.shards = "shards"
    config.steps = 5
    return config
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "run.py").write_text(FILE)
    return tmp_path / "run.py"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2", ["1", "2"]),
        ("--config.a.b=1", ["1"]),
        ("a.b=(4,4,4),(8,8,8)", ["(4,4,4)", "(8,8,8)"]),
        ("a.b={},{'x': {'y': (1, 2)}}", ["{}", "{'x': {'y': (1, 2)}}"]),
        ("a.b=('a,b','(c'),()", ["('a,b','(c')", "()"]),
        ("a.b='',train[:10%]", ["", "train[:10%]"]),
    ],
)
def test_commas_inside_of_brackets_and_quotes_do_not_separate(text, values):
    assert parse_grid(text) == ("a.b", values)


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a=1,", "a=(1,2", "a='x", "a=1,,2"])
def test_a_grid_that_cannot_be_read_is_an_error(text):
    with pytest.raises(ValueError, match="--grid"):
        parse_grid(text)


def test_two_keys_that_are_swept_together(file, tmp_path):
    grid = ["seed+data.subset.seed=0,1", "data.subset.share=0.1,1.0"]
    units = expand(file, tmp_path, grid, settings=["data.subset.folds=2"])
    assert [unit.name for unit in units] == [
        f"share={share},subset.seed={seed},seed={seed}" for seed in (0, 1) for share in ("0.1", "1.0")
    ]
    assert [(unit.config.seed, unit.config.data.subset.seed) for unit in units] == [(0, 0)] * 2 + [(1, 1)] * 2
    assert "--config.data.subset.seed=1" in units[-1].command
    with pytest.raises(ValueError, match=r"config\.seed is swept twice"):
        expand(file, tmp_path, ["seed+data.subset.seed=0,1"], seeds=(0, 1))
    with pytest.raises(ValueError, match=r"write --grid first\.field\+second\.field"):
        expand(file, tmp_path, ["seed+=0,1"])
    with pytest.raises(ValueError, match=r"the 2 folds are 0 to 1"):
        expand(file, tmp_path, ["data.subset.fold=0,1,2"], settings=["data.subset.folds=2"])


def test_every_combination_becomes_a_resolved_unit(file, tmp_path):
    units = expand(
        file,
        tmp_path / "out",
        ["optimizer.learning_rate=1e-3,0.01", "objective.vision.patch=(4,4,4),(8,8,8)"],
        settings=["steps=7", "--config.batch_size=4"],
        seeds=(0, 1),
    )
    assert [unit.name for unit in units] == [
        f"learning_rate={rate},patch={patch},seed={seed}"
        for rate in ("0.001", "0.01")
        for patch in ("4x4x4", "8x8x8")
        for seed in (0, 1)
    ]
    last = units[-1]
    assert last.values == {"optimizer.learning_rate": 0.01, "objective.vision.patch": [8, 8, 8], "seed": 1}
    assert (last.config.optimizer.learning_rate, last.config.seed, last.config.steps) == (0.01, 1, 7)
    assert last.config.objective.vision.patch == (8, 8, 8)
    assert not (tmp_path / "out").exists()
    # The command alone makes the same run.
    words = last.command
    assert words[:2] == ("medclip", "train")
    assert words[words.index("--workdir") + 1] == str(tmp_path / "out" / last.name)
    overrides = [word for word in words if word.startswith("--config.")]
    again = load_config(words[words.index("--config") + 1], overrides)
    assert to_json(again) == to_json(last.config)


def test_a_unit_keeps_its_name_in_any_larger_grid(file, tmp_path):
    def names(*grid):
        return {unit.name for unit in expand(file, tmp_path, grid)}

    small = names("optimizer.learning_rate=1e-3", "batch_size=4")
    assert small == names("batch_size=4", "optimizer.learning_rate=0.001")
    assert small < names("batch_size=4,8", "optimizer.learning_rate=1e-3,1e-2")


def test_names_tell_apart_what_file_names_cannot_show(file, tmp_path):
    splits = ["train[:10%]", "train[:10 %]", "train/10"]
    units = expand(file, tmp_path, ["data.train_split=" + ",".join(splits)])
    assert [unit.config.data.train_split for unit in units] == splits
    assert len({unit.name for unit in units}) == 3
    assert all(set(unit.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._=-") for unit in units)


def test_two_fields_of_one_name_keep_their_sections(file, tmp_path):
    units = expand(file, tmp_path, ["checkpoint.every_steps=1", "log.every_steps=2"])
    assert units[0].name == "checkpoint.every_steps=1,log.every_steps=2"


def test_whole_evaluators_are_values(file, tmp_path):
    units = expand(file, tmp_path, ["evaluation.evaluators={},{'zero_shot': {'draws': 0}}"])
    assert units[0].config.evaluation.evaluators.to_dict() == {}
    assert units[1].values == {"evaluation.evaluators": {"zero_shot": {"draws": 0}}}


@pytest.mark.parametrize(
    ("grid", "settings", "message"),
    [
        (["optimizer.lerning_rate=1"], [], r"Did you mean config\.optimizer\.learning_rate"),
        (["seed=0"], ["optimizer.lerning_rate=1"], r"Did you mean config\.optimizer\.learning_rate"),
        (["steps=few"], [], "is a int"),
        (["steps=1,1.0e0"], [], "twice"),
        (["seed=0", "seed=1"], [], "swept twice"),
        (["seed=0"], ["seed=1"], "set and swept"),
        (["seed=0"], ["steps=0"], "config.steps or config.epochs"),
        (["seed=0"], ["data.shards="], "data.shards is empty"),
        ([], [], "nothing to sweep"),
    ],
)
def test_a_mistake_is_an_error_before_anything_is_written(file, tmp_path, grid, settings, message):
    with pytest.raises(ValueError, match=message):
        expand(file, tmp_path / "out", grid, settings=settings)
    assert not (tmp_path / "out").exists()


def test_folders_hold_config_and_command_and_a_sweep_grows(file, tmp_path):
    out = tmp_path / "with space"
    write(expand(file, out, ["batch_size=4"], seeds=(0,)), out)
    write(expand(file, out, ["batch_size=8"], seeds=(0,)), out)
    assert list(json.loads((out / "sweep.json").read_text())) == [
        "batch_size=4,seed=0",
        "batch_size=8,seed=0",
    ]
    folder = out / "batch_size=4,seed=0"
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 4
    words = shlex.split((folder / "command.txt").read_text())
    assert words[words.index("--workdir") + 1] == str(folder)


def test_a_unit_with_a_checkpoint_is_not_turned_into_another_run(file, tmp_path):
    write(expand(file, tmp_path / "out", ["batch_size=4"]), tmp_path / "out")
    longer = expand(file, tmp_path / "out", ["batch_size=4"], settings=["steps=9"])
    other = expand(file, tmp_path / "out", ["batch_size=4"], settings=["seed=9"])
    write(other, tmp_path / "out")  # nothing was trained yet
    (tmp_path / "out" / "batch_size=4" / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"config\.seed: 9 there, 0 now"):
        write(longer, tmp_path / "out")
    write(expand(file, tmp_path / "out", ["batch_size=4"], settings=["seed=9", "steps=9"]), tmp_path / "out")


def test_fields_of_a_section_are_swept_together(file, tmp_path):
    """Settings that are no product, such as the rows of an ablation."""
    grid = ["objective.vision={'width': 8},{'width': 16, 'patch': (8, 8, 8)}"]
    units = expand(file, tmp_path / "out", grid)
    assert [(unit.values["objective.vision"][key]) for unit in units for key in ("width", "patch")] == [
        *(8, [4, 4, 4]),
        *(16, [8, 8, 8]),
    ]
    assert len({unit.name for unit in units}) == 2
    assert load_config(file, units[1].command[6:]).objective.vision.width == 16
    with pytest.raises(ValueError, match="stands twice"):
        expand(file, tmp_path / "out", ["objective.vision={'width': 8},{}"])
