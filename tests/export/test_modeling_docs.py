"""What docs/how-to/export.md says under "In PyTorch" runs as it stands there."""

import copy
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medclip_jax.export.parity import load_torch
from tests.export.twins import NAMES, SHAPE, export, made_volumes, small

DOCS = Path(__file__).parents[2] / "docs/how-to/export.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented")
    export(folder)
    return load_torch(folder / "export")


def example(start: str) -> str:
    """The code block that begins with these words."""
    section = DOCS.read_text(encoding="utf-8").split("## In PyTorch\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return next(block for block in blocks if block.startswith(start))


def test_first_steps(model, tmp_path, monkeypatch):
    code = example("import nibabel")
    scan = made_volumes(1, (21, 30, 9))[0]
    nib.save(nib.Nifti1Image(scan, np.diag([3.0, 2.0, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    scope = {"model": model}
    shown = []
    for line in code.splitlines():
        if line.startswith("model"):
            shown.append(eval(line, scope))
        else:
            exec(line, scope)
    assert (scope["volume"].dtype, tuple(scope["volume"].shape)) == (torch.int16, SHAPE)
    embedded, words, scores, tokens, logits = shown
    assert embedded.shape == words.shape == (1, 10)
    assert scores.keys() == set(NAMES)
    assert all(0 < probability < 1 for probability in scores.values())
    assert tokens.shape == (1, 1 + 2 * 4 * 3, 24)
    assert logits.requires_grad


def test_fine_tuning(model):
    """Labels that show in the intensities are learned, and all of the tower moves, in ten lines or so."""
    code, model = example("tower = model.vision"), copy.deepcopy(model)
    assert len(code.strip().splitlines()) <= 12
    torch.manual_seed(0)
    labels = torch.arange(8) % 2
    volumes = torch.from_numpy(made_volumes(8)) // 4 - 400
    volumes[labels == 1] += 600
    before = {name: weight.detach().clone() for name, weight in model.vision.named_parameters()}
    scope = {"model": model.train(), "torch": torch, "loader": [(volumes, labels)] * 60}
    exec(code, scope)
    assert scope["loss"] < 0.4  # a coin's is 0.69
    assert ((scope["logits"] > 0) == (labels == 1)).all()
    moved = [
        name for name, weight in model.vision.named_parameters() if not torch.equal(weight, before[name])
    ]
    assert set(moved) == before.keys()


def test_a_model_of_ones_own(tmp_path, monkeypatch):
    """The example of a twin travels, and builds from a config that has what it reads."""
    from medclip_jax.export.assemble import PARTS, assemble

    text = DOCS.read_text(encoding="utf-8").split("a system of your own\n")[1]
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    file = tmp_path / "my_package" / "my_torch.py"
    file.write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    scope = {"__name__": "exported"}
    code = assemble("my_package.my_torch:MyModel", f"{PARTS}.vit:VisionTransformer", has_text=False)
    exec(compile(code, "modeling_medclip.py", "exec"), scope)
    objective = small("mae").to_dict() | {"embedding_width": 7}
    config = scope["MedclipConfig"](objective=objective, data={"shape": SHAPE}, crop="center", modality="CT")
    assert scope["MedclipModel"](config).embed_volumes(made_volumes(2)).mean.shape == (2, 7)
