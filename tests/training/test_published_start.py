"""Runs that begin with the weights of published models: which run reads them, and that they arrive."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from published import assert_same, begin, config, run, write_encoder
from test_distributed import end_all, start_all

from medclip_jax.parameters import flatten, split, unflatten
from medclip_jax.training.checkpoints import restore_weights
from medclip_jax.weights import files, vision
from medclip_jax.weights import text as text_weights
from medclip_jax.weights.pretrained import load_pretrained


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("published") / "encoder")


@pytest.fixture(scope="module")
def other(encoder):
    """Another folder of the same sizes."""
    return write_encoder(encoder.parent / "other", seed=1)


@pytest.fixture(scope="module")
def fresh(encoder):
    """A run on one device."""
    run(encoder.parent / "one", config(encoder, mesh__data=1))
    return encoder.parent / "one"


@pytest.fixture
def reads(monkeypatch):
    """Folders whose weights are read."""
    seen = []

    def read(path):
        seen.append(path)
        return files.read_weights(path)

    monkeypatch.setattr(text_weights, "read_weights", read)
    return seen


def expected(encoder):
    held = flatten(nnx.to_pure_dict(nnx.state(text_weights.load_bert(encoder), nnx.Param)))
    return {f"text/encoder/{name}": value for name, value in held.items()}


def saved(workdir):
    return flatten(restore_weights(workdir))


def test_a_fresh_run_begins_with_the_weights_of_the_folder(encoder, fresh):
    found, wanted = saved(fresh), expected(encoder)
    assert {name for name in found if name.startswith("text/encoder/")} == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-20, err_msg=name)


def test_on_any_mesh(encoder, fresh, tmp_path):
    assert_same(begin(tmp_path, config(encoder, mesh__data=2, mesh__fsdp=2)), saved(fresh))


def test_with_several_processes(encoder, fresh):
    np.savez(encoder.parent / "expected.npz", **saved(fresh))
    folder = encoder.parent / "two"
    statuses, outputs = end_all(start_all("run", folder, count=2, devices=1, script="published.py"))
    assert statuses == [0, 0], outputs
    assert "same" in outputs[0]
    assert "same" in outputs[1]


def test_a_resumed_run_reads_no_weights_and_needs_none(encoder, fresh, tmp_path, reads):
    shutil.copytree(fresh, tmp_path / "own")
    run(tmp_path / "own", config(encoder, mesh__data=1, steps=2))
    settings = config(encoder, mesh__data=1)
    settings.checkpoint.resume = str(fresh)
    shapes = begin(tmp_path / "elsewhere", settings)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes.values())
    assert reads == []
    sizes = tmp_path / "encoder"
    sizes.mkdir()
    shutil.copy(encoder / "config.json", sizes)
    with pytest.raises(FileNotFoundError, match="download the whole model folder"):
        begin(tmp_path / "fresh", config(sizes, mesh__data=1))


def test_initial_weights_come_first(fresh, other, tmp_path, reads):
    """An earlier run's encoder is not overwritten, and where it is taken whole the folder is not read."""
    settings = config(other, mesh__data=1)
    settings.initial_weights.workdir = str(fresh)
    assert_same(begin(tmp_path / "whole", settings), saved(fresh))
    assert reads == []
    settings.initial_weights.include = ("^vision/", "encoder/words")
    theirs = {n: v for n, v in saved(fresh).items() if n.startswith("vision/") or "encoder/words" in n}
    assert_same(begin(tmp_path / "partly", settings), expected(other) | theirs)
    assert reads[0] == other


def test_vision_weights_get_the_shape_and_the_parameters_of_the_tower(encoder, monkeypatch):
    from medclip_jax import objectives
    from medclip_jax.objectives.base import DataSpec

    asked = {}

    def read(path, vision, shape, tower):
        asked.update(path=path, shape=shape, names=set(tower))
        return {"transformer/norm/bias": np.full(24, 3.0)}

    monkeypatch.setattr(vision, "read_vision_weights", read)
    settings = config(encoder).objective
    settings.vision.weights, settings.vision.cell, settings.vision.patch = "vit.pth", (2, 2, 1), (1, 2, 4)
    spec = DataSpec((6, 12, 8), (1.0, 1.0, 1.0), vocabulary_size=50)
    before = split(objectives.create(settings, spec, rngs=nnx.Rngs(0)))[1]
    name = "vision/transformer/norm/bias"
    after = flatten(load_pretrained(settings, before, spec))
    before = flatten(before)
    assert asked["path"] == "vit.pth"
    assert asked["shape"] == (3, 6, 8)
    assert {f"vision/{n}" for n in asked["names"]} == {n for n in before if n.startswith("vision/")}
    assert {n for n in before if n.startswith("vision/") and after[n] is not before[n]} == {name}
    np.testing.assert_array_equal(after[name], 3.0)
    for n, value in expected(encoder).items():
        np.testing.assert_array_equal(after[n], value)
    kept = flatten(load_pretrained(settings, unflatten(before), spec, settled=[name]))
    assert kept[name] is before[name]
