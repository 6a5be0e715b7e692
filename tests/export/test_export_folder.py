"""Exported folders: whole or not at all, read back as written, opened by torch, transformers and ONNX."""

import dataclasses
import importlib.util
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
import torch
from jax import export

from medclip_jax.export import onnx, stablehlo
from medclip_jax.export.folder import check_out, folder_config, write_folder
from medclip_jax.export.model_card import model_card
from medclip_jax.export.parity import TOLERANCE, largest_difference, load_torch, made_up_volume
from medclip_jax.export.stablehlo import write_stablehlo
from medclip_jax.models.bert import BertConfig
from medclip_jax.parameters import flatten, split
from medclip_jax.reports.prompts import pair
from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece
from medclip_jax.weights.exported import is_export, read_folder
from tests.export.twins import NAMES, SHAPE, made_volumes, make_model, small, spec_of

TEXT = [text for name in NAMES for text in pair(name)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_wordpiece(
        [*TEXT, "no pericardial effusion; lungs are clear"] * 3, tmp_path_factory.mktemp("t"), 300
    )


def made(tokenizer, name="clip", **changes):
    spec = spec_of(vocabulary_size=tokenizer.vocabulary_size)
    return make_model(small(name, **changes), spec, tokenizer)


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


def params_of(objective):
    return {name: np.asarray(value) for name, value in flatten(split(objective)[1]).items()}


def assert_same_params(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


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

    def test_stablehlo_takes_any_batch(self, exported):
        model, folder = exported
        volumes = made_volumes(3)
        for name, samples, embed in (
            (stablehlo.VOLUMES, volumes, of_volumes(model)),
            (stablehlo.TEXTS, model.tokenizer(TEXT[:5], 32), model.objective.embed_texts),
        ):
            content = (folder / name).read_bytes()
            assert b".py" not in content  # source lines of this machine
            program = export.deserialize(bytearray(content))
            assert program.platforms == ("cpu", "cuda", "tpu")
            expected = jax.jit(lambda given, embed=embed: embed(given).mean)(samples)
            for count in (1, len(samples)):
                found = np.asarray(program.call(samples[:count]))
                np.testing.assert_allclose(found, expected[:count], atol=1e-6)

    def test_stablehlo_holds_no_kernel_of_one_platform(self, tokenizer, tmp_path, monkeypatch):
        """Traced where there is a TPU, attention would be its fused kernel."""
        monkeypatch.setattr("medclip_jax.models.attention.SPLASH_SCORES", 1)
        monkeypatch.setattr("medclip_jax.models.attention.LOOP_SCORES", 1)
        monkeypatch.setattr(jax, "devices", lambda *_: [type("Tpu", (), {"platform": "tpu"})])
        model = made(tokenizer, vision={"scan": True, "remat": "attention", "dtype": "bfloat16"})
        for file in write_stablehlo(model, tmp_path):
            program = export.deserialize(bytearray(file.read_bytes()))
            calls = set(re.findall(r"custom_call @(\w+)", program.mlir_module()))
            assert calls <= {"Sharding", "shape_assertion"}

    def test_onnx(self, exported, tmp_path):
        pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
        import onnxruntime

        model, folder = exported
        for file in onnx.write_onnx(load_torch(folder), tmp_path):
            assert b".py" not in file.read_bytes()  # stack traces of this machine
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            is_text = file.name == onnx.TEXTS
            embed = model.objective.embed_texts if is_text else of_volumes(model)
            samples = model.tokenizer(TEXT[:3], 32) if is_text else made_volumes(3)
            expected = jax.jit(lambda given, embed=embed: embed(given).mean)(samples)
            for count in (1, 3):
                given = samples[:count].astype(np.int64 if is_text else np.int16)
                found = session.run(None, {session.get_inputs()[0].name: given})[0]
                np.testing.assert_allclose(found, expected[:count], atol=TOLERANCE)


class TestGaussians:
    """Programs of a model whose vectors are Gaussians return means and log-variances."""

    @pytest.fixture(scope="class")
    def gaussian(self, tokenizer, tmp_path_factory):
        pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
        model = made(tokenizer, "hipro_ct")

        def finish(folder):
            write_stablehlo(model, folder)
            onnx.write_onnx(load_torch(folder), folder)

        return model, write_folder(model, tmp_path_factory.mktemp("gaussian") / "out", finish=finish)

    @pytest.fixture(scope="class")
    def expected(self, gaussian):
        """Kind to samples and their mean and log-variance."""
        model = gaussian[0]
        samples = {"volumes": made_volumes(3), "texts": model.tokenizer(TEXT[:3], 32)}
        functions = {"volumes": of_volumes(model), "texts": model.objective.embed_texts}
        return {
            kind: (given, jax.jit(lambda x, embed=functions[kind]: tuple(embed(x)))(given))
            for kind, given in samples.items()
        }

    @pytest.mark.parametrize("kind", ["volumes", "texts"])
    @pytest.mark.parametrize("count", [1, 3])
    def test_stablehlo(self, kind, count, gaussian, expected):
        samples, wanted = expected[kind]
        program = export.deserialize(bytearray((gaussian[1] / f"embed_{kind}.stablehlo").read_bytes()))
        found = program.call(samples[:count])
        assert isinstance(found, tuple)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other[:count], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("kind", ["volumes", "texts"])
    @pytest.mark.parametrize("count", [1, 3])
    def test_onnx(self, kind, count, gaussian, expected):
        import onnxruntime

        samples, wanted = expected[kind]
        file = gaussian[1] / f"embed_{kind}.onnx"
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == ["mean", "log_variance"]
        name = {"volumes": "volumes", "texts": "tokens"}[kind]
        given = samples[:count].astype(np.int16 if kind == "volumes" else np.int64)
        found = session.run(["mean", "log_variance"], {name: given})
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other[:count], rtol=TOLERANCE, atol=TOLERANCE)

    def test_all_are_compared(self, gaussian):
        model, folder = gaussian
        found = largest_difference(folder, model.objective)
        assert found.keys() == {"PyTorch", "ONNX", "StableHLO"}
        assert max(found.values()) <= TOLERANCE

    @pytest.mark.parametrize("kind", ["volume", "text"])
    def test_a_wrong_variance_shows(self, kind, gaussian, tmp_path):
        """In either head and every format, with right means."""
        import onnx as files

        folder = shutil.copytree(gaussian[1], tmp_path / "out")
        program = files.load(folder / f"embed_{kind}s.onnx")
        (bias,) = (x for x in program.graph.initializer if x.name.endswith("variance.log_variance.bias"))
        changed = files.numpy_helper.to_array(bias) + np.float32(0.1)
        bias.CopyFrom(files.numpy_helper.from_array(changed, bias.name))
        files.save(program, folder / f"embed_{kind}s.onnx")
        model = make_model(small("hipro_ct"), gaussian[0].spec, gaussian[0].tokenizer)
        layer = getattr(model.objective, f"{kind}_head").variance.log_variance
        layer.bias[...] = layer.bias[...] + 0.1
        write_stablehlo(model, folder)
        found = largest_difference(folder, gaussian[0].objective)
        assert found["PyTorch"] <= TOLERANCE
        assert found["ONNX"] > 1e-3
        assert found["StableHLO"] > 1e-3


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


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """An export to copy and to damage."""
    return write_folder(made(tokenizer), tmp_path_factory.mktemp("whole") / "out")


class TestReading:
    def test_no_export(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config\.json.*medclip export"):
            read_folder(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match="not of an exported model"):
            read_folder(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "medclip"}')
        with pytest.raises(FileNotFoundError, match="holds none of model"):
            read_folder(tmp_path)
        (tmp_path / "config.json").write_text("{")
        assert not is_export(tmp_path)
        with pytest.raises(ValueError, match="damaged"):
            read_folder(tmp_path)

    def test_weights_of_another_config(self, tokenizer, tmp_path):
        write_folder(made(tokenizer), tmp_path / "out")
        file = tmp_path / "out" / "config.json"
        config = json.loads(file.read_text())
        config["objective"]["vision"]["depth"] = 3
        config["objective"]["embedding_width"] = 11
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"vision\.depth is 3, not 2, as in the weights"):
            read_folder(tmp_path / "out")
        config["objective"]["vision"]["depth"] = 2
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"text_projection\.linear\.weight has shape"):
            read_folder(tmp_path / "out")

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            ("objective.vision.heads", 0, r"vision\.heads is 0, not a whole number of 1 or more"),
            ("objective.text.heads", 5, r"text\.heads is 5, not a divisor"),
            ("objective.vision.depth", 2_000_000, r"vision\.depth is 2000000, not 2"),
            ("objective.vision.width", 240_000_000, r"vision\.width is 240000000, not"),
            ("objective.vision.width", "24", r'vision\.width is "24", not a whole number'),
            ("objective.vision.mlp_ratio", -4.0, r"mlp_ratio is -4\.0, not 0 or more"),
            ("objective.vision.layer_norm_epsilon", float("nan"), r"layer_norm_epsilon is NaN, not a number"),
            ("objective.vision.patch", [0, 8, 8], r"patch is \[0, 8, 8\], not three sizes"),
            ("objective.vision.windows", [[300, -300]], r"windows is \[\[300, -300\]\], not"),
            ("objective.vision.pooling", "max", "pooling='max' is unknown"),
            ("objective.vision.dtype", "float99", "float99"),
            ("objective.vision", [], r"vision is \[\], not a dict"),
            ("objective.name", "clap", r'name is "clap", not mae or clip'),
            ("objective.new", 1, r"objective\.new is unknown here"),
            ("objective.text.max_positions", 10**14, r"positions"),
            ("data.shape", [-8, 16, 16], r"shape is \[-8, 16, 16\], not three sizes"),
            ("data.shape", [80000, 16000, 16000], "fewer than"),
            ("data.shape", [8, 16], "list of three numbers"),
            ("data.spacing", [8.0, 0.0, 6.0], "three distances in mm"),
            ("data.vocabulary_size", -1, "vocabulary_size is -1"),
            ("data.extra", 1, "unknown entry"),
            ("data", None, "data is null, not a dict"),
            ("modality", "PET", 'modality is "PET", not "CT" or "MR"'),
            ("text_length", 0, "text_length is 0"),
            ("prompts", {"cardiomegaly": ["one"]}, r"prompts\.cardiomegaly"),
        ],
    )
    def test_a_damaged_entry_is_named_before_anything_is_built(self, whole, tmp_path, place, value, message):
        out = shutil.copytree(whole, tmp_path / "out")
        config = json.loads((out / "config.json").read_text())
        *parents, last = place.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
        (out / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message) as caught:
            read_folder(out)
        assert "config.json is damaged or does not fit" in str(caught.value) or "has shape" in str(
            caught.value
        )
        assert "\n" not in str(caught.value)

    def test_the_grid_is_written_twice(self, whole, tmp_path):
        """Nothing in the weights tells another shape of patches with fixed positions."""
        out = shutil.copytree(whole, tmp_path / "out")
        config = json.loads((out / "config.json").read_text())
        config["data"]["shape"][0] *= 2
        (out / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"shape is .* here, .* in preprocessor_config\.json"):
            read_folder(out)

    @pytest.mark.parametrize("content", ['{"a":' * 100_000, "[]", "", '"medclip"', b"\xff\xfe{}"])
    def test_files_that_are_no_object(self, whole, tmp_path, content):
        import medclip_jax

        out = shutil.copytree(whole, tmp_path / "out")
        content = content if isinstance(content, bytes) else content.encode()
        (out / "config.json").write_bytes(content)
        assert not is_export(out)
        for read in (read_folder, medclip_jax.load):
            with pytest.raises(ValueError, match=r"config\.json is damaged \("):
                read(out)

    def test_damaged_weights(self, whole, tmp_path):
        out = shutil.copytree(whole, tmp_path / "out")
        file = out / "model.safetensors"
        good = file.read_bytes()
        size = int.from_bytes(good[:8], "little")
        header = good[8 : 8 + size]
        offsets = header.replace(b'"data_offsets":[0', b'"data_offsets":[8')
        for bad in (
            good[:-10],
            good[:100],
            b"",
            (2**60).to_bytes(8, "little") + good[8:],
            good[:8] + b"{" * size + good[8 + size :],
            good[:8] + offsets + good[8 + size :],
            good[:8] + header.replace(b'"F32"', b'"F99"') + good[8 + size :],
        ):
            file.write_bytes(bad)
            with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
                read_folder(out)


class TestTokenizer:
    def test_saved_without_paths_and_limits_of_its_source(self, tokenizer, tmp_path):
        source, target = tmp_path / "source", tmp_path / "target"
        for folder in (source, target):
            folder.mkdir()
        tokenizer.save(source)
        settings = json.loads((source / "tokenizer_config.json").read_text())
        settings |= {"name_or_path": "/home/me/bert", "tokenizer_file": "/home/me/bert/tokenizer.json"}
        settings |= {"model_max_length": 64}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        content = json.loads((source / "tokenizer.json").read_text())
        content["truncation"] = {
            "max_length": 4,
            "stride": 0,
            "strategy": "LongestFirst",
            "direction": "Right",
        }
        (source / "tokenizer.json").write_text(json.dumps(content))
        load_tokenizer(source).save(target)
        assert all("/home/me" not in path.read_text() for path in target.iterdir())
        again = load_tokenizer(target)
        assert again.limit == 64
        np.testing.assert_array_equal(again(TEXT, 32), tokenizer(TEXT, 32))
        (target / "tokenizer.json").unlink()
        np.testing.assert_array_equal(load_tokenizer(target)(TEXT, 32), tokenizer(TEXT, 32))

    def test_a_vocabulary_that_is_not_all_there_is_to_it(self, tmp_path):
        """BPE: a list of its tokens would be read as a WordPiece."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<mask>", "a", "b", "ab"])}
        backend = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        source, target = tmp_path / "source", tmp_path / "target"
        for folder in (source, target):
            folder.mkdir()
        backend.save(str(source / "tokenizer.json"))
        load_tokenizer(source).save(target)
        assert not (target / "vocab.txt").exists()
        assert load_tokenizer(target)(["ab a"], 5).tolist() == [[6, 4, 0, 0, 0]]


def test_the_config_of_a_model_is_left_as_it_is(tokenizer):
    model = made(tokenizer)
    before = json.dumps(model.config)
    folder_config(model)
    assert json.dumps(model.config) == before


def test_the_torch_file_travels_with_the_package():
    assert importlib.util.find_spec("medclip_jax.export.modeling_medclip") is not None
