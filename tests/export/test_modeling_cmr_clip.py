"""Exported CMR-CLIP models: frames of several series and texts, against the JAX model on the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from medclip_jax.export.folder import write_folder
from medclip_jax.export.model_card import model_card
from medclip_jax.export.parity import TOLERANCE, largest_difference, load_torch
from medclip_jax.export.stablehlo import write_stablehlo
from medclip_jax.fields import Layout
from medclip_jax.weights.exported import read_folder
from tests.export.twins import (
    assert_same,
    assert_same_params,
    compiled,
    frame_spec,
    made_tokens,
    make_model,
    params_of,
    shapes_of,
    small,
    twin_of,
    twins,
)

SPEC = frame_spec()
INPUTS = ("frames", "view", "frame_valid")


def made_studies(count=3, frames=7):
    """Fields of a batch; all but the first study have padding."""
    random = np.random.default_rng(0)
    valid = np.arange(frames) < np.linspace(frames, 1, count).astype(int)[:, None]
    shown = random.integers(0, 4096, (count, frames, *SPEC.frame_shape))
    view = np.sort(random.integers(0, len(SPEC.views), (count, frames)), axis=1)
    return {
        "frames": np.where(valid[..., None, None], shown, 0).astype(np.int16),
        "view": np.where(valid, view, -1).astype(np.int32),
        "frame_valid": valid.astype(np.int8),
    }


@pytest.mark.parametrize("target", [{}, {"task": "ordinal", "measurement": "grade", "edges": (1.0, 2.0)}])
def test_classifiers_of_studies(target):
    objective, twin = twins("supervised_frames", SPEC, target=target, head={"layers": "mlp", "hidden": 7})
    arrays = tuple(made_studies()[name] for name in INPUTS)

    def told(objective, *arrays):
        inputs = dict(zip(INPUTS, arrays, strict=True))
        return objective.embed_volumes(inputs).mean, objective.predict(inputs)

    embedded, predicted = compiled(objective, told, *arrays)
    studies = twin.packed(*arrays)
    with torch.no_grad():
        assert_same(twin.embed_volumes(studies).mean, embedded)
    rows = twin.predict(studies)
    assert tuple(rows[0]) == objective.predicts
    assert_same(torch.tensor([list(row.values()) for row in rows]), predicted)
    assert np.ptp(np.asarray(predicted)) > 1e-3


def of_studies(objective, *arrays):
    return objective.embed_volumes(dict(zip(INPUTS, arrays, strict=True))).mean


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision": {"views": 0, "channels": ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))}},
        {"vision": {"mlp_ratio": 2.5, "layer_norm_epsilon": 1e-3}, "centered": True, "temperature": 0.2},
        {"vision": {"motion": 8.0}},
    ],
)
def test_vectors_agree(changes):
    objective, twin = twins("cmr_clip", SPEC, **changes)
    given, tokens = made_studies(), made_tokens(3, 12)
    with torch.no_grad():
        studies = twin.embed_volumes(twin.packed(*given.values())).mean
        assert_same(studies, compiled(objective, of_studies, *given.values()))
        texts = twin.embed_texts(torch.from_numpy(tokens)).mean
        assert_same(texts, compiled(objective, lambda o, t: o.embed_texts(t).mean, tokens))
        logits = twin(twin.packed(*given.values()), torch.from_numpy(tokens)).logits
        torch.testing.assert_close(logits, studies @ texts.T / changes.get("temperature", 0.05))
        assert twin.patch_tokens(twin.packed(*given.values())).shape == (3, 1 + 7 * 12, 24)


def pictures(seed=0, **lengths):
    random = np.random.default_rng(seed)
    return {
        name: random.integers(0, 4096, (count, *SPEC.frame_shape)).astype(np.int16)
        for name, count in lengths.items()
    }


def test_a_study_of_series_is_what_the_library_embeds():
    """The same frames are chosen of more, and padded to the same vectors of fewer."""
    objective, twin = twins("cmr_clip", SPEC)
    studies = [
        pictures(1, cine_lax=4, cine_sa=6, lge_sa=3),
        pictures(2, lge_sa=2, cine_lax=1),
        pictures(3, cine_sa=11, other=5),
    ]
    layout = Layout(INPUTS, SPEC, ConfigDict({"frames": 7, "views": ()}))
    samples = [layout.sample(study | {"study": 0}, 0) for study in studies]
    expected = compiled(
        objective, of_studies, *(jnp.stack([one[name] for one in samples]) for name in INPUTS)
    )
    assert_same(twin.embed_volumes(studies).mean, expected)
    assert_same(twin.embed_volumes(studies[0]).mean, expected[:1])
    assert twin.prepare(studies[1]).frames.shape == (1, 3, *SPEC.frame_shape)
    assert twin.prepare(studies[1]).view.tolist() == [[0, 2, 2]]


def test_what_is_no_study_is_refused():
    _, twin = twins("cmr_clip", SPEC)
    with pytest.raises(ValueError, match="series other: the model knows cine_lax, cine_sa, lge_sa"):
        twin.embed_volumes(pictures(other=2))
    with pytest.raises(ValueError, match=r"cine_sa is \[2, 15, 13\]: give prepared pictures \(N, 15, 12\)"):
        twin.embed_volumes({"cine_sa": np.zeros((2, 15, 13), np.int16)})
    with pytest.raises(ValueError, match="no studies were given"):
        twin.embed_volumes([])
    with pytest.raises(TypeError, match="mappings of series to pictures, not ndarray"):
        twin.embed_volumes(np.zeros((2, 15, 12), np.int16))
    with pytest.raises(ValueError, match="10 frames, and the model knows 9 places in time"):
        twin.embed_volumes(twin.packed(*made_studies(frames=10).values()))


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """A model and its folder, in every format."""
    model = make_model(small("cmr_clip"), frame_spec(tokenizer.vocabulary_size), tokenizer)

    def finish(folder):
        write_stablehlo(model, folder)
        if _onnx_is_there():
            from medclip_jax.export.onnx import write_onnx

            write_onnx(load_torch(folder), folder, shapes_of(model))

    card = model_card(model, name="hearts")
    folder = tmp_path_factory.mktemp("cmr_clip") / "out"
    return model, write_folder(model, folder, card=card, finish=finish)


def _onnx_is_there():
    from importlib.util import find_spec

    return all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))


class TestFolder:
    def test_every_format_gives_the_same_vectors(self, exported):
        model, folder = exported
        found = largest_difference(folder, model.objective)
        assert found.keys() == {"PyTorch", "StableHLO"} | ({"ONNX"} if _onnx_is_there() else set())
        assert max(found.values()) <= TOLERANCE

    def test_it_is_read_back(self, exported):
        import medclip_jax

        model, folder = exported
        found = read_folder(folder)
        assert found.spec == model.spec
        assert found.data == {"text_length": 32, "frames": 7, "views": []}
        loaded = medclip_jax.load(folder, progress=False)
        assert_same_params(params_of(loaded.objective), params_of(model.objective))
        assert loaded.config["data"]["frames"] == 7
        assert loaded.modality == "MR"

    @pytest.mark.parametrize(
        ("entry", "value", "message"),
        [
            (("frames",), 10, "frames is 10, not a number up to 9"),
            (("views",), ["lge_2ch"], "views is .*, not names in data.views"),
            (("data", "frame_shape"), [15, 13], "data.frame_shape is .*, not a multiple of"),
            (("objective", "vision", "depth"), 3, "objective.vision.depth is 3, not 2, as in the weights"),
            (("objective", "vision", "patch"), [5, 3, 1], "objective.vision.patch is .*, not two sizes"),
        ],
    )
    def test_a_changed_entry_is_named(self, exported, tmp_path, entry, value, message):
        import json
        import shutil

        folder = shutil.copytree(exported[1], tmp_path / "copy")
        config = json.loads((folder / "config.json").read_text())
        *parents, last = entry
        section = config
        for name in parents:
            section = section[name]
        section[last] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            read_folder(folder)

    def test_zero_shot_of_a_study(self, exported):
        twin = load_torch(exported[1])
        study = pictures(1, cine_lax=4, cine_sa=6)
        found = twin.zero_shot(study)
        assert found.keys() == set(twin.config.prompts)
        several = twin.zero_shot([study, study])
        np.testing.assert_allclose(several[1], list(found.values()), atol=1e-6)


def test_series_that_were_left_out_of_training_are_left_out():
    model = make_model(small("cmr_clip"), SPEC)
    model.config["data"]["views"] = ("cine_sa",)
    twin = twin_of(model)
    study = pictures(1, cine_lax=4, cine_sa=6)
    assert twin.prepare(study).view.tolist() == [[1] * 6]
