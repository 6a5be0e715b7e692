"""The files of docs/how-to/add-a-system.md, run from a folder outside the package."""

import json
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.fields import FIELDS
from tests.tiny_run import SHAPE, made_volume, make_shards

PAGE = (Path(__file__).parents[1] / "docs/how-to/add-a-system.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = ("decorrelation/objective.py", "decorrelation/twin.py", "train.py")
SMALL = ["--config.data.text_length=24", "--config.evaluation.split=test", "--config.log.tensorboard=False"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A user's folder with the page's files and a prepared set."""
    sources = [content for language, content in BLOCKS if language == "python"]
    for name, content in zip(FILES, sources, strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    make_shards(tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "decorrelation"]:
        del sys.modules[name]


def test_the_system_is_small():
    lines = [content.count("\n") for language, content in BLOCKS if language == "python"][: len(FILES)]
    assert sum(lines) <= 150
    assert all(f"`{name}`" in PAGE for name in FILES)


@pytest.mark.slow
def test_every_command_and_back(desk, capsys, caplog):
    (commands,) = (content.splitlines()[1:] for language, content in BLOCKS if language == "sh")
    check, train, *others = [shlex.split(line)[1:] for line in commands]
    assert main([*check, *SMALL]) == 0
    assert "decorrelation" in capsys.readouterr().out
    # A run of two steps, then the same command for four: it resumes.
    assert main([*train, *SMALL, "--config.steps=2"]) == 0
    caplog.clear()
    with caplog.at_level("INFO"):
        assert main([*train, *SMALL, "--config.steps=4"]) == 0
    assert "resuming from this workdir's own checkpoint" in caplog.text
    lines = [json.loads(line) for line in Path("runs/decorrelation/metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "terms/decorrelation" in line}
    assert np.isfinite(steps[4]["terms/decorrelation"])
    assert any(name.startswith("retrieval/") for line in lines for name in line)
    for command in others:
        assert main(command) == 0, command
    volumes = np.stack([made_volume(np.random.default_rng(seed)) for seed in range(2)])
    trained, exported = (
        medclip_jax.load(path, progress=False) for path in ("runs/decorrelation", "for-torch")
    )
    assert volumes.shape[1:] == SHAPE
    vectors = trained.embed_volumes(volumes)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(exported.embed_volumes(volumes), vectors, atol=1e-5)
    heat = trained.explain(volumes[0], "There is cardiomegaly.")
    assert heat.voxels.shape == SHAPE
    code = Path("for-torch/modeling_medclip.py").read_text()
    assert "class DecorrelationModel" in code
    assert "import medclip_jax" not in code


def test_the_loss_against_numpy(desk):
    from decorrelation.objective import decorrelation

    draw = np.random.default_rng(0)
    volume, text = draw.normal(size=(2, 7, 3))
    correlation = np.corrcoef(volume.T, text.T)[:3, 3:]
    own = np.diag(correlation)
    want = np.sum((1 - own) ** 2) + 0.1 * (np.sum(correlation**2) - np.sum(own**2))
    got = jax.jit(decorrelation)(jnp.asarray(volume, jnp.float32), jnp.asarray(text, jnp.float32), 0.1)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_the_field_of_the_page(desk, monkeypatch):
    from ml_collections import ConfigDict

    from medclip_jax.fields import Layout
    from medclip_jax.objectives.base import DataSpec

    monkeypatch.setitem(FIELDS, "burden", None)  # which the page sets, and which goes away again
    (content,) = [content for _, content in BLOCKS if "class Burden" in content]
    exec(compile(content, "add-a-system.md", "exec"), {})
    spec = DataSpec(SHAPE, (1.0, 1.0, 1.0), findings=("a", "b", "c"))
    layout = Layout(("burden",), spec, ConfigDict())
    sample = layout.sample({"study": 5, "findings": np.array([1, -1, 1], np.int8)}, 0)
    assert sample["burden"] == 2
    assert layout.shapes()["burden"] == ((), np.int32)
