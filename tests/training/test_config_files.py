"""Config files: what they import, and what is refused in them before anything is opened."""

import sys

import pytest

from medclip_jax.objectives import Objective, create, resolve
from medclip_jax.sections import leaves
from medclip_jax.training.config import complete, load_config, to_json
from medclip_jax.training.config_module import config_module

BODY = """
from medclip_jax.objectives import {name}
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = {name}.default_config()
    config.steps = 3
    {line}
    return config
"""


def write(folder, line, name="clip", imports=""):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.py"
    file.write_text(imports + BODY.format(line=line, name=name))
    return file


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.objective.vision.widht = 32", "Did you mean config.objective.vision.width?"),
        ("config.objective.vision.update(widht=32)", "Did you mean config.objective.vision.width?"),
        ("config.objective['embeding_width'] = 32", "Did you mean config.objective.embedding_width?"),
        ("config.objective.vision.augment = {'gian': 1}", "config.objective.vision.augment.gain?"),
        ("config.objective = {'name': 'mae', 'mask_fracton': 1}", "config.objective.mask_fraction?"),
        ("config.data.text.update(reprt=1)", "Did you mean config.data.text.report?"),
        ("config.data.text = {'reprt': 1}", "Did you mean config.data.text.report?"),
        ("config.optimiser = {'clip_norm': 1.0}", "no config.optimiser"),
        ("config.data.txt.report = 1.0", "no config.data.txt."),
        ("config.steps = 2.5", "config.steps is a int (now 3) and cannot be 2.5"),
        ("config.objective.vision = 3", "config.objective.vision is a section, and cannot be 3"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_names_its_line_and_the_nearest_key(tmp_path, line, message):
    file = write(tmp_path, line)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config(file)
    number = file.read_text().splitlines().index(f"    {line}") + 1
    assert str(error.value).startswith(f"{file}:{number}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.evaluation.evaluators = {'zero_shott': {}}", "Did you mean zero_shot"),
        ("config.evaluation.evaluators.zero_shott = {}", "Did you mean zero_shot"),
        ("config.evaluation.evaluators.update(zero_shot={'drows': 1})", "evaluators.zero_shot.draws?"),
        ("config.evaluation.update(evaluators={'retrieval': {'text': 'reprt'}})", "Did you mean report?"),
        ("config.objective.name = 'clap'", "'clap': there are mae, clip"),
        ("config.objective.name = 'mae'", "no config.objective.cached_texts"),
        ("config = {'steps': 3}", "config.objective is not set"),
        ("config = 3", "must return a config"),
        ("config = {'steps': 3, 'objective': {'name': 'mae', 'mask_fracton': 0.5}}", "mask_fraction?"),
        ("config.batch_size = -1", "config.batch_size=-1"),
    ],
)
def test_so_does_what_only_the_finished_config_shows(tmp_path, line, message):
    with pytest.raises(ValueError, match=r"config") as error:
        load_config(write(tmp_path, line))
    assert message in str(error.value)
    assert "run.py" in str(error.value) or "batch_size" in line


def test_evaluators_of_a_sibling_are_extended_and_tell_who_set_them(tmp_path):
    write(tmp_path, "config.evaluation.evaluators = {'zero_shot': {'draws': 3}}")
    (tmp_path / "more.py").write_text(
        "from .run import get_config as sibling\n"
        "def get_config():\n"
        "    config = sibling()\n"
        "    config.evaluation.evaluators.retrieval = {'subset': 5}\n"
        "    config.evaluation.evaluators.zero_shot.seed = 7\n"
        "    config.ema.decay = 0.5\n"
        "    return config\n"
    )
    config = load_config(tmp_path / "more.py", ["--config.evaluation.evaluators.zero_shot.seed=8"])
    assert config.evaluation.evaluators.to_dict() == {
        "zero_shot": {"draws": 3, "seed": 8},
        "retrieval": {"subset": 5},
    }
    origins = {name: origin for name, _, origin in leaves(config)}
    assert origins["evaluation.evaluators.zero_shot.draws"] == f"{tmp_path / 'run.py'}:9"
    assert origins["evaluation.evaluators.retrieval.subset"] == f"{tmp_path / 'more.py'}:4"
    assert origins["evaluation.evaluators.zero_shot.seed"] == "override"
    assert origins["ema.decay"] == f"{tmp_path / 'more.py'}:6"
    assert origins["steps"] == f"{tmp_path / 'run.py'}:8"
    assert origins["optimizer.learning_rate"] == "default"
    assert origins["objective.vision.width"] == "default"


def test_siblings_are_modules_wherever_they_lie(tmp_path, monkeypatch):
    """Those of another folder, too, and packages; folders may have any name, and nothing is left behind."""
    base = tmp_path / "my runs.v1"
    write(
        base / "ours-2", "size(config)", imports="from .common import size\nfrom ..other.steps import STEPS\n"
    )
    (base / "ours-2" / "common").mkdir()
    (base / "ours-2" / "common" / "__init__.py").write_text(
        "from .sizes import BATCH\ndef size(config):\n    config.batch_size = BATCH\n"
    )
    (base / "ours-2" / "common" / "sizes.py").write_text("BATCH = 16\n")
    (base / "other").mkdir()
    (base / "other" / "steps.py").write_text("STEPS = 3\n")
    before = set(sys.modules)
    finders = list(sys.meta_path)
    assert load_config(base / "ours-2" / "run.py").batch_size == 16
    monkeypatch.chdir(base / "ours-2")
    # Of the same second and size: no cache may stand between.
    (base / "ours-2" / "common" / "sizes.py").write_text("BATCH = 24\n")
    assert load_config("run.py").batch_size == 24
    assert {name for name in set(sys.modules) - before if name.startswith("medclip_config")} == set()
    assert sys.meta_path == finders
    assert not list(base.rglob("__pycache__"))


def test_a_sibling_that_is_missing_is_named(tmp_path):
    file = write(tmp_path, "pass", imports="from .common import size\n")
    with pytest.raises(ValueError, match=r"run\.py imports .*/common\.py, which is not there: copy it, too"):
        load_config(file)
    file = write(tmp_path, "pass", imports="import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_config(file)


def test_a_config_may_start_from_one_that_is_shipped(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from medclip_jax.training.config import load_config\n"
        "def get_config():\n"
        "    config = load_config('configs/own/contrastive.py')\n"
        "    from .extra import STEPS\n"
        "    config.steps, config.epochs = STEPS, 0.0\n"
        "    return config\n"
    )
    (tmp_path / "extra.py").write_text("STEPS = 7\n")
    config = load_config(file)
    assert (config.steps, config.objective.vision.width) == (7, 256)
    origins = {name: origin for name, _, origin in leaves(config)}
    assert origins["objective.vision.width"].startswith("configs/own/mae.py:")


def test_a_module_of_values_alone_can_be_read(tmp_path):
    (tmp_path / "data.py").write_text("from .more import COUNT\n")
    (tmp_path / "more.py").write_text("COUNT = 5\n")
    with config_module(tmp_path / "data.py") as module:
        assert module.COUNT == 5


OUTSIDE = """
from medclip_jax.objectives.base import Objective
from medclip_jax.sections import Section

def default_config():
    return Section({"name": "their_systems:Twin", "width": 8, "tower": {"depth": 2}})

class Twin(Objective):
    def __init__(self, config, spec, *, rngs):
        self.width = config.width

class Other:
    pass
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module of somebody else's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "their_systems.py").write_text(OUTSIDE)
    (folder / "their_broken.py").write_text("import no_such_package\n")
    (folder / "their_wrong.py").write_text("1 / 0\n")
    (folder / "their_bare.py").write_text(OUTSIDE.replace("def default_config", "def config"))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith("their_")]:
        del sys.modules[name]


@pytest.mark.parametrize("made", ["Section", "ConfigDict", "dict"])
def test_a_system_from_outside_is_named_by_module_and_class(outside, tmp_path, made):
    source = OUTSIDE if made == "Section" else OUTSIDE.replace("return Section(", f"return {made}(")
    source = source.replace("import Section", "import Section\nfrom ml_collections import ConfigDict")
    (outside / "their_systems.py").write_text(source)
    given = "their_systems.default_config()" if made == "Section" else "{'name': 'their_systems:Twin'}"
    file = write(tmp_path, f"config.objective = {given}", "mae", "import their_systems\n")
    config = load_config(file, ["--config.objective.tower.depth=3"])
    assert config.objective.to_dict() == {"name": "their_systems:Twin", "width": 8, "tower": {"depth": 3}}
    assert issubclass(resolve(config.objective.name)[1], Objective)
    assert create(config.objective, None, rngs=None).width == 8
    saved = to_json(config)
    del saved["objective"]["width"]
    assert complete(saved) == to_json(config)
    with pytest.raises(ValueError, match=r"Did you mean config\.objective\.tower\.depth\?"):
        load_config(file, ["--config.objective.tower.dpeth=3"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clpi", "Did you mean 'clip'"),
        ("their_sytems:Twin", "no module 'their_sytems'.*PYTHONPATH"),
        ("their_systems.sub:Twin", "their_systems.sub"),
        ("their_broken:Twin", "their_broken cannot be imported: No module named 'no_such_package'"),
        ("their_wrong:Twin", "their_wrong cannot be imported: ZeroDivisionError"),
        ("their_systems:Twn", "has no class 'Twn' .*; it has Twin"),
        ("their_systems:Other", "has no class 'Other' that is a"),
        ("their_bare:Twin", r"must define default_config\(\) that returns .*'name': 'their_bare:Twin'"),
        ("their_systems:Objective", r"default_config\(\) that returns .*'name': 'their_systems:Objective'"),
    ],
)
def test_a_system_that_is_not_there_says_what_to_do(outside, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, f"config.objective = {{'name': {name!r}}}"))


def test_the_objective_is_no_override(tmp_path):
    """Its fields are those of another."""
    file = write(tmp_path, "pass")
    with pytest.raises(ValueError, match=r"write a config file for 'mae'"):
        load_config(file, ["--config.objective.name=mae"])
    assert load_config(file, ["--config.objective.name=clip"]).objective.name == "clip"
