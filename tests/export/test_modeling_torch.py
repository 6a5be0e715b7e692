"""The torch file computes what the JAX modules compute: towers, whole objectives, what zero-shot says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from medclip_jax.losses.probabilistic import pair_logits
from medclip_jax.models.mae import random_keep
from medclip_jax.reports.findings import FINDINGS
from medclip_jax.reports.prompts import pair
from medclip_jax.reports.tokenizer import train_wordpiece
from tests.export.twins import (
    NAMES,
    SHAPE,
    assert_same,
    compiled,
    made_tokens,
    made_volumes,
    make_model,
    small,
    spec_of,
    twin_of,
    twins,
)

TWO_WINDOWS = {"windows": ((-1000.0, 1000.0), (-150.0, 250.0))}

VISION = {
    "defaults": {},
    "scanned": {"scan": True, "depth": 3},
    "no blocks": {"depth": 0},
    "learned positions, mean": {"position": "learned", "pooling": "mean", "mlp_ratio": 2.5},
    "grid with skip and peaks": {"pooling": "grid", "grid_features": 5, "skip": True, "peaks": True},
    "as published by CLIP": {"pre_norm": True, "activation": "quick_gelu", "layer_norm_epsilon": 1e-5},
    "pre-norm with skip": {"pre_norm": True, "skip": True, "pooling": "mean"},
    "windows, standardized": TWO_WINDOWS | {"standardize": ((0.2, 0.6), (-0.3, 0.9)), "peaks": True},
    "cells of means": TWO_WINDOWS | {"cell": (1, 2, 3), "patch": (2, 5, 2)},
    "cells, projected": {
        "windows": ((-1000.0, 1000.0), (-1000.0, -300.0), (100.0, 1200.0)),
        "projections": ("mean", "min", "max"),
        "cell": (3, 2, 2),
        "patch": (1, 2, 3),
        "standardize": ((0.1, 0.4), (0.0, 0.5), (-0.5, 0.7)),
        "width": 32,  # 6 does not divide it
        "heads": 4,
    },
    "blobs, extremes on the grid": {
        "windows": ((-1000.0, 1000.0), (-600.0, 900.0)),
        "projections": ("max", "blob"),
        "cell": (2, 2, 2),
        "patch": (3, 5, 1),
        "pooling": "grid",
        "extremes": True,
        "skip": True,
    },
    "extremes, class token": TWO_WINDOWS | {"extremes": True, "pre_norm": True},
    "extremes, class token and mean": TWO_WINDOWS | {"extremes": True, "pooling": "cls_mean"},
}


@pytest.mark.parametrize("changes", VISION.values(), ids=VISION)
def test_vision_tower(changes):
    objective, twin = twins("mae", vision=changes)

    def steps(objective, volumes):
        voxels = objective.vision.to_voxels(volumes)
        encoded = objective.vision.encode(voxels)
        return (
            voxels,
            encoded.sequence,
            objective.vision.pool(encoded),
            objective.embed_volumes({"volume": volumes}).mean,
        )

    volumes = torch.from_numpy(made_volumes(3))
    voxels, tokens, pooled, embedded = compiled(objective, steps, volumes)
    assert_same(twin.vision.to_voxels(volumes), voxels, 1e-6)
    assert_same(twin.patch_tokens(volumes), tokens)
    assert_same(twin.vision(volumes), pooled)
    assert_same(twin.embed_volumes(volumes).mean, embedded)
    assert twin.vision.width == pooled.shape[1]


def test_the_order_of_patches_and_axes_matters():
    """A volume and its transpose differ: what the comparisons above would miss on constant input."""
    _, twin = twins("mae", spec_of((12, 12, 12)), vision={"patch": (4, 4, 4)})
    volume = torch.from_numpy(made_volumes(1, (12, 12, 12)))
    there, turned = twin.embed_volumes(volume).mean, twin.embed_volumes(volume.transpose(1, 3)).mean
    assert (there - turned).abs().max() > 1e-2


TEXT = {
    "defaults": {},
    "scanned, mean": {"pooling": "mean", "scan": True},
    "highest id": {"pooling": "highest_id", "activation": "gelu_new"},
    "relu, three segments, spare entries": {
        "activation": "relu",
        "type_vocabulary": 1,
        "vocabulary": 64,
        "layer_norm_epsilon": 1e-5,
        "mlp_ratio": 71 / 24,
    },
}


@pytest.mark.parametrize("changes", TEXT.values(), ids=TEXT)
def test_text_tower(changes):
    objective, twin = twins("clip", text=changes)
    tokens = made_tokens(5, 17)
    pooled, embedded = compiled(objective, lambda o, ids: (o.text(ids), o.embed_texts(ids).mean), tokens)
    assert_same(twin.text(torch.from_numpy(tokens)), pooled)
    assert_same(twin.embed_texts(torch.from_numpy(tokens)).mean, embedded)


def test_highest_id_takes_the_first_of_equals():
    _, twin = twins("clip", text={"pooling": "highest_id"})
    tokens = torch.tensor([[3, 9, 7, 9, 1], [9, 3, 9, 7, 1]])
    states = twin.text.encoder(tokens, tokens != 0)
    torch.testing.assert_close(twin.text(tokens), torch.stack([states[0, 1], states[1, 0]]))


def test_padding_changes_nothing():
    objective, twin = twins("clip", text={"pooling": "mean"})
    tokens = made_tokens(2, 9)
    tokens[0] = 0  # a text of padding alone stays finite, as it does in JAX
    wide = np.pad(tokens, ((0, 0), (0, 11)))
    vectors = twin.embed_texts(torch.from_numpy(wide)).mean
    assert_same(vectors[1:], twin.embed_texts(torch.from_numpy(tokens)).mean[1:], 1e-6)
    assert_same(vectors, compiled(objective, lambda o, ids: o.embed_texts(ids).mean, wide))


OBJECTIVES = {
    "clip": ("clip", {}),
    "sigmoid": ("clip", {"loss": "sigmoid"}),
    "prompts": ("clip", {"loss": "sigmoid", "prompts": {"weight": 0.5}}),
    "cardiac_clip, centered": ("cardiac_clip", {"centered": True}),
    "cardiac_clip, biased": ("cardiac_clip", {"projection_bias": True, "logit_scale": 99.0}),
}


@pytest.mark.parametrize(("name", "entries"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_contrastive_objectives(name, entries):
    objective, twin = twins(name, **entries)
    volumes, tokens = made_volumes(3), made_tokens(4, 12)

    def embed(objective, volumes, tokens):
        return objective.embed_volumes({"volume": volumes}).mean, objective.embed_texts(tokens).mean

    seen, read = compiled(objective, embed, volumes, tokens)
    assert_same(twin.embed_volumes(volumes).mean, seen)
    assert_same(twin.embed_texts(torch.from_numpy(tokens)).mean, read)
    output = twin(torch.from_numpy(volumes), torch.from_numpy(tokens))
    assert output.volumes.log_variance is None
    logits = objective.logit_scale() * (seen @ read.T)
    if entries.get("loss") == "sigmoid":
        logits = logits + objective.logit_scale.bias[...]
    # Cosines to 1e-5, times a scale of up to 100.
    assert_same(output.logits, logits, 1e-5 * float(objective.logit_scale()))


GAUSSIANS = {
    "defaults": {},
    "mean of the text": {
        "text": {"pooling": "mean"},
        "vision": {"skip": True, "cell": (1, 1, 2), "patch": (3, 5, 2)},
        "centered": True,
    },
}


@pytest.mark.parametrize("changes", GAUSSIANS.values(), ids=GAUSSIANS)
def test_gaussian_objective(changes):
    objective, twin = twins("hipro_ct", **changes)
    volumes, tokens = made_volumes(3), made_tokens(4, 12)
    tokens[3] = 0  # a text of padding alone

    def embed(objective, volumes, tokens):
        seen, read = objective.embed_volumes({"volume": volumes}), objective.embed_texts(tokens)
        scale, bias = objective.logit_scale(), objective.logit_scale.bias[...]
        return (*seen, *read, pair_logits(*seen, *read, scale, bias))

    *expected, logits = compiled(objective, embed, volumes, tokens)
    output = twin(torch.from_numpy(volumes), torch.from_numpy(tokens))
    found = *output.volumes, *output.texts
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    assert np.std(expected[1]) > 0.1, "log-variances that do not vary prove nothing"
    # Similarities to 1e-5, relative for traces of 10 and more, times the scale.
    assert_same(output.logits, logits, 1e-5 * float(np.abs(logits).max()))


def test_zero_shot_of_gaussians_follows_the_evaluators(tmp_path):
    from medclip_jax.evaluation.similarity import Gaussians, preference

    objective, twin = twins("hipro_ct")
    volumes, prompts = made_volumes(3), made_tokens(2, 12)

    def embed(objective, volumes, tokens):
        return objective.embed_volumes({"volume": volumes}), objective.embed_texts(tokens)

    seen, read = compiled(objective, embed, volumes, prompts)
    seen, read = (Gaussians(np.asarray(x.mean), np.asarray(x.log_variance)) for x in (seen, read))
    expected = 1 / (1 + np.exp(-float(objective.logit_scale()) * preference(seen, read[0], read[1])))
    twin.tokenizer = lambda texts: torch.from_numpy(prompts)
    found = twin.zero_shot(torch.from_numpy(volumes), {"own": ("There is one.", "There is none.")})
    np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=2e-5)
    by_cosine = (seen.mean @ (read.mean[0] - read.mean[1])) * float(objective.logit_scale())
    assert np.abs(1 / (1 + np.exp(-by_cosine)) - expected).max() > 1e-3, "the variances play no part"


def test_logit_scale_stays_within_its_limits():
    objective, twin = twins("clip")
    for value in (-0.5, 2.0, 7.0):
        objective.logit_scale.log_scale[...] = jnp.float32(value)
        twin.logit_scale["log_scale"].data.fill_(value)
        assert twin.scale().item() == pytest.approx(float(objective.logit_scale()), rel=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("vision", "windows"),
    [
        ({}, ()),
        (TWO_WINDOWS | {"standardize": ((0.2, 0.6), (-0.3, 0.9)), "scan": True}, ()),
        (TWO_WINDOWS | {"cell": (1, 2, 3), "patch": (2, 5, 2)}, ((-1350.0, 150.0),)),
    ],
)
def test_masked_autoencoder_decodes_the_same(vision, windows, normalize):
    objective, twin = twins("mae", vision=vision, normalize_patches=normalize, decoder_windows=windows)
    _decodes_the_same(objective, twin)


def test_masked_autoencoder_decodes_from_the_mean_patches():
    objective, twin = twins("mae", decoder_windows=((-1350.0, 150.0),), decoder_from_mean=True)
    assert twin.decoder.mean_bias.abs().max() > 0, "weights are drawn, and they arrive"
    _decodes_the_same(objective, twin)


def _decodes_the_same(objective, twin):
    volumes, key = made_volumes(2), jax.random.key(3)
    expected = compiled(objective, lambda o, v: o.reconstruct(v, key), volumes)
    keep, _, _ = random_keep(jax.random.split(key, 2), objective.tokens, objective.keep)
    found = twin.reconstruct(volumes, torch.tensor(np.asarray(keep)).long())
    assert found.visible.isnan().any()
    for ours, theirs in zip(found, expected, strict=True):
        # NaN where NaN; predictions are in windowed units, of order 1.
        np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), rtol=0, atol=2e-5)


def test_masked_autoencoder_draws_a_mask():
    _, twin = twins("mae")
    found = twin.reconstruct(made_volumes(2), 5)
    shown = ~found.visible.isnan()
    assert shown.sum() == 2 * 5 * 3 * 5 * 4
    torch.testing.assert_close(found.completed[shown], found.original[shown])


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """A JAX model and its twin with a tokenizer, as an exported folder gives them."""
    from medclip_jax.export.torch.tokenizer import read_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_wordpiece([text for name in FINDINGS for text in pair(name)] * 3, folder, 200)
    spec = spec_of(vocabulary_size=tokenizer.vocabulary_size)
    model = make_model(small("cardiac_clip", centered=True), spec, tokenizer)
    twin = twin_of(model)
    files = {file.name: file.read_text() for file in folder.iterdir()}
    twin.tokenizer = read_tokenizer(files, twin.config.text_length, spec.pad_token)
    return model, twin


def test_zero_shot(worded):
    model, twin = worded
    volumes = made_volumes(3)
    expected = model.zero_shot(list(volumes), NAMES)
    scores = twin.zero_shot(volumes)
    assert scores.shape == (3, len(NAMES))
    # Cosines agree to 1e-6; the scale of 14 and a slope of 1/4 make that 1e-5 at most.
    np.testing.assert_allclose(scores.numpy(), [[row[name] for name in NAMES] for row in expected], atol=1e-5)
    assert float(scores.std()) > 1e-3, "scores that do not vary prove nothing"
    single = twin.zero_shot(torch.from_numpy(volumes[1]), NAMES[2:4])
    assert single == pytest.approx({name: expected[1][name] for name in NAMES[2:4]}, abs=1e-5)
    own = {"calcium": pair(NAMES[1])}
    assert twin.zero_shot(volumes[1], own)["calcium"] == pytest.approx(expected[1][NAMES[1]], abs=1e-5)
    assert_same(twin.embed_texts("There is cardiomegaly.").mean, model.embed_texts("There is cardiomegaly."))


def test_scans_go_in_without_preparing_them_first(worded):
    _, twin = worded
    scan = made_volumes(1, (9, 30, 21))[0]
    affine = np.diag([4.0, 3.0, 2.5, 1.0])[[2, 1, 0, 3]]  # axes (superior, anterior, right)
    prepared = twin.prepare(scan, affine)
    assert (prepared.dtype, tuple(prepared.shape)) == (torch.int16, SHAPE)
    one = twin.embed_volumes(prepared).mean
    for volumes in ((scan, affine), [(scan, affine)], [prepared], prepared[None], prepared.numpy()):
        torch.testing.assert_close(twin.embed_volumes(volumes).mean, one, rtol=0, atol=0)
    assert twin.zero_shot((scan, affine)).keys() == set(NAMES)
    assert twin.patch_tokens([(scan, affine), prepared]).shape == (2, 1 + 2 * 4 * 3, 24)


def test_errors_say_what_to_do(worded):
    _, twin = worded
    with pytest.raises(ValueError, match="`prepare` them"):
        twin.embed_volumes(made_volumes(2, (6, 20, 13)))
    with pytest.raises(KeyError, match=r"give names among.*cardiomegaly"):
        twin.zero_shot(made_volumes(1), ["gout"])
    _, without_text = twins("mae")
    assert not hasattr(without_text, "embed_texts")


def test_gradients_reach_every_weight():
    _, twin = twins("clip", vision={"pooling": "grid", "skip": True, "position": "learned"})
    output = twin.train()(torch.from_numpy(made_volumes(3)), torch.from_numpy(made_tokens(3, 12)))
    torch.nn.functional.cross_entropy(output.logits, torch.arange(3)).backward()
    still = [name for name, weight in twin.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []
    assert not twin.embed_volumes(made_volumes(1)).mean.requires_grad


def test_half_precision_stays_near():
    _, twin = twins("clip", text={"pooling": "mean"})
    volumes, tokens = made_volumes(2), torch.from_numpy(made_tokens(2, 12))
    exact = twin.embed_volumes(volumes).mean, twin.embed_texts(tokens).mean
    twin = twin.bfloat16()
    for rough, vectors in zip((twin.embed_volumes(volumes), twin.embed_texts(tokens)), exact, strict=True):
        assert rough.mean.dtype == torch.float32
        assert torch.cosine_similarity(rough.mean, vectors).min() > 0.995
