"""medclip evaluate --config: what a file says, what options change, and how mistakes are told."""

import json
import re

import pytest

from medclip_jax.cli.evaluation_config import load_evaluation
from medclip_jax.cli.main import main
from medclip_jax.evaluation.settings import check_evaluators
from medclip_jax.training.config import shipped_configs

SHIPPED = sorted(path.name for path in (shipped_configs() / "evaluation").glob("*.py"))
FILE = """\
from medclip_jax.evaluation.config import evaluation_config

def get_config():
    config = evaluation_config()
    {}
    return config
"""


@pytest.fixture
def evaluate(tiny_run, tmp_path):
    """Runs the command with a file of those lines; returns what it wrote as JSON."""

    def run(lines, *options, source=()):
        file = tmp_path / "mine.py"
        file.write_text(FILE.format("\n    ".join(lines)))
        source = source or ("--workdir", str(tiny_run / "workdir"))
        numbers = tmp_path / "numbers.json"
        assert main(["evaluate", *source, "--config", str(file), "--json", str(numbers), *options]) == 0
        return json.loads(numbers.read_text())

    return run


def test_a_file_says_what_is_evaluated_and_options_change_it(evaluate):
    lines = (
        'config.split = "test[:10]"',
        'config.evaluators = {"zero_shot": {"draws": 30}, "reports": {"kind": "retrieval", "subset": 0}}',
    )
    found = evaluate(lines)
    assert found["volumes"] == 10
    assert set(found["seconds_of"]) == {"embedding", "zero_shot", "reports"}
    assert sum(found["seconds_of"].values()) <= found["seconds"] + 0.01
    assert found["settings"] == {
        "zero_shot": {"draws": 30},
        "reports": {"kind": "retrieval", "subset": 0},
    }
    found = evaluate(lines, "--split", "test", "--evaluators", "zero_shot", "--set", "zero_shot.draws=0")
    assert found["volumes"] == 12
    assert found["settings"] == {"zero_shot": {"draws": 0}}


def test_an_exported_folder_with_the_shards_of_the_file(evaluate, tiny_run, tmp_path):
    import medclip_jax
    from medclip_jax.export.folder import write_folder

    out = write_folder(medclip_jax.load(tiny_run / "workdir", progress=False), tmp_path / "out")
    lines = (
        'config.evaluators = {"zero_shot": {"draws": 0}}',
        f"config.shards = {str(tiny_run / 'shards')!r}",
    )
    exported = evaluate(lines, source=("--model", str(out)))
    trained = evaluate(lines)
    assert exported["metrics"] == pytest.approx(trained["metrics"], abs=1e-5)


def test_the_fold_of_a_run_is_scored_whatever_split_a_file_says(evaluate, tiny_run):
    lines = ('config.split = "test"', 'config.evaluators = {"zero_shot": {"draws": 0}}')
    found = evaluate(lines, "--fold", "--subset", "folds=4,fold=1")
    assert found["split"] == "fold"
    assert found["volumes"] == 4  # of the sixteen to train on
    lines = ('config.split = "fold"', 'config.subset = "folds=4,fold=1"', lines[1])
    assert evaluate(lines)["metrics"] == found["metrics"]


def test_protocols_of_a_file(evaluate):
    found = evaluate(('config.protocols = ("ct_rate/retrieval",)',))
    assert list(found["protocols"]) == ["ct_rate/retrieval"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.splitt = 'test'", r"mine\.py:5: no config\.splitt\. Did you mean config\.split"),
        ("config.batch_size = 'many'", r"config\.batch_size is a int"),
        ("config.evaluators = {'probee': {}}", r"no evaluator 'probee' for config\.evaluators\.probee"),
        ("config.evaluators = {'probe': {'seeds': 0}}", r"config\.evaluators\.probe\.seeds=0"),
        ("config.protocols = ('ct_rate/maen7',)", r"Did you mean ct_rate/mean7"),
        ("return 3", r"must return a config that starts from medclip_jax\.evaluation\.config"),
    ],
)
def test_a_mistake_in_a_file_is_told(tiny_run, tmp_path, capsys, line, message):
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(line))
    assert main(["evaluate", "--workdir", str(tiny_run / "workdir"), "--config", str(file)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_files_that_are_no_evaluation(tiny_run, tmp_path, capsys):
    arguments = ["evaluate", "--workdir", str(tiny_run / "workdir"), "--config"]
    assert main([*arguments, "configs/demo/mae.py"]) == 2
    assert "is a config of `medclip train`: give its workdir with --workdir" in capsys.readouterr().err
    assert main([*arguments, "configs/evaluation/clasification.py"]) == 2
    assert "Did you mean configs/evaluation/classification.py" in capsys.readouterr().err
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert main([*arguments, str(tmp_path / "mine.py")]) == 2
    assert "must define get_config(); start from evaluation_config()" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_evaluations_are_whole_and_say_how_they_are_run(name):
    config = load_evaluation(f"configs/evaluation/{name}")
    assert check_evaluators(config.evaluators)
    text = (shipped_configs() / "evaluation" / name).read_text()
    assert f"--config configs/evaluation/{name}" in text


def test_help_names_the_shipped_evaluations(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    listed = re.search(r"configs/evaluation/\{([\w,\s]+)\}", shown)[1]
    assert {name.strip() + ".py" for name in listed.split(",")} == set(SHIPPED)
    example = re.search(r"^  from medclip_jax.*?^      return config", shown, re.M | re.S)[0]
    names = {}
    exec(re.sub("^  ", "", example, flags=re.M), names)
    assert check_evaluators(names["get_config"]().evaluators)
