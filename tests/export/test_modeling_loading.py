"""An exported folder opens with torch alone, through transformers, and from the hub's cache."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medclip_jax.export.parity import load_torch
from medclip_jax.export.torch.loading import read_weights
from medclip_jax.reports.prompts import pair
from tests.export.twins import NAMES, assert_same, export, made_volumes

TEXTS = [pair(NAMES[0])[0], "Coronary calcification, naïve (心)."]

REPOSITORY = str(Path(__file__).parents[2])

BLOCKED = """
import sys
class Without:
    # A finder that does not find some packages, as if they were not installed.
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *arguments):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, *arguments)
BLOCKED = {"jax", "jaxlib", "flax", "optax", "medclip_jax", "transformers", "huggingface_hub", "safetensors",
           "tokenizers", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "jaxtyping"}
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.path = [entry for entry in sys.path if entry not in ("", sys.argv[3])]
"""

PLAIN = """
import torch
sys.path.insert(0, sys.argv[1])
from modeling_medclip import MedclipModel
model = MedclipModel.from_pretrained(sys.argv[1])
assert not model.training and all(not weight.is_meta for weight in model.parameters())
given = torch.load(sys.argv[2], weights_only=True)
volume = model.prepare(given["scan"], given["affine"])
torch.save({"prepared": volume, "volumes": model.embed_volumes(given["volumes"]).mean,
            "texts": model.embed_texts(given["texts"]).mean, "scores": model.zero_shot(given["volumes"]),
            "single": model.zero_shot((given["scan"], given["affine"]))}, sys.argv[2] + ".out")
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
"""

HUB = """
import sys, torch
from transformers import AutoConfig, AutoModel
source, given, again = sys.argv[1], torch.load(sys.argv[2], weights_only=True), sys.argv[3]
model = AutoModel.from_pretrained(source, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules") and not model.training
assert AutoConfig.from_pretrained(source, trust_remote_code=True).model_type == "medclip"
out = {"volumes": model.embed_volumes(given["volumes"]).mean, "texts": model.embed_texts(given["texts"]).mean}
half = AutoModel.from_pretrained(source, trust_remote_code=True, dtype=torch.bfloat16)
assert half.vision.transformer.class_token.dtype == torch.bfloat16
with torch.no_grad():
    model.vision_projection["linear"].weight.mul_(-1.0)
model.save_pretrained(again)
back = AutoModel.from_pretrained(again, trust_remote_code=True)
out["turned"] = back.embed_volumes(given["volumes"]).mean
out["texts again"] = back.embed_texts(given["texts"]).mean
torch.save(out, sys.argv[2] + ".out")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The JAX model, the folder it was exported to, with weights in both formats, and what to embed."""
    folder = tmp_path_factory.mktemp("exported")
    model = export(folder, formats=("safetensors", "pytorch"))
    given = {
        "volumes": torch.from_numpy(made_volumes(2)),
        "texts": TEXTS,
        "scan": torch.from_numpy(made_volumes(1, (9, 30, 21))[0]),
        "affine": torch.tensor([[0, 0, 3.0, 0], [0, 2.0, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]]),
    }
    expected = {
        "volumes": model.embed_volumes(list(given["volumes"].numpy())),
        "texts": model.embed_texts(TEXTS),
        "scores": np.array(
            [[*row.values()] for row in model.zero_shot(list(given["volumes"].numpy()), NAMES)]
        ),
    }
    return folder / "export", given, expected


def run(code: str, source: str | Path, given: dict, folder: Path, *more: str, **environment: str) -> dict:
    """Run code in a fresh Python outside the repository; what it saved."""
    file = folder / "given.pt"
    torch.save(given, file)
    arguments = [sys.executable, "-W", "ignore", "-c", code, str(source), str(file), *more]
    finished = subprocess.run(
        arguments, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(f"{file}.out", weights_only=True)


def only(source: Path, target: Path, leave_out: str) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(leave_out, "__pycache__"))
    return target


@pytest.mark.parametrize("leave_out", ["pytorch_model.bin", "model.safetensors"])
def test_with_torch_alone(made, tmp_path, leave_out):
    folder, given, expected = made
    source = only(folder, tmp_path / "model", leave_out)
    repository = REPOSITORY
    found = run(BLOCKED + PLAIN, source, given, tmp_path, repository)
    assert_same(found["volumes"], expected["volumes"])
    assert_same(found["texts"], expected["texts"])
    np.testing.assert_allclose(found["scores"].numpy(), expected["scores"], atol=1e-5)
    assert found["single"].keys() == set(NAMES)
    here = load_torch(source)
    assert torch.equal(found["prepared"], here.prepare(given["scan"], given["affine"]))


def in_hub_cache(source: Path, home: Path, name: str) -> None:
    """Lay a folder into the hub's cache as if it had been downloaded."""
    commit, owner_name = "0" * 40, "models--" + name.replace("/", "--")
    shutil.copytree(source, home / "hub" / owner_name / "snapshots" / commit)
    (home / "hub" / owner_name / "refs").mkdir()
    (home / "hub" / owner_name / "refs" / "main").write_text(commit)


@pytest.mark.parametrize("kind", ["safetensors", "pytorch", "hub id"])
def test_through_transformers(made, tmp_path, kind):
    folder, given, expected = made
    pytest.importorskip("transformers")
    unwanted = "model.safetensors" if kind == "pytorch" else "pytorch_model.bin"
    source = only(folder, tmp_path / "model", unwanted)
    home = tmp_path / "home"
    if kind == "hub id":
        in_hub_cache(source, home, "someone/chest-model")
        source = "someone/chest-model"
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    found = run(HUB, source, given, tmp_path, str(tmp_path / "again"), **offline)
    assert_same(found["volumes"], expected["volumes"])
    assert_same(found["texts"], expected["texts"])
    assert_same(found["turned"], -expected["volumes"])
    assert torch.equal(found["texts again"], found["texts"])


def test_our_reader_of_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = {
        "a.weight": torch.randn(3, 5),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(7).half(),
        "brain": torch.randn(2, 1, 3).bfloat16(),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_weights(tmp_path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path):
    torch.save({"weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="weights_only"):
        read_weights(tmp_path)


def without(source: Path, target: Path, change) -> Path:
    """A copy with other weights."""
    folder = only(source, target, "model.safetensors")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_weights_that_do_not_fit(made, tmp_path):
    lost = without(made[0], tmp_path / "lost", lambda weights: weights.pop("vision.transformer.norm.bias"))
    more = without(made[0], tmp_path / "more", lambda weights: weights.update({"head.weight": torch.ones(2)}))
    messages = [
        r"missing ['vision.transformer.norm.bias'], unexpected []",
        r"missing [], unexpected ['head.weight']",
    ]
    for folder, message in zip((lost, more), messages, strict=True):
        with pytest.raises(ValueError, match=re.escape(message)):
            load_torch(folder)
        assert message in refusal(folder, tmp_path)


def test_a_hub_id_without_transformers(made, tmp_path):
    only(made[0], tmp_path / "model", "*.bin")
    assert "hub ids need transformers" in refusal("someone/model", tmp_path, code_in=tmp_path / "model")


def refusal(source: str | Path, folder: Path, code_in: Path | None = None) -> str:
    """What loading says with torch alone."""
    code = f"""
import torch
sys.path.insert(0, {str(code_in or source)!r})
from modeling_medclip import MedclipModel
try:
    MedclipModel.from_pretrained(sys.argv[1])
except (ValueError, FileNotFoundError) as error:
    torch.save(str(error), sys.argv[2] + ".out")
"""
    return run(BLOCKED + code, source, {}, folder, REPOSITORY)


def test_a_folder_without_tokenizer_takes_ids(made, tmp_path):
    source = only(made[0], tmp_path / "model", "pytorch_model.bin")
    for name in ("vocab.txt", "tokenizer.json"):
        (source / name).unlink()
    model = load_torch(source)
    with pytest.raises(ValueError, match=r"no vocab\.txt"):
        model.embed_texts(TEXTS)
    assert model.embed_texts(torch.tensor([[2, 8, 3]])).mean.shape == (1, 10)


def test_config_holds_all_there_is(made):
    """Whatever builds the model stands in config.json: no path, and nothing of this file's own defaults."""
    config = json.loads((made[0] / "config.json").read_text())
    assert {"objective", "data", "crop", "modality", "text_length", "prompts"} <= config.keys()
    assert config["objective"]["text"]["folder"] == ""
