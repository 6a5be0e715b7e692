"""Heat maps against a NumPy transformer in float64 with finite differences, and against planted patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from scipy.special import erf

from medclip_jax import objectives
from medclip_jax.evaluation import heatmaps
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.similarity import Gaussians
from medclip_jax.objectives import hipro_ct
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.objectives.towers import VisionTower, vision_defaults

SHAPE, PATCH, WIDTH, HEADS, DEPTH = (4, 6, 4), (2, 3, 2), 12, 2, 3


def tower(kind="vit", shape=SHAPE, **changes):
    config = ConfigDict(vision_defaults(kind))
    config.update(dtype="float32", **changes)
    spec = DataSpec(shape=shape, spacing=(4.0, 3.0, 3.0))
    return VisionTower(config, spec, rngs=nnx.Rngs(1))


class Model(Objective):
    """A tower and a projection, nothing else; its voxels lie in [-1, 1]."""

    def __init__(self, pooling="cls", kind="vit", **changes):
        if kind == "vit":
            changes = {"patch": PATCH, "width": WIDTH, "depth": DEPTH, "heads": HEADS} | changes
            changes |= {"pooling": pooling, "grid_features": 3}
        self.vision = tower(kind, **changes)
        self.vision_projection = nnx.Linear(self.vision.pooled_width, 5, use_bias=False, rngs=nnx.Rngs(2))

    def explained_tower(self):
        return self.vision

    def to_joint_space(self, pooled):
        return self.vision_projection(pooled)


def gaussian_model():
    """HiPro-CT on the same grid, in two windows, with variances that are not all alike."""
    config = hipro_ct.default_config()
    config.vision.update(patch=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS, dtype="float32")
    config.vision.update(windows=((-1000.0, 1000.0), (-100.0, 300.0)))
    config.text.update(width=8, depth=1, heads=2, max_positions=8, pooling="mean", dtype="float32")
    config.update(embedding_width=5, centered=True)
    config.weights.update(local=0.0, hierarchy=0.0)
    spec = DataSpec(shape=SHAPE, spacing=(4.0, 3.0, 3.0), vocabulary_size=50)
    return objectives.create(config, spec, rngs=nnx.Rngs(1))


def unit(seed):
    vector = np.random.default_rng(seed).normal(size=5)
    return vector / np.linalg.norm(vector)


def gaussian(seed):
    """A wide one with the mean of `unit`."""
    return Gaussians(unit(seed), np.random.default_rng(seed + 100).normal(size=5))


def numpy_score(model, volume, direction, offsets, scales=1.0):
    """The tower in float64, written from its equations: score and attention maps with offsets added.

    The final tokens are multiplied by `scales`.
    """
    get = lambda p: np.asarray(p[...], np.float64)  # noqa: E731

    def norm(x, layer):
        centered = x - x.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * get(layer.scale) + get(
            layer.bias
        )

    def linear(x, layer):
        return x @ get(layer.kernel) + (get(layer.bias) if layer.bias is not None else 0)

    t = model.vision.encoder
    d, h, w = t.grid
    pd, ph, pw = PATCH
    x = np.asarray(model.vision.to_voxels(volume[None])[0], np.float64)
    x = x.reshape(d, pd, h, ph, w, pw, -1).transpose(0, 2, 4, 1, 3, 5, 6).reshape(d * h * w, -1)
    from medclip_jax.models.positions import sincos_3d

    x = linear(x, t.embed.projection) + np.asarray(sincos_3d(t.grid, WIDTH), np.float64)
    x = np.concatenate([get(t.class_token)[0], x])
    maps = []
    for index in range(DEPTH):
        block = t.blocks[str(index)]
        q, k, v = (
            linear(norm(x, block.attention_norm), block.attention.qkv)
            .reshape(len(x), 3, HEADS, -1)
            .transpose(1, 2, 0, 3)
        )
        logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        a = np.exp(logits - logits.max(-1, keepdims=True))
        a /= a.sum(-1, keepdims=True)
        maps.append(a)
        mixed = ((a + offsets[index]) @ v).transpose(1, 0, 2).reshape(len(x), WIDTH)
        x = x + linear(mixed, block.attention.output)
        hidden = linear(norm(x, block.mlp_norm), block.mlp_in)
        x = x + linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, block.mlp_out)
    x = norm(x, t.norm) * np.reshape(scales, (-1, 1))
    if t.pooling == "grid":
        pooled = linear(x[1:], t.grid_pool).ravel()
    else:
        both = {"cls": x[0], "mean": x[1:].mean(0)}
        pooled = np.concatenate([both[name] for name in t.pooling.split("_")])
    projection = model.volume_head.mean.linear if hasattr(model, "volume_head") else model.vision_projection
    embedding = linear(pooled, projection)
    return embedding @ direction / np.linalg.norm(embedding), maps


@pytest.mark.parametrize(
    ("pooling", "first", "budget"),
    [
        ("cls", 2, heatmaps.MAP_BYTES),
        ("cls", 1, 1),
        ("mean", 3, 1),
        ("cls_mean", 3, 1),
        ("grid", 2, 1),
        ("gaussian", 2, 1),
    ],
)
def test_equals_finite_differences(pooling, first, budget, monkeypatch):
    monkeypatch.setattr(heatmaps, "MAP_BYTES", budget)
    model = gaussian_model() if pooling == "gaussian" else Model(pooling)
    volume = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    positive, negative = unit(3), unit(4)
    direction = positive - negative
    tokens = 1 + int(np.prod(model.vision.grid))
    zeros = np.zeros((DEPTH, HEADS, tokens, tokens))
    score, maps = numpy_score(model, volume, direction, zeros)
    relevance = np.eye(tokens)
    step = 1e-5
    for layer in range(first - 1, DEPTH):
        gradient = np.zeros((HEADS, tokens, tokens))
        for place in np.ndindex(gradient.shape):
            up, down = zeros.copy(), zeros.copy()
            up[(layer, *place)] += step
            down[(layer, *place)] -= step
            gradient[place] = (
                numpy_score(model, volume, direction, up)[0] - numpy_score(model, volume, direction, down)[0]
            ) / (2 * step)
        relevance = relevance + np.maximum(gradient * maps[layer], 0).mean(0) @ relevance
    if pooling == "grid":
        # A token's share: how the score changes as the token grows.
        share = np.zeros(tokens)
        for token in range(1, tokens):
            change = step * np.eye(tokens)[token]
            up, _ = numpy_score(model, volume, direction, zeros, 1 + change)
            down, _ = numpy_score(model, volume, direction, zeros, 1 - change)
            share[token] = max((up - down) / (2 * step), 0)
        expected = (share / share.sum() @ relevance)[1:]
    else:
        relevance -= np.eye(tokens)
        rows = {"cls": relevance[0, 1:], "mean": relevance[1:, 1:].mean(0)}
        expected = np.mean([rows[name] for name in model.vision.pooling.split("_")], axis=0)
    prompts = (gaussian(3), gaussian(4)) if pooling == "gaussian" else (positive, negative)
    found = heatmaps.heat_map(model, volume, *prompts, first_layer=first)
    assert found.score == pytest.approx(score, abs=1e-5)
    # float32 forward and backward against float64.
    np.testing.assert_allclose(found.patches.ravel(), expected, atol=2e-4 * expected.max())
    assert found.voxels.shape == SHAPE


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 0, 2), (0, 3, 1), (2, 1, 0)])
def test_planted_patch_lights_up(place):
    """Uniform attention, values that pass one feature: only the planted patch moves the score."""
    shape = (6, 12, 6)
    model = Model("cls", depth=1, heads=1, position="learned", shape=shape)
    t = model.vision.encoder
    for leaf in jax.tree.leaves(nnx.state(t), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        leaf[...] = jnp.zeros_like(leaf[...])
    block = t.blocks["0"]
    for layer in (block.attention_norm, block.mlp_norm, t.norm):
        layer.scale[...] = jnp.ones(WIDTH)
    t.class_token[...] = jnp.zeros((1, 1, WIDTH)).at[..., 1].set(1.0)
    t.embed.projection.kernel[...] = jnp.zeros((12, WIDTH)).at[:, 0].set(1.0)
    block.attention.qkv.kernel[...] = jnp.zeros((WIDTH, 3 * WIDTH)).at[0, 2 * WIDTH].set(1.0)
    block.attention.output.kernel[...] = jnp.eye(WIDTH)
    model.vision_projection.kernel[...] = jnp.eye(WIDTH)[:, :5]
    volume = np.zeros(shape, np.int16)
    d, h, w = (slice(i * p, (i + 1) * p) for i, p in zip(place, PATCH, strict=True))
    volume[d, h, w] = 1000
    found = heatmaps.heat_map(model, volume, np.eye(5)[0])
    assert found.first_layer == 1
    assert np.unravel_index(found.patches.argmax(), found.patches.shape) == place
    assert found.patches[place] > 0.99 * found.patches.sum()
    peak = np.unravel_index(found.voxels.argmax(), shape)
    assert tuple(i // p for i, p in zip(peak, PATCH, strict=True)) == place


def test_of_gaussians_the_means_are_explained():
    """A whole HiPro-CT: its own texts as prompts; variances change nothing."""
    model = gaussian_model()
    volume = np.random.default_rng(5).integers(-1000, 1000, SHAPE).astype(np.int16)
    tokens = np.array([[2, 7, 8, 3, 0], [2, 30, 41, 12, 3]], np.int32)
    embed = jax.jit(lambda inputs, tokens: (model.embed_volumes(inputs), model.embed_texts(tokens)))
    seen, read = embed({"volume": volume[None]}, tokens)
    texts = Gaussians(*map(np.asarray, read))
    maps = [heatmaps.heat_map(model, volume, text) for text in texts]
    for found, mean in zip(maps, texts.mean, strict=True):
        assert found.score == pytest.approx(float(np.asarray(seen.mean)[0] @ mean), abs=1e-5)
        assert found.patches.shape == model.vision.grid
        assert found.voxels.shape == SHAPE
        assert np.isfinite(found.patches).all()
        assert np.isfinite(found.voxels).all()
        assert found.patches.min() >= 0
        assert found.patches.std() > 1e-3 * found.patches.mean()
    shares = [found.patches / found.patches.sum() for found in maps]
    assert np.abs(shares[0] - shares[1]).max() > 1e-3
    wider = heatmaps.heat_map(model, volume, Gaussians(texts.mean[0], texts.log_variance[0] + 9))
    np.testing.assert_array_equal(wider.patches, maps[0].patches)
    against = heatmaps.heat_map(model, volume, texts[0], texts[1])
    assert against.score == pytest.approx(maps[0].score - maps[1].score, abs=1e-5)


def test_middle_layer_is_the_default():
    model = Model("cls")
    found = heatmaps.heat_map(model, np.zeros(SHAPE, np.int16), unit(0))
    assert found.first_layer == DEPTH // 2 + 1


def test_out_of_range_layer_is_named():
    with pytest.raises(ValueError, match="blocks 1 to 3"):
        heatmaps.heat_map(Model("cls"), np.zeros(SHAPE, np.int16), unit(0), first_layer=4)


def test_objective_without_projection_is_told():
    with pytest.raises(NotEvaluable, match="contrastive"):
        heatmaps.heat_map(Objective(), np.zeros(SHAPE, np.int16), unit(0))


def test_upsampling_interpolates_between_centers():
    patches = np.arange(3.0).reshape(3, 1, 1)
    found = heatmaps.upsample(
        patches, tower(patch=(2, 2, 2), shape=(6, 2, 2), width=WIDTH, heads=2).token_centers(), (6, 2, 2)
    )
    np.testing.assert_allclose(found[:, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-12)


def test_grad_cam_equals_finite_differences():
    shape = (40, 64, 96)
    model = Model(kind="resnet", depth=18, width=2, shape=shape)
    volume = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    encoded = nnx.jit(lambda vision, volume: vision.encode(vision.to_voxels(volume)))(
        model.vision, volume[None]
    )
    features = np.asarray(encoded.tokens[0], np.float64)
    kernel = np.asarray(model.vision_projection.kernel[...], np.float64)
    positive, negative = unit(3), unit(4)

    def score(features):
        embedding = features.mean(axis=0) @ kernel
        return embedding @ (positive - negative) / np.linalg.norm(embedding)

    step = 1e-6
    # A feature raised by a step in all places moves the score by the sum over places of its gradient.
    weights = np.array([score(features + step * k) - score(features - step * k) for k in np.eye(16)])
    expected = np.maximum(features @ weights, 0.0)
    found = heatmaps.heat_map(model, volume, positive, negative)
    assert found.first_layer is None
    assert found.score == pytest.approx(score(features), abs=1e-5)
    assert found.patches.shape == (2, 2, 3)
    assert np.count_nonzero(expected) > 0
    np.testing.assert_allclose(found.patches.ravel(), expected / expected.max(), atol=1e-4)


@pytest.mark.parametrize(("place", "cell"), [((1, 2, 0), 1), ((0, 0, 2), 1), ((1, 0, 1), 2)])
def test_grad_cam_finds_a_bright_cube(place, cell):
    """A network that hands on brightness and a constant: the map peaks in the cube."""
    shape = (64 * cell, 96 * cell, 96 * cell)
    model = Model(kind="resnet", depth=18, width=2, shape=shape, cell=(cell,) * 3)
    net = model.vision.encoder
    net.conv1.kernel[...] = jnp.full((7, 7, 7, 1, 2), 1 / 343).at[..., 1].set(0.0)
    net.bn1.bias[...] = jnp.array([0.0, 0.1])
    for name, module in nnx.iter_modules(net):
        if name and name[-1] == "bn2":  # of each block, only the path beside the convolutions stays
            module.scale[...] = jnp.zeros_like(module.scale[...])
        if name and name[-1] == "downsample" and len(module):
            kernel = module["0"].kernel
            kernel[...] = jnp.zeros_like(kernel[...]).at[..., 0, 0].set(1.0).at[..., 1, 1].set(1.0)
    model.vision_projection.kernel[...] = jnp.zeros((16, 5)).at[0, 0].set(1.0).at[1, 1].set(1.0)
    volume = np.full(shape, -1000, np.int16)
    cube = tuple(slice(max(0, (32 * i - 8) * cell), (32 * i + 9) * cell) for i in place)
    volume[cube] = 1000
    found = heatmaps.heat_map(model, volume, np.eye(5)[0])
    assert np.unravel_index(found.patches.argmax(), found.patches.shape) == place
    assert found.patches[place] == 1.0
    peak = np.unravel_index(found.voxels.argmax(), shape)
    assert volume[peak] == 1000
    assert found.voxels[cube].mean() > 4 * found.voxels.mean()


def test_first_layer_is_of_attention():
    model = Model(kind="resnet", depth=18, width=2, shape=(32, 32, 32))
    with pytest.raises(ValueError, match="leave first_layer out"):
        heatmaps.heat_map(model, np.zeros((32, 32, 32), np.int16), unit(0), first_layer=2)


def test_a_tower_without_explanation_is_told():
    model = Model()
    model.vision.explanation = "none"
    with pytest.raises(NotEvaluable, match=r"kind 'vit' has no explanation: .* attention, gradcam"):
        heatmaps.heat_map(model, np.zeros(SHAPE, np.int16), unit(0))
