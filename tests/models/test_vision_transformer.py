"""The 3D ViT against a PyTorch twin with the same weights, and its ways of running against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from medclip_jax.models import positions
from medclip_jax.models.encoder import Encoded
from medclip_jax.models.patches import patchify, unpatchify
from medclip_jax.models.vit import VisionTransformer

SHAPE, PATCH, WIDTH, HEADS = (4, 12, 15), (2, 4, 3), 24, 3
CHANNELS = 2
SIZES = {"shape": SHAPE, "patch": PATCH, "channels": CHANNELS, "width": WIDTH, "depth": 3, "heads": HEADS}


def build(**options):
    return VisionTransformer(**(SIZES | options), rngs=nnx.Rngs(0))


def volumes(batch=2):
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.normal(size=(batch, *SHAPE, 2)), jnp.float32)


def perturb(module, amount=0.05):
    """Move every parameter, so that zero biases and unit scales cannot hide a mistake."""
    draw = np.random.default_rng(1)
    graph, state = nnx.split(module)
    state = jax.tree.map(lambda x: x + amount * jnp.asarray(draw.normal(size=x.shape), x.dtype), state)
    return nnx.merge(graph, state)


class Twin(torch.nn.Module):
    """The same network from PyTorch's own parts: Conv3d and TransformerEncoderLayer."""

    def __init__(self, vit):
        super().__init__()
        self.embed = torch.nn.Conv3d(2, WIDTH, PATCH, PATCH)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
            )
            for _ in range(len(vit.blocks))
        )
        self.norm = torch.nn.LayerNorm(WIDTH, 1e-6)
        self.first = tensor(vit.class_token)
        self.positions = torch.tensor(np.array(positions.sincos_3d(vit.grid, WIDTH)))
        kernel = tensor(vit.embed.projection.kernel).reshape(*PATCH, 2, WIDTH).permute(4, 3, 0, 1, 2)
        self.embed.load_state_dict({"weight": kernel, "bias": tensor(vit.embed.projection.bias)})
        self.norm.load_state_dict({"weight": tensor(vit.norm.scale), "bias": tensor(vit.norm.bias)})
        for index, layer in enumerate(self.layers):
            block = vit.blocks[str(index)]
            layer.load_state_dict(
                {
                    "self_attn.in_proj_weight": tensor(block.attention.qkv.kernel).T,
                    "self_attn.in_proj_bias": tensor(block.attention.qkv.bias),
                    "self_attn.out_proj.weight": tensor(block.attention.output.kernel).T,
                    "self_attn.out_proj.bias": tensor(block.attention.output.bias),
                    "linear1.weight": tensor(block.mlp_in.kernel).T,
                    "linear1.bias": tensor(block.mlp_in.bias),
                    "linear2.weight": tensor(block.mlp_out.kernel).T,
                    "linear2.bias": tensor(block.mlp_out.bias),
                    "norm1.weight": tensor(block.attention_norm.scale),
                    "norm1.bias": tensor(block.attention_norm.bias),
                    "norm2.weight": tensor(block.mlp_norm.scale),
                    "norm2.bias": tensor(block.mlp_norm.bias),
                }
            )

    def forward(self, volume):
        tokens = self.embed(volume.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2) + self.positions
        tokens = torch.cat([self.first.expand(len(volume), -1, -1), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


def tensor(parameter):
    return torch.tensor(np.array(parameter[...]))


def test_equals_pytorch_in_value_and_gradient():
    vit = perturb(build())
    twin = Twin(vit).train()
    volume = torch.tensor(np.array(volumes()), requires_grad=True)
    expected = twin(volume)
    (expected**2).sum().backward()

    graph, state = nnx.split(vit)

    @jax.jit
    def run(state, volume):
        def loss(state, volume):
            tokens = nnx.merge(graph, state).encode(volume).sequence
            return (tokens**2).sum(), tokens

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(state, volume)

    (gradient, by_volume), tokens = run(state, volumes())
    assert tokens.shape == (2, 31, WIDTH)
    np.testing.assert_allclose(tokens, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(by_volume, volume.grad, atol=1e-4)
    qkv = gradient["blocks"]["1"]["attention"]["qkv"]["kernel"][...]
    np.testing.assert_allclose(qkv, twin.layers[1].self_attn.in_proj_weight.grad.T, atol=2e-4)


@pytest.mark.parametrize(("remat", "scan"), [("none", True), ("block", False), ("block", True)])
def test_remat_and_scan_change_nothing(remat, scan):
    plain, other = perturb(build()), perturb(build(remat=remat, scan=scan))

    def run(vit):
        graph, state = nnx.split(vit)

        def loss(state):
            tokens = nnx.merge(graph, state).encode(volumes()).sequence
            return (tokens**3).sum(), tokens

        gradient, tokens = jax.jit(jax.grad(loss, has_aux=True))(state)
        return nnx.to_pure_dict(gradient), tokens

    (gradient, tokens), (same_gradient, same_tokens) = run(plain), run(other)
    np.testing.assert_allclose(tokens, same_tokens, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4), gradient, same_gradient)


def test_kept_patches_are_those_of_the_whole():
    """With no block, the tokens of the kept patches are the whole's, gathered."""
    vit = perturb(build(depth=0, position="learned"))
    keep = jnp.array([[4, 0, 29], [7, 8, 1]])
    whole, part = vit.encode(volumes()), vit.encode(volumes(), keep)
    assert part.tokens.shape == (2, 3, WIDTH)
    np.testing.assert_allclose(part.summary, whole.summary, atol=1e-6)
    gathered = jnp.take_along_axis(whole.tokens, keep[..., None], axis=1)
    np.testing.assert_allclose(part.tokens, gathered, atol=1e-6)


def test_hidden_patches_are_not_seen():
    vit = perturb(build())
    keep = jnp.array([[4, 0, 29]])
    volume = volumes(1)
    changed = volume.at[:, :2, :4, 3:6].add(100.0)  # patch 1
    seen = vit.encode(volume, keep).sequence
    np.testing.assert_array_equal(seen, vit.encode(changed, keep).sequence)
    assert float(jnp.abs(seen - vit.encode(changed, jnp.array([[4, 1, 29]])).sequence).max()) > 0.1


def test_all_patches_kept_in_any_order_are_the_same_set():
    vit = perturb(build())
    order = jnp.asarray(np.random.default_rng(0).permutation(30))[None]
    whole, shuffled = vit.encode(volumes(1)), vit.encode(volumes(1), order)
    np.testing.assert_allclose(shuffled.tokens, whole.tokens[:, order[0]], atol=1e-5)
    np.testing.assert_allclose(shuffled.summary, whole.summary, atol=1e-5)


def test_pooling():
    sequence = volumes(2).reshape(2, -1, WIDTH)
    encoded = Encoded.of(sequence[:, 1:], sequence[:, 0])
    np.testing.assert_array_equal(encoded.sequence, sequence)
    np.testing.assert_array_equal(build(depth=0).pool(encoded), sequence[:, 0])
    np.testing.assert_allclose(
        build(depth=0, pooling="mean").pool(encoded), np.asarray(sequence)[:, 1:].mean(axis=1), atol=1e-6
    )
    both = build(depth=0, pooling="cls_mean")
    expected = np.concatenate([sequence[:, 0], np.asarray(sequence)[:, 1:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(both.pool(encoded), expected, atol=1e-6)
    assert both.pooled_width == 2 * WIDTH


def test_pooling_on_the_grid_keeps_places_apart():
    vit = perturb(build(depth=0, pooling="grid", grid_features=4))
    tokens = volumes(2).reshape(2, -1, WIDTH)[:, :30]
    pooled = vit.pool(Encoded(tokens))
    assert pooled.shape == (2, vit.pooled_width) == (2, 120)
    kernel, bias = (np.asarray(x[...]) for x in (vit.grid_pool.kernel, vit.grid_pool.bias))
    scale, shift = np.asarray(vit.grid_scale[...]), np.asarray(vit.grid_shift[...])
    for place in range(30):
        expected = (np.asarray(tokens)[:, place] @ kernel + bias) * scale[place] + shift[place]
        np.testing.assert_allclose(pooled[:, 4 * place : 4 * place + 4], expected, atol=1e-5)
    with pytest.raises(ValueError, match="needs every patch"):
        vit.pool(Encoded(tokens[:, :9]))


def test_extremes_tell_the_class_token_of_the_most_unusual_patch():
    """Calibrated on a batch; then the same lesion in any of the patches changes the class token alike."""
    vit = build(depth=0, pooling="grid", grid_features=4, extremes=True)
    usual = volumes(24)
    vit.calibrate(usual)
    assert vit.pooled_width == 31 * 4
    pooled = np.asarray(vit.pool(vit.encode(usual))).reshape(24, 31, 4)
    np.testing.assert_allclose(pooled.mean(axis=0), 0, atol=1e-3)
    assert pooled[:, 0].std() > 3 * pooled[:, 1:].std()  # one place that weighs as much as all others

    patches = patchify(volumes(1), PATCH)
    grid = tuple(vit.grid)

    def first_token(*lesions):
        marked = patches
        for place in lesions:
            marked = marked.at[:, place].add(30.0)
        return np.asarray(vit.encode(unpatchify(marked, grid, PATCH, CHANNELS)).summary[0])

    healthy, here, there = first_token(), first_token(3), first_token(17)
    moved = np.linalg.norm(here - healthy)
    assert moved > 0.5
    assert here @ there / np.linalg.norm(here) / np.linalg.norm(there) > 0.9


def test_hidden_patches_are_no_extremes():
    vit = build(depth=0, extremes=True)
    patches = patchify(volumes(1), PATCH)
    keep = jnp.arange(5)[None]
    whole, marked = (
        vit.encode(unpatchify(x, tuple(vit.grid), PATCH, CHANNELS), keep).sequence
        for x in (patches, patches.at[:, 5:].add(50.0))
    )
    np.testing.assert_array_equal(whole, marked)


def test_attention_maps_and_what_a_score_owes_them():
    vit = perturb(build(position="learned"))
    volume = volumes(1)
    zeros = jnp.zeros((1, HEADS, 31, 31))
    offsets = [None, zeros, zeros]
    encoded, maps = vit.encode_with_maps(volume, offsets)
    np.testing.assert_allclose(encoded.sequence, vit.encode(volume).sequence, atol=1e-5)
    assert maps[0] is None
    assert maps[1].shape == zeros.shape
    np.testing.assert_allclose(maps[2].sum(axis=-1), 1.0, atol=1e-6)

    @jax.jit
    def score(offset):
        encoded, _ = vit.encode_with_maps(volume, [None, offset, None])
        return vit.pool(encoded)[0, :5].sum()

    gradient = jax.grad(score)(zeros)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=zeros.shape), jnp.float32)
    numeric = (score(1e-2 * direction) - score(-1e-2 * direction)) / 2e-2
    np.testing.assert_allclose((gradient * direction).sum(), numeric, rtol=2e-2, atol=1e-3)
    with pytest.raises(ValueError, match="2 attention offsets for 3 blocks"):
        vit.encode_with_maps(volume, [None, None])


def test_bfloat16_computes_in_16_bits_over_float32_parameters():
    exact, half = build(), build(dtype=jnp.bfloat16)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(half)))
    tokens = half.encode(volumes()).sequence
    assert tokens.dtype == jnp.bfloat16
    np.testing.assert_allclose(tokens.astype(jnp.float32), exact.encode(volumes()).sequence, atol=0.1)


def test_wrong_options_name_the_choices():
    with pytest.raises(ValueError, match="'cls', 'mean', 'cls_mean', 'grid'"):
        build(pooling="max")
    with pytest.raises(ValueError, match="'sincos' or 'learned'"):
        build(position="rope")
    with pytest.raises(ValueError, match="use one of"):
        build(remat="all").encode(volumes())
    with pytest.raises(ValueError, match="does not divide"):
        build(patch=(3, 4, 3))


def test_skip_adds_the_normalized_patch_embedding():
    plain, skipping = build(), build(skip=True)
    skipping.skip_norm.scale[...] = 2.0 * skipping.skip_norm.scale[...]
    embedded = skipping.embed(volumes()) + positions.sincos_3d(skipping.grid, WIDTH)
    normalized = (embedded - embedded.mean(-1, keepdims=True)) / embedded.std(-1, keepdims=True)
    # The two draw the same blocks, so that they differ by the skip alone.
    found = skipping.encode(volumes())
    np.testing.assert_allclose(found.tokens - plain.encode(volumes()).tokens, 2.0 * normalized, atol=1e-4)
    same, _ = skipping.encode_with_maps(volumes(), [jnp.zeros((2, HEADS, 31, 31))] * 3)
    np.testing.assert_allclose(same.sequence, found.sequence, atol=1e-5)


def test_norm_before_the_blocks_and_quick_gelu():
    """Against the same parts put together by hand."""
    vit = perturb(build(pre_norm=True, activation="quick_gelu", depth=1))
    block = vit.blocks["0"]
    plain = perturb(build(depth=1))
    embedded = plain._tokens(volumes(), None)
    tokens = vit.pre_norm(embedded)
    np.testing.assert_allclose(vit._tokens(volumes(), None), tokens, atol=1e-6)
    tokens = tokens + block.attention(block.attention_norm(tokens))
    hidden = np.asarray(block.mlp_in(block.mlp_norm(tokens)))
    tokens = tokens + block.mlp_out(hidden / (1.0 + np.exp(-1.702 * hidden)))
    np.testing.assert_allclose(vit.encode(volumes()).sequence, vit.norm(tokens), atol=1e-5)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation='relu' is unknown: use one of gelu, quick_gelu"):
        build(activation="relu")
