"""CLIP on a 3D ResNet: start from a checkpoint, train, resume."""

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from medclip_jax.models.resnet import ResNet
from medclip_jax.objectives import clip
from medclip_jax.objectives.towers import vision_defaults
from medclip_jax.parameters import flatten
from medclip_jax.training.checkpoints import restore_weights
from medclip_jax.training.config import base_config, complete, to_json
from medclip_jax.training.loop import train
from medclip_jax.weights.resnet import to_torch
from tests.tiny_run import make_shards

pytestmark = pytest.mark.slow

MEAN = "vision/resnet/bn1/running_mean"


def make_config(shards=""):
    config = base_config()
    config.objective = clip.default_config()
    config.objective.vision = vision_defaults("resnet")
    config.objective.vision.update(depth=18, width=2, stem_size=(3, 3, 3), dtype="float32")
    config.objective.text.update(width=24, depth=1, heads=2, max_positions=64, dtype="float32")
    config.objective.update(embedding_width=16, centered=True)
    config.data.shards = str(shards)
    config.data.text_length = 24
    config.update(batch_size=8, steps=1)
    config.evaluation.split = "test"
    config.log.update(tensorboard=False, progress=False)
    return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A ResNet of PyTorch's names, with statistics that are not fresh."""
    resnet = ResNet(18, width=2, stem_size=(3, 3, 3), rngs=nnx.Rngs(7))
    resnet.bn1.running_mean[...] = resnet.bn1.running_mean[...] + 3.0
    file = tmp_path_factory.mktemp("resnet") / "resnet18.safetensors"
    save_file({f"module.{name}": array for name, array in to_torch(resnet).items()}, file)
    return file


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet_run")
    make_shards(folder / "shards")
    config = make_config(folder / "shards")
    config.objective.vision.weights = str(checkpoint)
    train(config, folder / "workdir")
    first = flatten(restore_weights(folder / "workdir"))
    config.steps = 2
    config.evaluation.evaluators = {"zero_shot": {"draws": 0}}
    train(config, folder / "workdir")
    return folder / "workdir", first, flatten(restore_weights(folder / "workdir"))


def test_it_starts_from_the_checkpoint_and_moves_statistics(run):
    _, first, second = run
    # Calibration and one step each move the mean by a tenth towards that of a batch.
    assert 1.5 < first[MEAN].mean() < 3.0
    assert np.abs(second[MEAN] - first[MEAN]).max() > 1e-3
    assert np.abs(second["vision/resnet/conv1/kernel"] - first["vision/resnet/conv1/kernel"]).max() > 0


def test_a_saved_config_is_complete():
    config = to_json(make_config())
    assert complete(config) == config
    del config["objective"]["vision"]["stem_stride"], config["objective"]["vision"]["norm"]
    assert complete(config)["objective"]["vision"]["stem_stride"] == [2, 2, 2]
    assert complete(config)["objective"]["vision"]["norm"] == "batch"
    assert "patch" not in complete(config)["objective"]["vision"]
