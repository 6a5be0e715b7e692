"""Runs of a small CLIP that start from published weights, and one process of several doing so."""

import json
import logging
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file
from toy import SPEC, Words, make_config, make_records

from medclip_jax.fields import Layout
from medclip_jax.objectives.clip import Clip
from medclip_jax.parameters import flatten
from medclip_jax.training import distributed
from medclip_jax.training.loop import Data, train
from medclip_jax.training.start import find_beginning, make_model
from medclip_jax.training.workdir import Workdir

SIZES = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 12,
}
LAYER = "encoder.layer.0"


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """A BERT folder with random weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIZES))
    width, hidden = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (SIZES["vocab_size"], width),
        "embeddings.position_embeddings.weight": (SIZES["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    linear = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (hidden, width),
        "output.dense": (width, hidden),
    }
    for name, shape in linear.items():
        shapes |= {f"{LAYER}.{name}.weight": shape, f"{LAYER}.{name}.bias": shape[:1]}
    for name in ("embeddings", f"{LAYER}.attention.output", f"{LAYER}.output"):
        shapes |= {f"{name}.LayerNorm.weight": (width,), f"{name}.LayerNorm.bias": (width,)}
    random = np.random.default_rng(seed)
    weights = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def config(encoder, **changes):
    """One step that moves nothing: what the checkpoint holds is what the run began with."""
    from medclip_jax.objectives import clip

    changes = {"steps": 1, "optimizer__learning_rate": 1e-30, "optimizer__schedule": "constant", **changes}
    config = make_config(**changes)
    with config.unlocked():
        config.objective = clip.default_config()
    config.objective.embedding_width = 8
    vision, text = config.objective.vision, config.objective.text
    vision.patch, vision.width, vision.depth, vision.heads, vision.dtype = (1, 3, 2), 24, 1, 2, "float32"
    text.folder, text.dtype = str(encoder), "float32"
    return config


def run(workdir, config):
    return train(config, workdir, data=Data(make_records(24), SPEC, Words()))


def begin(workdir, config):
    """Parameters of the state before the first step; only their shapes where a checkpoint follows."""
    processes = distributed.processes()
    data = Data(make_records(24), SPEC, Words())
    beginning = find_beginning(config, Workdir(workdir), data, processes)
    options = {"steps": 1, "beginning": beginning, "processes": processes}
    layout = Layout(Clip.batch_fields(config.objective), SPEC, config.data, Words())
    return flatten(make_model(config, data, layout, Clip, **options)[1]["params"])


def assert_same(found, wanted):
    """The parts that lie on this process's devices are those of the whole arrays."""
    assert wanted
    for name, value in wanted.items():
        for shard in found[name].addressable_shards:
            # As much as a step that moves nothing does.
            np.testing.assert_allclose(shard.data, np.asarray(value)[shard.index], atol=1e-20, err_msg=name)


if __name__ == "__main__":
    from ml_collections import ConfigDict

    jax.config.update("jax_platforms", "cpu")
    logging.getLogger("absl").setLevel(logging.ERROR)
    _, folder, index, count, port, devices = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    where = {"coordinator": f"127.0.0.1:{port}", "process_count": int(count), "process_index": int(index)}
    distributed.start(ConfigDict(where), timeout=120, heartbeat=30)
    try:
        found = begin(Path(folder) / "run", config(Path(folder).parent / "encoder", mesh__fsdp=2))
        split = [name for name, value in found.items() if not value.is_fully_replicated]
        assert "text/encoder/words/embedding" not in split  # below the smallest size that is split
        assert "text/encoder/blocks/0/attention/qkv/kernel" in split
        with np.load(Path(folder).parent / "expected.npz") as expected:
            assert_same(found, expected)
        print("same", flush=True)
    except BaseException as error:
        distributed.fail(error)
