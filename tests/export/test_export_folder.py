"""Exported folders: complete or not at all, read back as written, opened by torch and transformers."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import torch

from medclip_jax.export.folder import check_out, folder_config, write_folder
from medclip_jax.export.inputs import made_up_volume
from medclip_jax.export.model_card import model_card
from medclip_jax.export.parity import TOLERANCE, largest_difference, load_torch
from medclip_jax.export.stablehlo import write_stablehlo
from medclip_jax.models.bert import BertConfig
from medclip_jax.parameters import flatten, split
from medclip_jax.reports.prompts import pair
from medclip_jax.reports.tokenizer import load_tokenizer
from medclip_jax.weights.exported import read_folder
from tests.export.twins import (
    SHAPE,
    TEXT,
    assert_same_params,
    made,
    made_volumes,
    make_model,
    params_of,
    small,
    spec_of,
)


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """A model and its folder, in every format."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = made(tokenizer, vision={"pooling": "grid", "grid_features": 4}, centered=True)
    card = model_card(model, name="model")
    write_folder(
        model,
        folder,
        card=card,
        formats=("safetensors", "pytorch"),
        finish=lambda partial: write_stablehlo(model, partial),
    )
    return model, folder


def of_volumes(model):
    """`embed_volumes` of an array instead of a mapping, as programs take it."""
    return lambda volumes: model.objective.embed_volumes({"volume": volumes})


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["mae", "clip", "cardiac_clip", "hipro_ct"])
    @pytest.mark.parametrize("file", ["safetensors", "pytorch"])
    def test_every_objective_comes_back(self, name, file, tokenizer, tmp_path):
        model = made(tokenizer, name)
        write_folder(model, tmp_path / "out", formats=(file,))
        there = {path.name for path in (tmp_path / "out").iterdir()}
        assert ("model.safetensors" in there) == (file == "safetensors")
        assert ("pytorch_model.bin" in there) == (file == "pytorch")
        assert ("vocab.txt" in there) == (name != "mae")
        found = read_folder(tmp_path / "out")
        assert found.spec == model.spec
        assert (found.crop, found.modality) == ("center", "CT")
        assert_same_params(flatten(found.params), params_of(model.objective))

    @pytest.mark.parametrize("name", ["mae", "clip", "cardiac_clip", "hipro_ct"])
    def test_torch_gives_the_same_vectors(self, name, tokenizer, tmp_path):
        model = made(tokenizer, name)
        write_folder(model, tmp_path / "out")
        found = largest_difference(tmp_path / "out", model.objective)
        assert found.keys() == {"PyTorch"}
        assert found["PyTorch"] <= TOLERANCE
        embedding = load_torch(tmp_path / "out").embed_volumes(made_up_volume(model.spec.shape))
        assert (embedding.log_variance is not None) == (name == "hipro_ct")
        assert not (tmp_path / "out" / "__pycache__").exists()

    def test_a_model_trained_in_bfloat16_is_compared_in_float32(self, tokenizer, tmp_path):
        model = made(tokenizer, vision={"dtype": "bfloat16"}, text={"dtype": "bfloat16"})
        write_folder(model, tmp_path / "out")
        assert largest_difference(tmp_path / "out", model.objective)["PyTorch"] <= TOLERANCE
        assert read_folder(tmp_path / "out").config["objective"]["vision"]["dtype"] == "bfloat16"
        write_stablehlo(model, tmp_path / "out")  # it computes in bfloat16: nothing to compare in float32
        assert largest_difference(tmp_path / "out", model.objective).keys() == {"PyTorch"}

    def test_a_wrong_weight_shows(self, tokenizer, tmp_path):
        model = made(tokenizer)
        write_folder(model, tmp_path / "out")
        other = make_model(small("clip"), model.spec, tokenizer, seed=1)
        with pytest.raises(ValueError, match="did not come back"):
            largest_difference(tmp_path / "out", other.objective)

    def test_a_text_encoder_from_a_folder_is_written_by_its_sizes(self, tokenizer, tmp_path):
        """Every size differs from the config's and from each other."""
        sizes = {
            "model_type": "bert", "vocab_size": tokenizer.vocabulary_size + 7, "hidden_size": 20,
            "num_hidden_layers": 1, "num_attention_heads": 5, "intermediate_size": 33,
            "max_position_embeddings": 41, "type_vocab_size": 3, "layer_norm_eps": 1e-5,
            "hidden_act": "gelu_new",
        }  # fmt: skip
        folder = tmp_path / "secret-bert"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(sizes))
        model = made(tokenizer, text={"folder": str(folder)})
        write_folder(model, tmp_path / "out")
        text = read_folder(tmp_path / "out").config["objective"]["text"]
        assert text["folder"] == ""
        assert "secret-bert" not in (tmp_path / "out" / "config.json").read_text()
        found = read_folder(tmp_path / "out").objective()
        assert found.text.encoder.config == BertConfig.from_hf(folder)
        assert_same_params(params_of(found), params_of(model.objective))
        assert largest_difference(tmp_path / "out", model.objective)["PyTorch"] <= TOLERANCE

    def test_a_real_text_encoder(self, real_data, tmp_path):
        """MiniLM, its tokenizer with settings of its own, its weights as a run starts from them."""
        from medclip_jax.parameters import merge
        from medclip_jax.weights.pretrained import load_pretrained

        tokenizer = load_tokenizer(real_data / "minilm")
        spec = dataclasses.replace(
            spec_of(vocabulary_size=tokenizer.vocabulary_size),
            pad_token=tokenizer.pad,
            mask_token=tokenizer.mask,
        )
        config = small("clip", text={"folder": str(real_data / "minilm"), "pooling": "mean"})
        model = make_model(config, spec, tokenizer)
        graph, params, variables = split(model.objective)
        model.objective = merge(graph, load_pretrained(config, params, spec), variables)
        write_folder(model, tmp_path / "out")
        assert largest_difference(tmp_path / "out", model.objective)["PyTorch"] <= TOLERANCE
        for file in (tmp_path / "out").glob("*.json"):
            assert str(real_data) not in file.read_text()
        reports = ["Größe: 4,5 × 3 mm; Naïve [MASK] 心臓.", "", "no\tpleural\neffusion " * 20]
        twin = load_torch(tmp_path / "out")
        np.testing.assert_array_equal(twin.tokenize(reports).numpy(), tokenizer(reports, 32))
        np.testing.assert_array_equal(load_tokenizer(tmp_path / "out")(reports, 32), tokenizer(reports, 32))


class TestFolder:
    def test_config(self, exported):
        folder = exported[1]
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"] == "medclip"
        assert config["auto_map"]["AutoModel"] == "modeling_medclip.MedclipModel"
        assert config["data"]["shape"] == list(SHAPE)
        assert config["prompts"]["cardiomegaly"] == list(pair("cardiomegaly"))
        assert config["text_length"] == 32
        assert config["objective"]["vision"]["pooling"] == "grid"
        steps = json.loads((folder / "preprocessor_config.json").read_text())
        assert steps["shape"] == list(SHAPE)
        assert steps["spacing_mm"] == [4.0, 3.0, 2.5]
        assert steps["fill_hu"] == -1024

    def test_all_may_be_read_by_whoever_may_read_one(self, exported):
        modes = {path.name: path.stat().st_mode & 0o777 for path in exported[1].iterdir()}
        assert len(set(modes.values())) == 1, modes

    def test_transformers_opens_it(self, exported, monkeypatch, tmp_path):
        # Where transformers copies the code of a model to.
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
        monkeypatch.setattr(sys, "path", list(sys.path))
        from transformers import AutoModel, AutoTokenizer

        model, folder = exported
        opened = AutoModel.from_pretrained(str(folder), trust_remote_code=True)
        volumes = made_volumes(2)
        expected = np.asarray(jax.jit(lambda given: of_volumes(model)(given).mean)(volumes))
        np.testing.assert_allclose(opened.embed_volumes(volumes).mean.numpy(), expected, atol=TOLERANCE)
        ids = AutoTokenizer.from_pretrained(str(folder))(TEXT, padding="max_length", max_length=32)[
            "input_ids"
        ]
        np.testing.assert_array_equal(ids, model.tokenizer(TEXT, 32))

    def test_both_weight_files_hold_the_same(self, exported):
        from safetensors.torch import load_file

        tensors = load_file(exported[1] / "model.safetensors")
        others = torch.load(exported[1] / "pytorch_model.bin", weights_only=True)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)


class TestWholeOrNotAtAll:
    def test_a_failure_leaves_nothing(self, tokenizer, tmp_path):
        def fail(folder):
            assert (folder / "config.json").exists()
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            write_folder(made(tokenizer), tmp_path / "out", finish=fail)
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_leaves_the_earlier_export(self, tokenizer, tmp_path):
        out = tmp_path / "out"
        write_folder(made(tokenizer), out, card="first")

        def fail(folder):
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            write_folder(made(tokenizer), out, card="second", finish=fail)
        assert (out / "README.md").read_text() == "first"
        write_folder(made(tokenizer), out, card="second", formats=("pytorch",))
        assert (out / "README.md").read_text() == "second"
        assert not (out / "model.safetensors").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_kill_while_it_is_replaced_loses_nothing(self, tokenizer, tmp_path):
        out = tmp_path / "out"
        write_folder(made(tokenizer), out, card="first")
        out.rename(tmp_path / ".out.old")
        (tmp_path / ".out.partial").mkdir()

        def fail(folder):
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            write_folder(made(tokenizer), out, card="second", finish=fail)
        assert (out / "README.md").read_text() == "first"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_folder_in_use_is_refused(self, tokenizer, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        write_folder(made(tokenizer), out)
        (out / "notes.md").write_text("mine")
        with pytest.raises(ValueError, match=r"in use: it holds notes\.md, which no export wrote"):
            write_folder(made(tokenizer), out)
        assert (out / "notes.md").read_text() == "mine"
        other = tmp_path / "other"
        other.mkdir()
        (other / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match=r"it holds config\.json"):
            check_out(other)
        with pytest.raises(ValueError, match="is a file"):
            check_out(other / "config.json")


def test_the_config_of_a_model_is_left_as_it_is(tokenizer):
    model = made(tokenizer)
    before = json.dumps(model.config)
    folder_config(model)
    assert json.dumps(model.config) == before
