"""Exported models as programs: StableHLO and ONNX give the vectors of the model, for any batch."""

import re
import shutil

import jax
import numpy as np
import pytest
from jax import export

from medclip_jax.export import onnx, stablehlo
from medclip_jax.export.folder import write_folder
from medclip_jax.export.model_card import model_card
from medclip_jax.export.parity import TOLERANCE, largest_difference, load_torch
from medclip_jax.export.stablehlo import write_stablehlo
from tests.export.twins import TEXT, made, made_volumes, make_model, shapes_of, small


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """A model and its folder, with StableHLO programs."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = made(tokenizer, vision={"pooling": "grid", "grid_features": 4}, centered=True)
    card = model_card(model, name="model")
    write_folder(
        model,
        folder,
        card=card,
        finish=lambda partial: write_stablehlo(model, partial),
    )
    return model, folder


def of_volumes(model):
    """`embed_volumes` of an array instead of a mapping, as programs take it."""
    return lambda volumes: model.objective.embed_volumes({"volume": volumes})


class TestPoints:
    """Programs of a model whose vectors are points."""

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
        for file in onnx.write_onnx(load_torch(folder), tmp_path, shapes_of(model)):
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
            onnx.write_onnx(load_torch(folder), folder, shapes_of(model))

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
