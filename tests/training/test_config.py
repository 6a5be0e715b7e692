import json

import pytest

from medclip_jax.objectives import mae
from medclip_jax.sections import leaves
from medclip_jax.training.config import (
    apply_override,
    base_config,
    complete,
    load_config,
    to_json,
    total_steps,
)

FILE = """
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.optimizer.learning_rate = 3e-4
    config.objective = {"name": "mae", "vision": {"width": 8, "patch": (4, 4, 4)}}
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(FILE)
    return path


def test_overrides_take_the_type_of_their_field(file):
    config = load_config(
        file,
        [
            "--config.optimizer.learning_rate=1",
            "--config.steps=2e3",
            "--config.log.tensorboard=False",
            "--config.data.train_split=train[:10%]",
            "--config.objective.vision.patch=(8,8,8)",
            "--config.optimizer.frozen=('text/.*',)",
            "objective.vision.width=16",
            "--config.mesh={'data': 2, 'rules': (('a', ()),)}",
            "--config.evaluation={}",
        ],
    )
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.rules) == (2, 1, (("a", ()),))
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert (config.steps, type(config.steps)) == (2000, int)
    assert config.log.tensorboard is False
    assert config.data.train_split == "train[:10%]"
    assert config.objective.vision.patch == (8, 8, 8)
    assert config.optimizer.frozen == ("text/.*",)
    assert config.objective.vision.width == 16


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("--config.optimizer.learning_rat=1", "config.optimizer.learning_rate"),
        ("--config.learning_rate=1", "config.optimizer.learning_rate"),
        ("--config.optimiser.clip_norm=1", "config.optimizer.clip_norm"),
        ("--config.objective.vision.wdith=1", "config.objective.vision.width"),
    ],
)
def test_a_typo_names_the_nearest_key(file, override, nearest):
    with pytest.raises(ValueError, match=nearest):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.steps=many", "is a int .*many"),
        ("--config.steps=1.5", "is a int"),
        ("--config.log.tensorboard=maybe", "is a bool"),
        ("--config.optimizer.frozen=text", "is a tuple"),
        ("--config.optimizer=adam", r"is a section.*\{'accumulate': value"),
        ("--config.optimizer={'learning_rat': 1}", "Did you mean config.optimizer.learning_rate"),
        ("--config.optimizer={'learning_rate'}", "is a section: write"),
        ("--config.steps", "section.field=value"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(file, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(file, [override])


def test_evaluators_are_emptied_changed_and_added_by_overrides(file):
    config = load_config(file, ["--config.evaluation.evaluators={'zero_shot': {'seed': 3}, 'retrieval': {}}"])
    assert config.evaluation.evaluators.to_dict() == {"zero_shot": {"seed": 3}, "retrieval": {}}
    apply_override(config, "--config.evaluation.evaluators.zero_shot.draws=0")
    apply_override(config, "--config.evaluation.evaluators.retrieval.ks=(1,2)")
    apply_override(config, "--config.evaluation.evaluators.grades={'kind': 'ordinal'}")
    apply_override(config, "--config.evaluation.evaluators.grades.draws=1e2")
    assert config.evaluation.evaluators.to_dict() == {
        "zero_shot": {"seed": 3, "draws": 0},
        "retrieval": {"ks": (1, 2)},
        "grades": {"kind": "ordinal", "draws": 100},
    }
    apply_override(config, "--config.evaluation.protocols=('ct_rate/mean7',)")
    assert config.evaluation.protocols == ("ct_rate/mean7",)
    apply_override(config, "--config.evaluation.evaluators={}")
    assert config.evaluation.evaluators.to_dict() == {}
    apply_override(config, "--config.evaluation.evaluators.zero_shot.draws=0")
    assert config.evaluation.evaluators.to_dict() == {"zero_shot": {"draws": 0}}
    assert config.is_locked


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.evaluation.evaluators={'zero_shott': {}}", "Did you mean zero_shot"),
        ("--config.evaluation.evaluators.zero_shot.drows=0", r"Did you mean config\.evaluation.*\.draws\?"),
        ("--config.evaluation.evaluators.zero_shot.draws=few", "is a int .*few"),
        ("--config.evaluation.evaluators.zero_shot=1", "is a section"),
        ("--config.evaluation.evaluators={'zero_shot': 1}", "must be a dict"),
        ("--config.evaluation.evaluators=zero_shot", "cannot be set"),
        ("--config.evaluation.evaluator={}", r"config\.evaluation"),
    ],
)
def test_an_evaluator_that_does_not_exist_is_refused(file, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(file, [override])


def test_an_unknown_key_in_a_file_is_an_error(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(FILE.replace("optimizer.learning_rate", "optimizer.learning_rat"))
    with pytest.raises(ValueError, match="learning_rat"):
        load_config(path)


def test_configs_of_the_package_are_found_from_anywhere(tmp_path, monkeypatch):
    """In a folder of one's own; a file of that name there comes first."""
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/hipro_ct/pretrain.py").objective.name == "hipro_ct"
    with pytest.raises(FileNotFoundError, match=r"pretrian\.py\. Did you mean configs/hipro_ct/pretrain\.py"):
        load_config("configs/hipro_ct/pretrian.py")
    (tmp_path / "configs/hipro_ct").mkdir(parents=True)
    (tmp_path / "configs/hipro_ct/pretrain.py").write_text(FILE)
    assert load_config("configs/hipro_ct/pretrain.py").objective.name != "hipro_ct"


def test_a_missing_file_and_a_file_without_config_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_config(tmp_path / "nothing.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="get_config"):
        load_config(tmp_path / "empty.py")


def test_the_config_survives_json(file):
    plain = to_json(load_config(file))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["objective"]["vision"]["patch"] == [4, 4, 4]


def test_every_field_can_be_overridden_by_its_own_value():
    config = base_config()
    for name, value, _ in leaves(config):
        apply_override(config, f"--config.{name}={value}")
    assert to_json(config) == to_json(base_config())


def test_steps_come_from_epochs():
    config = base_config()
    config.epochs, config.batch_size = 1.5, 8
    assert total_steps(config, 20) == 4  # 30 samples
    config.steps = 3
    with pytest.raises(ValueError, match="not both"):
        total_steps(config, 20)
    config.epochs = 0.0
    assert total_steps(config, 20) == 3
    config.steps = 0
    with pytest.raises(ValueError, match=r"config\.steps or config\.epochs"):
        total_steps(config, 20)


def test_a_saved_config_gets_the_keys_added_since_then(file):
    config = base_config()
    config.objective = mae.default_config()
    config.objective.vision.width = 24
    config.evaluation.evaluators = {"zero_shot": {"draws": 3}}
    saved = to_json(config)
    assert complete(saved) == saved
    earlier = json.loads(json.dumps(saved))
    del earlier["objective"]["vision"]["peaks"], earlier["optimizer"]["accumulate"], earlier["ema"]
    assert complete(earlier) == saved
    unregistered = earlier | {"objective": {"name": "toy", "vision": {"width": 8}}}
    assert complete(unregistered)["objective"] == unregistered["objective"]
