"""The torch file of an ASAP model: patches, sentences, organs, hidden patches and words as JAX has them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import medclip_jax
from medclip_jax.export.folder import write_folder
from medclip_jax.export.model_card import model_card
from medclip_jax.export.parity import largest_difference, load_torch
from medclip_jax.models.mae import random_keep
from medclip_jax.parameters import flatten
from medclip_jax.reports.sentences import sentence_ends
from medclip_jax.weights.exported import read_folder
from tests.export.twins import (
    assert_same,
    assert_same_params,
    compiled,
    made,
    made_tokens,
    made_volumes,
    params_of,
    spec_of,
    state_dict,
    twins,
)

SENTENCES = ["There is cardiomegaly.", "There is no pericardial effusion."]

ORGANS = ("heart", "aorta", "lung", "liver", "spine", "trachea")
"""Not two: a LayerNorm of two numbers shows little more than a sign, and its rounding."""

MODELS = {
    "defaults": {},
    "no anatomy, towers as they are, every sentence alike": {
        "weights": {"anatomy": 0.0},
        "align_heads": False,
        "selection": {"fixed": 4},
    },
    "no alignment, own widths, no overall vector": {
        "weights": {"alignment": 0.0},
        "text": {"width": 16, "heads": 2, "depth": 1},
        "fusion": {"prior": False, "overall": False},
        "decoder_windows": ((-1350.0, 150.0),),
        "decoder_from_mean": True,
    },
    "no language, groups of organs, last block": {
        "weights": {"language": 0.0},
        "anatomy": {"block": 0, "groups": (("heart", "aorta"), ("lung",), ("liver", "spine"), ("trachea",))},
        "vision": {"position": "learned", "pooling": "grid", "grid_features": 3, "depth": 1},
    },
}


def shrunk(name="asap", **changes):
    """A model with one block a tower, and with organs."""
    changes = {"vision": {"depth": 1}, "text": {"depth": 1}, "text_decoder": {"depth": 1}} | changes
    return twins(name, dataclasses.replace(spec_of(), organs=ORGANS), **changes)


def made_sentences(count, length):
    """Sentence of each token: six in the first report, three in the second, none in the last."""
    sentence = np.full((count, length), -1)
    for row, size in zip(range(count - 1), (2, 4), strict=True):
        sentence[row, 1 : length - 1] = np.arange(length - 2) // size
    return sentence


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_all_that_the_model_tells(changes):
    objective, twin = shrunk(**changes)
    volumes, tokens, sentence = made_volumes(3), made_tokens(3, 14), made_sentences(3, 14)

    def tell(objective, volumes, tokens, sentence):
        inputs = {"volume": volumes}
        found = {
            "volumes": objective.embed_volumes(inputs).mean,
            "texts": objective.embed_texts(tokens).mean,
            "patches": objective.embed_patches(inputs),
            "selected": objective.select(inputs, tokens, sentence),
        }
        if objective.predicts_organs:
            found["organs"] = objective.predict_organs(inputs)
        if objective.fills_words:
            seen = objective.vision.encode(objective.vision.to_voxels(volumes)).tokens
            prior = None
            if objective.prior is not None:
                batch = {"tokens": tokens, "sentence": sentence, "sentences": tokens[:, 0]}
                compared = objective._compared(seen, batch)
                prior = objective._align(*compared, objective._choose(*compared[:2]), batch["sentences"])[1]
            states = objective._decode(jnp.flip(tokens, 0), seen, prior)
            found["words"] = objective.text_decoder.logits(states)
        return found

    expected = compiled(objective, tell, volumes, tokens, sentence)
    tokens, sentence = torch.from_numpy(tokens), torch.from_numpy(sentence)
    assert_same(twin.embed_volumes(volumes).mean, expected["volumes"])
    assert_same(twin.embed_texts(tokens).mean, expected["texts"])
    assert_same(twin.embed_patches(volumes), expected["patches"])
    similarity, count, valid = twin.select(volumes, (tokens, sentence))
    np.testing.assert_array_equal(valid, expected["selected"].valid)
    assert valid.sum(dim=1).tolist() == [4, 3, 0], "more sentences than it has places, fewer, none"
    np.testing.assert_array_equal(count, expected["selected"].count)
    np.testing.assert_allclose(similarity, expected["selected"].similarity, rtol=0, atol=1e-5)
    assert similarity[:2].std() > 0.01, "similarities that do not vary prove nothing"
    if "organs" in expected:
        assert_same(twin.predict_organs(volumes), expected["organs"])
        assert tuple(twin.organ_names) == objective.organ_names()
    else:
        assert twin.organ_names == []
        with pytest.raises(ValueError, match=r"weights\.anatomy=0"):
            twin.predict_organs(volumes)
    if "words" in expected:
        reports = (tokens, sentence) if twin.prior is not None else None
        assert_same(twin.word_logits(volumes, tokens.flip(0), reports), expected["words"], 2e-5)
    else:
        with pytest.raises(ValueError, match=r"weights\.language=0"):
            twin.word_logits(volumes, tokens)


def test_budgets_differ_between_sentences():
    """Of many sentences some are about few patches and some about many: as in JAX, all of them."""
    objective, twin = shrunk(most_sentences=20)
    sentences = np.random.default_rng(0).normal(0, 4, (2, 20, 24)).astype(np.float32)
    expected = compiled(objective, lambda o, x: o.budget(x)[0], sentences)
    found = twin.budgets(torch.from_numpy(sentences))
    np.testing.assert_array_equal(found.detach(), expected)
    assert {1, 3, 5} == set(found.flatten().int().tolist())


def test_hidden_patches():
    objective, twin = shrunk(normalize_patches=True)
    volumes, key = made_volumes(2), jax.random.key(3)
    expected = compiled(objective, lambda o, v: o.reconstruct(v, key), volumes)
    keep, _, _ = random_keep(jax.random.split(key, 2), objective.tokens, objective.keep)
    found = twin.reconstruct(volumes, torch.tensor(np.asarray(keep)).long())
    np.testing.assert_allclose(found.completed.numpy(), expected.completed, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """An exported folder, and the model that it was written from."""
    model = made(tokenizer, "asap")
    return model, write_folder(model, tmp_path_factory.mktemp("asap") / "out")


def test_sentences_are_found_as_in_training(folder):
    """Strings of sentences become the ids and numbers that the pipeline makes of their report."""
    model, out = folder
    twin, volumes = load_torch(out), made_volumes(2)
    ids, number = twin.tokenize_sentences([SENTENCES, SENTENCES[:1] * 20])
    for row, sentences in enumerate((SENTENCES, SENTENCES[:1] * 20)):
        text = " ".join(sentences)
        np.testing.assert_array_equal(ids[row], model.tokenizer([text], 32)[0])
        starts = model.tokenizer.starts(text, 32)
        expected = np.searchsorted(sentence_ends(text), starts, side="right")
        np.testing.assert_array_equal(number[row], np.where(starts >= 0, expected, -1))
    one = twin.select(volumes[0], SENTENCES)
    both = twin.select(volumes, [SENTENCES, []])
    torch.testing.assert_close(one.similarity[0], both.similarity[0])
    assert both.valid.sum(dim=1).tolist() == [2, 0]
    with pytest.raises(ValueError, match="1 reports for 2 volumes"):
        twin.select(volumes, SENTENCES)


def test_the_lines_of_the_card_run(folder):
    """What a reader copies from README.md: patches, sentences, organs, decoders."""
    model, out = folder
    card = model_card(model, name="m")
    _, *blocks, _ = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"model": load_torch(out), "SENTENCE": SENTENCES[0], "voxels": made_volumes(1, (9, 24, 14))[0]}
    names["affine"] = np.diag([4.0, 3.0, 2.5, 1.0])[[2, 1, 0, 3]]
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 4
    assert names["patches"].shape == (1, 2, 4, 3, 24)
    assert names["shares"].shape == (1, 24, 2)
    assert names["found"].valid.sum() == 2
    assert "model.organ_names  # heart, aorta" in card


def test_the_card_leaves_out_what_the_model_does_not_tell(tokenizer):
    card = model_card(made(tokenizer, "asap", weights={"anatomy": 0.0, "language": 0.0}), name="m")
    assert "select" in card
    assert "predict_organs" not in card
    assert "word_logits" not in card


def test_the_folder_comes_back_whole(folder):
    model, out = folder
    differences = largest_difference(out, model.objective)
    assert differences["PyTorch"] <= 1e-5
    again = medclip_jax.load(out, progress=False)
    volumes = made_volumes(2)
    np.testing.assert_allclose(again.embed_volumes(volumes), model.embed_volumes(volumes), atol=1e-6)
    scores = load_torch(out).zero_shot(volumes[0])
    expected = model.zero_shot(volumes[0], list(scores))
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_ablations_come_back(tokenizer, tmp_path, changes):
    """A weight of 0 is no damage, and every parameter has its place in torch."""
    model = made(tokenizer, "asap", **changes | {"anatomy": {"groups": ()}})
    out = write_folder(model, tmp_path / "out")
    assert_same_params(flatten(read_folder(out).params), params_of(model.objective))
    weights = {name: tuple(x.shape) for name, x in load_torch(out).state_dict().items()}
    assert weights == {name: tuple(x.shape) for name, x in state_dict(model.objective).items()}


def test_auto_model(folder):
    transformers = pytest.importorskip("transformers")
    _, out = folder
    automatic = transformers.AutoModel.from_pretrained(out, trust_remote_code=True)
    plain, volumes = load_torch(out), made_volumes(1)
    torch.testing.assert_close(automatic.select(volumes, SENTENCES), plain.select(volumes, SENTENCES))
    torch.testing.assert_close(automatic.predict_organs(volumes), plain.predict_organs(volumes))
