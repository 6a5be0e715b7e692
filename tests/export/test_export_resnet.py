"""A model whose volume tower is a ResNet: batch norm by running statistics, out and back in every format."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch

import medclip_jax
from medclip_jax.export import onnx, stablehlo
from medclip_jax.export.folder import folder_config, write_folder
from medclip_jax.export.model_card import model_card
from medclip_jax.export.parity import TOLERANCE, load_torch
from medclip_jax.export.stablehlo import write_stablehlo
from medclip_jax.parameters import combine, flatten, split
from medclip_jax.weights.exported import read_folder
from tests.export.twins import (
    assert_same,
    compiled,
    made_volumes,
    make_model,
    shapes_of,
    small,
    spec_of,
    twins,
)

SHAPE = (33, 45, 38)
"""No axis is a multiple of any stride."""

TOWERS = {
    "basic blocks": {"depth": 18},
    "bottlenecks": {"depth": 50, "width": 2},
    "stem of 2D networks, two windows": {
        "depth": 18,
        "stem_size": (3, 7, 7),
        "stem_stride": (1, 2, 2),
        "windows": ((-1000.0, 1000.0), (-150.0, 250.0)),
    },
    "cells": {"depth": 18, "cell": (1, 3, 2)},
    "group norm": {"depth": 18, "width": 16, "norm": "group"},
    "extremes": {"depth": 18, "cell": (1, 3, 2), "pooling": "extremes", "stem_stride": (1, 2, 2)},
    "extremes of bottlenecks": {"depth": 50, "width": 2, "pooling": "extremes"},
}


@pytest.mark.parametrize("changes", TOWERS.values(), ids=TOWERS)
def test_parity(changes):
    objective, twin = twins("clip", spec_of(SHAPE), vision={"kind": "resnet"} | changes)
    volumes = torch.from_numpy(made_volumes(2, SHAPE))

    def steps(objective, volumes):
        encoded = objective.vision.encode(objective.vision.to_voxels(volumes))
        pooled = objective.vision.pool(encoded)
        return encoded.sequence, pooled, objective.embed_volumes({"volume": volumes}).mean

    tokens, pooled, embedded = compiled(objective, steps, volumes)
    assert twin.vision.encoder.grid == tuple(objective.vision.grid)
    with torch.no_grad():
        assert_same(twin.patch_tokens(volumes), tokens, 1e-4 * np.abs(tokens).max())
        assert_same(twin.vision(volumes), pooled, 1e-5 * np.abs(pooled).max())
    assert_same(twin.embed_volumes(volumes).mean, embedded)
    assert np.std(np.asarray(embedded), axis=0).max() > 1e-3, "vectors that do not vary prove nothing"


def test_gaussians_of_a_resnet():
    shape = (32, 64, 32)
    objective, twin = twins("hipro_ct", spec_of(shape), vision={"kind": "resnet"})
    volumes = torch.from_numpy(made_volumes(2, shape))
    found = twin.embed_volumes(volumes)
    mean, log_variance = compiled(objective, lambda o, v: tuple(o.embed_volumes({"volume": v})), volumes)
    assert_same(found.mean, mean)
    np.testing.assert_allclose(found.log_variance.numpy(), log_variance, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and its folder, in every format."""
    model = make_model(small("clip", vision={"kind": "resnet"}), spec_of(SHAPE))

    def finish(folder):
        write_stablehlo(model, folder)
        if onnx_is_there():
            onnx.write_onnx(load_torch(folder), folder, shapes_of(model))

    card = model_card(model, name="model")
    return model, write_folder(model, tmp_path_factory.mktemp("resnet") / "out", card=card, finish=finish)


def onnx_is_there() -> bool:
    try:
        import onnxruntime
        import onnxscript
    except ImportError:
        return False
    return bool(onnxruntime and onnxscript)


def test_weights_and_running_statistics_come_back(exported):
    model, folder = exported
    written = flatten(combine(*split(model.objective)[1:]))
    exported = read_folder(folder)
    found = flatten(combine(exported.params, exported.variables))
    assert found.keys() == written.keys()
    assert any(name.endswith("running_var") for name in flatten(exported.variables))
    for name, value in written.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_folder_from_before_norm_and_pooling_could_be_chosen(exported, tmp_path):
    folder = shutil.copytree(exported[1], tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    assert config["objective"]["vision"].pop("norm") == "batch"
    assert config["objective"]["vision"].pop("pooling") == "mean"
    (folder / "config.json").write_text(json.dumps(config))
    volumes = {"volume": made_volumes(1, SHAPE)}
    opened = medclip_jax.load(folder, progress=False)
    assert opened.objective.vision.encoder.norm == "batch"
    found = read_folder(folder).objective().embed_volumes(volumes).mean
    np.testing.assert_array_equal(found, read_folder(exported[1]).objective().embed_volumes(volumes).mean)


def test_only_what_it_needs_travels(exported):
    code = (exported[1] / "modeling_medclip.py").read_text()
    assert "class ResNet(" in code
    assert "class VisionTransformer(" not in code


def test_transformers_opens_it(exported, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    from transformers import AutoModel

    opened = AutoModel.from_pretrained(str(exported[1]), trust_remote_code=True)
    volumes = made_volumes(1, SHAPE)
    here = load_torch(exported[1]).embed_volumes(volumes).mean
    torch.testing.assert_close(opened.embed_volumes(volumes).mean, here, rtol=0, atol=0)


def test_stablehlo_and_onnx_take_any_batch(exported):
    model, folder = exported
    volumes = made_volumes(3, SHAPE)
    expected = jax.jit(lambda given: model.objective.embed_volumes({"volume": given}).mean)(volumes)
    program = jax.export.deserialize(bytearray((folder / stablehlo.VOLUMES).read_bytes()))
    for count in (1, 3):
        np.testing.assert_allclose(program.call(volumes[:count]), expected[:count], atol=TOLERANCE)
    if onnx_is_there():
        import onnxruntime

        file = str(folder / onnx.VOLUMES)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for count in (1, 3):
            (found,) = session.run(None, {"volumes": volumes[:count]})
            np.testing.assert_allclose(found, expected[:count], atol=TOLERANCE)


def test_the_card_says_what_the_tower_is(exported):
    card = (exported[1] / "README.md").read_text()
    assert (
        "| volume tower | ResNet-18, width 32, first kernel 7 × 7 × 7 with strides 2 × 2 × 2, batch norm"
        in card
    )
    assert "patches" not in card


def test_training_mode_normalizes_by_the_batch(exported):
    twin = load_torch(exported[1]).train()
    before = twin.vision.resnet.bn1.running_mean.clone()
    twin(volumes=made_volumes(2, SHAPE))
    assert not torch.equal(twin.vision.resnet.bn1.running_mean, before)
    assert "vision.resnet.bn1.num_batches_tracked" not in twin.state_dict()
    assert folder_config(exported[0])["objective"]["vision"]["kind"] == "resnet"
