"""UNETR and the U-Net's decoder against PyTorch on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models.resnet import STAGES, ResNet
from medclip_jax.models.unet import Enlarge, ResidualBlock, UNet, UpBlock, instance_norm, resize
from medclip_jax.models.unetr import Unetr, growth, tapped_blocks
from medclip_jax.models.vit import VisionTransformer

torch = pytest.importorskip("torch")
F = torch.nn.functional


def to_torch(x):
    """(B, D, H, W, C) to (B, C, D, H, W)."""
    return torch.tensor(np.moveaxis(np.asarray(x, np.float32), -1, 1))


def from_torch(x):
    return np.moveaxis(x.numpy(), 1, -1)


def conv(module, x):
    kernel = torch.tensor(np.asarray(module.kernel[...]).transpose(4, 3, 0, 1, 2))
    return F.conv3d(x, kernel, padding=kernel.shape[-1] // 2)


def enlarge(module, x):
    kernel = np.asarray(module.linear.kernel[...])
    kernel = kernel.reshape(len(kernel), *module.factor, -1).transpose(0, 4, 1, 2, 3)
    return F.conv_transpose3d(x, torch.tensor(kernel), stride=module.factor)


def residual(module, x):
    y = F.leaky_relu(F.instance_norm(conv(module.conv1, x)), 0.01)
    y = F.instance_norm(conv(module.conv2, y))
    beside = x if module.projection is None else F.instance_norm(conv(module.projection, x))
    return F.leaky_relu(y + beside, 0.01)


def up(module, x, finer):
    if isinstance(module.enlarge, Enlarge):
        x = enlarge(module.enlarge, x)[..., : finer.shape[2], : finer.shape[3], : finer.shape[4]]
    else:
        x = F.interpolate(x, finer.shape[2:], mode="trilinear", align_corners=False)
        x = conv(module.enlarge, x)
    return residual(module.block, torch.cat([x, finer], 1))


def decode(module, x, finer):
    for level, skip in enumerate(finer):
        x = up(module.up[str(level)], x, skip)
    kernel, bias = (torch.tensor(np.asarray(p[...])) for p in (module.classify.kernel, module.classify.bias))
    return torch.einsum("bcdhw,ck->bkdhw", x, kernel) + bias[None, :, None, None, None]


def ladder(module, x):
    for step in range(len(module.enlarge)):
        x = enlarge(module.enlarge[str(step)], x)
        if step:
            x = residual(module.blocks[str(step)], x)
    return x


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def near(found, expected):
    np.testing.assert_allclose(found, from_torch(expected), atol=1e-5, rtol=1e-5)


def test_parts():
    x, finer = drawn(2, 3, 4, 2, 5), drawn(2, 6, 7, 4, 3, seed=1)
    options = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    near(instance_norm(x), F.instance_norm(to_torch(x)))
    with pytest.raises(ValueError, match="take larger crops"):
        instance_norm(drawn(2, 1, 1, 1, 3))
    near(
        resize(x, (7, 5, 3)),
        F.interpolate(to_torch(x), (7, 5, 3), mode="trilinear", align_corners=False),
    )
    module = Enlarge(5, 3, (1, 2, 3), **options)
    near(module(x), enlarge(module, to_torch(x)))
    for outputs in (5, 4):
        module = ResidualBlock(5, outputs, **options)
        assert (module.projection is None) == (outputs == 5)
        near(module(x), residual(module, to_torch(x)))
    for factor in ((2, 2, 2), None):
        module = UpBlock(5, 3, 4, factor, **options)
        near(module(x, finer), up(module, to_torch(x), to_torch(finer)))


@pytest.mark.parametrize(
    ("patch", "steps", "last"),
    [
        ((16, 16, 16), ((2, 2, 2),) * 3, (2, 2, 2)),
        ((8, 8, 8), ((2, 2, 2), (2, 2, 2), (1, 1, 1)), (2, 2, 2)),
        ((8, 16, 16), ((2, 2, 2), (2, 2, 2), (1, 2, 2)), None),
        ((12, 12, 12), ((2, 2, 2), (2, 2, 2), (1, 1, 1)), None),
        ((1, 2, 6), ((1, 1, 2), (1, 1, 1), (1, 1, 1)), None),
        ((32, 32, 32), ((2, 2, 2),) * 3, (4, 4, 4)),
    ],
)
def test_growth_ends_at_the_voxels(patch, steps, last):
    assert growth(patch) == (steps, last)
    grown = np.prod(steps, axis=0)
    assert (grown <= patch).all()
    if last:
        assert tuple(grown * last) == patch


def test_depths():
    assert tapped_blocks(12) == (3, 6, 9)
    assert tapped_blocks(24) == (6, 12, 18)
    assert tapped_blocks(1) == (0, 0, 1)


@pytest.mark.parametrize("patch", [(4, 4, 4), (2, 4, 4)])
def test_unetr(patch):
    shape = (4, 8, 8)
    encoder = VisionTransformer(
        shape=shape, patch=patch, channels=2, width=12, depth=4, heads=2, rngs=nnx.Rngs(0)
    )
    module = Unetr(encoder, patch, channels=2, classes=3, features=4, dtype=jnp.float32, rngs=nnx.Rngs(1))
    voxels = drawn(2, *shape, 2)
    states = encoder.layer_states(voxels)
    grid = encoder.grid

    def on_grid(name):
        return to_torch(states[name].reshape(2, *grid, 12))

    finer = [ladder(module.ladders[str(level)], on_grid(f"block_{3 - level}")) for level in range(3)]
    expected = decode(module.decoder, on_grid("final"), [*finer, residual(module.first, to_torch(voxels))])
    found = nnx.jit(lambda module, encoder, x: module(encoder, x, x))(module, encoder, voxels)
    assert found.shape == (2, *shape, 3)
    near(found, expected)


def test_unet_of_odd_shapes():
    encoder = ResNet(18, width=2, stem_size=(3, 3, 3), stem_stride=(1, 2, 2), norm="group", rngs=nnx.Rngs(0))
    module = UNet(encoder, channels=1, classes=2, features=3, dtype=jnp.float32, rngs=nnx.Rngs(1))
    voxels = drawn(1, 9, 18, 28, 1)  # the coarsest map has one voxel, the next has eight
    maps = nnx.jit(lambda encoder, x: encoder.feature_maps(x))(encoder, voxels)
    coarsest, *finer = (to_torch(maps[name]) for name in reversed(STAGES))
    expected = decode(module.decoder, coarsest, [*finer, residual(module.first, to_torch(voxels))])
    found = nnx.jit(lambda module, encoder, x: module(encoder, x, x))(module, encoder, voxels)
    near(found, expected)


def test_taps_pass_through_the_encoder():
    """Whatever is kept for the backward pass, and however the blocks are compiled."""
    voxels = drawn(1, 4, 4, 4, 1)
    for options in ({}, {"remat": "block"}, {"scan": True, "skip": True}):
        encoder = VisionTransformer(
            shape=(4, 4, 4),
            patch=(2, 2, 2),
            channels=1,
            width=12,
            depth=2,
            heads=2,
            rngs=nnx.Rngs(0),
            **options,
        )
        states = encoder.layer_states(voxels)
        names = ("patches", "block_1", "block_1", "final")
        for name, tokens in zip(names, encoder.tapped_tokens(voxels, (0, 1, 1)), strict=True):
            np.testing.assert_allclose(tokens, states[name], atol=1e-6)


def test_every_weight_has_a_gradient():
    encoder = VisionTransformer(
        shape=(4, 4, 4), patch=(2, 2, 2), channels=1, width=12, depth=4, heads=2, rngs=nnx.Rngs(0)
    )
    module = Unetr(encoder, (2, 2, 2), channels=1, classes=2, features=2, dtype=jnp.float32, rngs=nnx.Rngs(1))
    voxels = drawn(1, 4, 4, 4, 1)

    @nnx.jit
    def gradients(pair):
        return nnx.grad(lambda pair: jnp.sum(pair["a"](pair["b"], voxels, voxels)[..., 0] ** 3))(pair)

    found = gradients(nnx.Dict(a=module, b=encoder))
    for path, leaf in nnx.to_flat_state(found):
        assert np.isfinite(leaf[...]).all(), path
        assert np.any(np.asarray(leaf[...])) or "bias" in str(path), path
    assert jax.tree.leaves(found)
