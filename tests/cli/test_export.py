"""`medclip export` of a tiny trained run, end to end."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medclip_jax
from medclip_jax.cli.main import main

FILES = {
    "README.md", "config.json", "model.safetensors", "modeling_medclip.py", "preprocessor_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """DIR of a run whose text encoder and first weights are named by paths of this machine."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_run / "workdir", folder / "workdir")
    config = json.loads((folder / "workdir" / "config.json").read_text())
    config["initial_weights"]["workdir"] = "/archive/secret-run"
    config["data"]["tokenizer"] = "/archive/secret-tokenizer"
    (folder / "workdir" / "config.json").write_text(json.dumps(config))
    assert main(["export", "--workdir", str(folder / "workdir"), "--out", str(folder / "tiny")]) == 0
    return folder / "tiny"


def test_what_lies_in_the_folder(exported):
    assert {path.name for path in exported.iterdir()} == FILES
    assert [path.name for path in exported.parent.iterdir() if path.name.startswith(".")] == []


def test_no_path_and_no_id_leaves_the_machine(exported, tiny_run):
    manifest = tiny_run / "shards" / "manifest.jsonl"
    entries = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []
    ids = {
        str(entry[key]) for entry in entries for key in ("id", "study", "patient") if len(str(entry[key])) > 6
    }
    for path in exported.iterdir():
        content = path.read_bytes()
        for secret in (
            "/archive",
            "secret",
            str(tiny_run),
            str(exported.parent),
            str(Path.home()),
            "/tmp/",
            *ids,
        ):
            assert secret.encode() not in content, (path.name, secret)


def test_the_three_lines_of_the_card_work(exported, scan, monkeypatch, tmp_path):
    """Both snippets, as they stand there."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.chdir(scan.parent)
    shutil.copy(scan, "scan.nii.gz")
    image = nib.load(scan)
    given = {"DIR": str(exported), "voxels": np.asarray(image.dataobj), "affine": image.affine}
    torch_code, jax_code = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    found = []
    for code in (torch_code, jax_code):
        *lines, last = code.strip().splitlines()
        scope = dict(given)
        exec("\n".join(lines), scope)
        found.append(eval(last, scope))
    assert found[0].keys() == {"cardiomegaly", "pericardial_effusion", "coronary_calcification"}
    for name, probability in found[1].items():
        assert found[0][name] == pytest.approx(probability, abs=1e-5)


def test_the_same_vectors_as_the_run(exported, tiny_run, scan):
    run = medclip_jax.load(tiny_run / "workdir", progress=False)
    model = medclip_jax.load(exported, progress=False)
    assert model.spec == run.spec
    np.testing.assert_array_equal(model.embed_volumes(scan), run.embed_volumes(scan))
    np.testing.assert_array_equal(model.embed_texts("No effusion."), run.embed_texts("No effusion."))


def test_the_card_tells_of_data_and_evaluation(exported):
    card = (exported / "README.md").read_text()
    assert "# tiny\n" in card
    assert "zero_shot/auroc_mean" in card
    assert "at step 2" in card
    assert "16 train, 12 test" in card or "| train | 16 |" in card
    assert "an earlier run" in card


def test_a_run_starts_from_an_export(exported, tiny_run, tmp_path):
    from ml_collections import ConfigDict

    from medclip_jax.parameters import flatten, split
    from medclip_jax.training.initial import load_initial_weights

    run = medclip_jax.load(tiny_run / "workdir", progress=False)
    params = split(run.objective)[1]
    fresh = _zeros(params)
    config = ConfigDict({"workdir": str(exported), "include": (r"^vision/",), "rename": (), "ema": False})
    found, expected = flatten(load_initial_weights(config, fresh)), flatten(params)
    for name, value in found.items():
        wanted = expected[name] if name.startswith("vision/") else np.zeros_like(value)
        np.testing.assert_array_equal(value, wanted)
    config.include = (r"^visoin/",)
    with pytest.raises(ValueError, match=r"'\^visoin/' matches no parameter"):
        load_initial_weights(config, fresh)
    config.workdir = str(tmp_path / "gone" / "far")
    with pytest.raises(
        FileNotFoundError, match=r"initial_weights\.workdir=.*neither a --workdir.*medclip export"
    ):
        load_initial_weights(config, fresh)


def _zeros(tree):
    return {name: _zeros(v) if isinstance(v, dict) else np.zeros_like(v) for name, v in tree.items()}


def test_a_hub_id_out_of_reach_says_how_to_use_a_folder(tiny_run, monkeypatch):
    from ml_collections import ConfigDict

    from medclip_jax.training.initial import load_initial_weights

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = ConfigDict({"workdir": "nobody/no-model", "include": (r".*",), "rename": (), "ema": False})
    with pytest.raises(
        FileNotFoundError, match=r"nobody/no-model .*hf download nobody/no-model --local-dir FOLDER"
    ):
        load_initial_weights(config, {"a": np.zeros(1)})


def test_formats_add_up_and_replace(exported, tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["export", "--workdir", str(tiny_run / "workdir"), "--out", str(out)]
    arguments += ["--format", "pytorch,stablehlo", "--step", "2", "--name", "named", "--shards"]
    assert main([*arguments, str(tiny_run / "shards")]) == 0
    names = FILES - {"model.safetensors"} | {"pytorch_model.bin"}
    names |= {"embed_volumes.stablehlo", "embed_texts.stablehlo"}
    assert {path.name for path in out.iterdir()} == names
    assert "# named\n" in (out / "README.md").read_text()
    printed = capsys.readouterr().out
    for name in ("PyTorch", "StableHLO"):
        assert re.search(rf"checked: {name} and JAX differ by \d\.\de[-+]\d\d at most", printed)


class TestErrors:
    def export(self, workdir, out, *more):
        return main(["export", "--workdir", str(workdir), "--out", str(out), *more])

    def test_no_run_and_no_checkpoint(self, tiny_run, tmp_path, capsys):
        assert self.export(tmp_path / "none", tmp_path / "out") == 2
        assert "--workdir of a `medclip train` run" in capsys.readouterr().err
        shutil.copytree(tiny_run / "workdir", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
        assert self.export(tmp_path / "run", tmp_path / "out") == 2
        assert "no checkpoint in" in capsys.readouterr().err
        assert self.export(tiny_run / "workdir", tmp_path / "out", "--step", "9") == 2
        assert "no checkpoint" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_unknown_format(self, tiny_run, tmp_path, capsys):
        assert self.export(tiny_run / "workdir", tmp_path / "out", "--format", "safetensors,keras") == 2
        error = capsys.readouterr().err
        assert "no format 'keras': --format takes safetensors, pytorch, stablehlo, onnx" in error

    def test_a_package_that_is_not_there(self, tiny_run, tmp_path, capsys, monkeypatch):
        find = medclip_jax.cli.export.importlib.util.find_spec
        monkeypatch.setattr(
            "medclip_jax.cli.export.importlib.util.find_spec",
            lambda name: find(name) if name != "onnx" else None,
        )
        assert self.export(tiny_run / "workdir", tmp_path / "out", "--format", "onnx") == 2
        assert "--format onnx needs onnx: pip install 'medclip-jax[onnx]'" in capsys.readouterr().err

    def test_a_folder_in_use(self, tiny_run, tmp_path, capsys):
        (tmp_path / "thesis.tex").write_text("years")
        assert self.export(tiny_run / "workdir", tmp_path) == 2
        assert "is in use: it holds thesis.tex" in capsys.readouterr().err
        assert self.export(tiny_run / "workdir", tiny_run / "workdir") == 2
        assert "is in use" in capsys.readouterr().err

    def test_an_export_of_an_export(self, exported, tmp_path, capsys):
        assert self.export(exported, tmp_path / "out") == 2
        assert "is an export already" in capsys.readouterr().err

    def test_what_differs_is_not_written(self, tiny_run, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("medclip_jax.export.parity.TOLERANCE", -1.0)
        assert self.export(tiny_run / "workdir", tmp_path / "out") == 2
        assert "PyTorch and JAX differ by" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
