"""The file that travels with a model: put together from the parts that it needs, and no others."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

import medclip_jax.export.torch as parts
from medclip_jax.export.assemble import PARTS, assemble
from medclip_jax.export.folder import torch_code, write_folder
from medclip_jax.export.parity import largest_difference
from medclip_jax.objectives.mae import MaskedAutoencoder
from tests.export.twins import code_of, made_volumes, make_model, small, spec_of, twin_of

CONTRASTIVE, VIT = f"{PARTS}.contrastive:ContrastiveModel", f"{PARTS}.vit:VisionTransformer"
GAUSSIAN, RESNET = f"{PARTS}.gaussian:GaussianModel", f"{PARTS}.resnet:ResNet"
MASKED, ASAP = f"{PARTS}.masked:MaskedModel", f"{PARTS}.asap:AsapModel"
CLASSIFIER = f"{PARTS}.classifier:ClassifierModel"
FRAME_CLASSIFIER = f"{PARTS}.frame_classifier:FrameClassifierModel"
SEGMENTER = f"{PARTS}.segmenter:SegmenterModel"
T3D, CMR_CLIP = f"{PARTS}.t3d:T3dModel", f"{PARTS}.cmr_clip:CmrClipModel"


def classes(code: str) -> set[str]:
    return {node.name for node in ast.parse(code).body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize(
    ("twin", "encoder", "there", "left_out"),
    [
        (CONTRASTIVE, VIT, {"Bert", "WordPiece", "VisionTransformer"}, {"ResNet", "GaussianHead"}),
        (CONTRASTIVE, RESNET, {"Bert", "ResNet"}, {"VisionTransformer", "MaskedDecoder"}),
        (GAUSSIAN, VIT, {"GaussianHead", "TextTower"}, {"ContrastiveModel", "MaskedDecoder"}),
        (MASKED, VIT, {"MaskedDecoder", "VisionTower"}, {"Bert", "WordPiece", "TextModel"}),
        (T3D, RESNET, {"CrossAttention", "Bert", "ResNet"}, {"TextDecoder", "VisionTransformer"}),
        (ASAP, VIT, {"MaskedDecoder", "TextDecoder", "Bert"}, {"ResNet", "GaussianHead"}),
        (CLASSIFIER, VIT, {"VisionTower", "VisionTransformer"}, {"Bert", "TextModel", "MaskedDecoder"}),
    ],
)
def test_only_what_a_model_needs(twin, encoder, there, left_out):
    code = assemble(twin, encoder, has_text=twin not in (MASKED, CLASSIFIER))
    found = classes(code)
    assert {"MedclipModel", "MedclipConfig"} | there <= found
    assert not left_out & found
    assert "medclip_jax" not in code
    assert ("embed_texts" in code) == (twin not in (MASKED, CLASSIFIER))
    compile(code, "modeling_medclip.py", "exec")


def test_imports_stand_once_on_top():
    tree = ast.parse(assemble(CONTRASTIVE, VIT, has_text=True))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert tree.body[1 : 1 + len(imports)] == imports
    names = [ast.unparse(node) for node in imports]
    assert len(set(names)) == len(names)
    assert names[0] == "from __future__ import annotations"
    tops = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) for node in imports}
    assert {top.split(".")[0] for top in tops} - sys.stdlib_module_names == {"torch"}


def test_every_part_is_short_and_is_used():
    files = {path.stem: path for path in Path(parts.__file__).parent.glob("*.py")}
    files.pop("__init__")
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 350 for path in files.values())
    joined = "".join(
        assemble(twin, encoder, has_text=True)
        for twin in (CONTRASTIVE, GAUSSIAN, MASKED, ASAP, T3D)
        for encoder in (VIT, RESNET)
    )
    joined += assemble(CMR_CLIP, "", has_text=True) + assemble(FRAME_CLASSIFIER, "", has_text=False)
    joined += "".join(assemble(twin, VIT, has_text=False) for twin in (CLASSIFIER, SEGMENTER))
    for path in files.values():
        title = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n")[0].rstrip(".")
        assert f"# --- {title} ---" in joined


OWN_PART = '''
"""A network of the user's own."""

import torch
from torch import nn

from medclip_jax.export.torch.vision import Encoded


class Averages(nn.Module):
    part = "averages"

    def __init__(self, config, shape):
        super().__init__()
        self.pooled_width = self.width = config["width"]
        self.map = nn.Linear(1, self.width)

    def encode(self, voxels):
        return Encoded(self.map(voxels.flatten(1, 3).mean(dim=1, keepdim=True)))

    def pool(self, encoded):
        return encoded.tokens.mean(dim=1)
'''

OWN_TWIN = '''
"""A system of the user's own."""

from medclip_jax.export.torch.model import Embedding, VolumeModel, normalized
from own_system.network import Averages


class OwnModel(VolumeModel):
    """Vectors are averages."""

    vision_encoder = Averages

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

    def see(self, volumes):
        return normalized(Embedding(self.vision(volumes)))
'''


@pytest.fixture
def own_system(tmp_path, monkeypatch):
    folder = tmp_path / "own_system"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "network.py").write_text(OWN_PART)
    (folder / "twin.py").write_text(OWN_TWIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "own_system"]:
        del sys.modules[name]


def test_parts_of_a_users_own_package_travel_too(own_system):
    code = assemble("own_system.twin:OwnModel", "", has_text=False)
    assert {"OwnModel", "Averages", "VolumeModel", "VisionTower"} <= classes(code)
    assert "own_system" not in code.replace("a system of the user's own", "")
    scope = {"__name__": "exported"}
    exec(compile(code, "modeling_medclip.py", "exec"), scope)
    vision = {"windows": [[-1000, 1000]], "standardize": [], "cell": [1, 1, 1], "projections": [], "width": 5}
    config = scope["MedclipConfig"](
        objective={"vision": vision}, data={"shape": [4, 6, 5]}, crop="center", modality="CT"
    )
    vectors = scope["MedclipModel"](config).embed_volumes(made_volumes(2, (4, 6, 5))).mean
    assert vectors.shape == (2, 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from medclip_jax.parameters import flatten", "medclip_jax.parameters, which does not travel"),
        ("from . import network", "does not travel"),
        ("class VisionTower:\n    pass", "both define VisionTower"),
        ("class MedclipModel:\n    pass", "the exported file both define MedclipModel"),
        ("from medclip_jax.export.torch.blocks import Block as Layer", "under another name"),
    ],
)
def test_what_cannot_travel_is_refused(own_system, line, message):
    (own_system / "twin.py").write_text(f"{OWN_TWIN}\n\n{line}\n")
    with pytest.raises(ValueError, match=message):
        assemble("own_system.twin:OwnModel", "", has_text=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MedclipModel", "write package.module:Class"),
        ("own_systems.twin:OwnModel", "no module 'own_systems.twin'"),
        (f"{PARTS}.contrastive:Contrastive", "defines no class 'Contrastive'"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(ValueError, match=message):
        assemble(name, VIT, has_text=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch_twin": ""}, "names no torch class that embeds likewise"),
        ({"volume_inputs": ("volume", "organs")}, "its vectors need volume, organs"),
    ],
)
def test_a_model_without_a_twin_is_refused_before_anything_is_written(change, message, tmp_path, monkeypatch):
    for name, value in change.items():
        monkeypatch.setattr(MaskedAutoencoder, name, value)
    model = make_model(small("mae"), spec_of())
    with pytest.raises(ValueError, match=f"MaskedAutoencoder cannot be exported: .*{message}"):
        write_folder(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_twin_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("medclip_jax.models.vit.VisionTransformer.torch_twin", "")
    with pytest.raises(ValueError, match="volume towers of kind 'vit' name no torch class"):
        torch_code(make_model(small("mae"), spec_of()))


def test_two_files_at_once():
    """One process may open two exported models of different systems."""
    first, second = (make_model(small(name), spec_of()) for name in ("clip", "mae"))
    assert "text" in dict(twin_of(first).named_children())
    assert "decoder" in dict(twin_of(second).named_children())
    assert code_of(first).MedclipModel.has_text
    assert not code_of(second).MedclipModel.has_text


def test_a_twin_that_computes_otherwise_shows(tmp_path):
    model = make_model(small("mae"), spec_of())
    write_folder(model, tmp_path / "out")
    file = tmp_path / "out" / "modeling_medclip.py"
    code = file.read_text(encoding="utf-8")
    assert "return encoded.summary" in code
    file.write_text(code.replace("return encoded.summary", "return encoded.tokens[:, 0]"), encoding="utf-8")
    found = largest_difference(tmp_path / "out", model.objective)
    assert not np.isclose(found["PyTorch"], 0, atol=1e-3)
