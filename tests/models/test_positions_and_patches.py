"""Positions against the formula, patches against slicing, both on a grid that is no cube."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from medclip_jax.models import patches, positions

GRID = (2, 3, 5)


def formula(grid, width, order):
    """One number at a time, in float64."""
    m = width // 6
    rows = []
    for d in range(grid[0]):
        for h in range(grid[1]):
            for w in range(grid[2]):
                row = []
                for name in order:
                    index = {"d": d, "h": h, "w": w}[name]
                    angles = [index / 10000 ** (k / m) for k in range(m)]
                    row += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
                rows.append(row + [0.0] * (width - len(row)))
    return np.array(rows)


@pytest.mark.parametrize("width", [6, 24, 32, 35])
@pytest.mark.parametrize("order", ["dhw", "hdw", "whd"])
def test_positions_follow_the_formula(width, order):
    got = positions.sincos_3d(GRID, width, order)
    assert got.shape == (30, width)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, formula(GRID, width, order), atol=1e-6)


def test_every_place_has_its_own_position():
    table = np.asarray(positions.sincos_3d((7, 2, 4), 24))
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 9 * np.eye(len(table))
    assert distance.min() > 0.5


def test_positions_reject_what_makes_no_sense():
    with pytest.raises(ValueError, match="each of 'd', 'h', 'w' once"):
        positions.sincos_3d(GRID, 24, "dhh")
    with pytest.raises(ValueError, match="at least 6"):
        positions.sincos_3d(GRID, 5)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_patchify_equals_slicing_and_comes_back(monkeypatch, platform):
    """A TPU's two steps, too, run here."""
    monkeypatch.setattr(patches, "compiled_for", lambda: (platform, None))
    patch = (2, 4, 3)
    volume = np.random.default_rng(0).normal(size=(2, 4, 12, 15, 2)).astype(np.float32)
    rows = patches.patchify(jnp.asarray(volume), patch)
    assert rows.shape == (2, 30, 48)
    n = 0
    for d in range(2):
        for h in range(3):
            for w in range(5):
                cut = volume[:, 2 * d : 2 * d + 2, 4 * h : 4 * h + 4, 3 * w : 3 * w + 3]
                np.testing.assert_array_equal(rows[:, n], cut.reshape(2, -1))
                n += 1
    np.testing.assert_array_equal(patches.unpatchify(rows, GRID, patch, 2), volume)


def test_patch_must_divide_the_volume():
    with pytest.raises(ValueError, match="height 13 leaves 1 voxels"):
        patches.grid_of((4, 13, 15), (2, 4, 3))


def test_embedding_is_a_strided_convolution():
    patch = (2, 4, 3)
    embed = patches.PatchEmbedding(patch, 2, 7, rngs=nnx.Rngs(0))
    volume = np.random.default_rng(0).normal(size=(2, 4, 12, 15, 2)).astype(np.float32)
    kernel = np.asarray(embed.projection.kernel[...]).reshape(*patch, 2, 7).transpose(4, 3, 0, 1, 2)
    expected = torch.nn.functional.conv3d(
        torch.tensor(volume).permute(0, 4, 1, 2, 3), torch.tensor(kernel), stride=patch
    )
    got = embed(jnp.asarray(volume))
    np.testing.assert_allclose(got, expected.flatten(2).transpose(1, 2), atol=1e-5)
    keep = jnp.array([[3, 29, 0], [7, 7, 1]])
    chosen = embed(jnp.asarray(volume), keep)
    np.testing.assert_allclose(chosen, jnp.take_along_axis(got, keep[..., None], axis=1), atol=1e-6)


def test_peaks_show_one_bright_voxel_anywhere_in_its_patch_alone():
    embedding = patches.PatchEmbedding((4, 2, 4), 2, 8, peaks=True, rngs=nnx.Rngs(0))
    volume = np.random.default_rng(0).normal(size=(1, 8, 4, 4, 2)).astype(np.float32)
    found = np.asarray(embedding(volume))
    patch = volume[0, 4:8, 2:4].astype(np.float64)  # the last of the 2 x 2 x 1 patches
    inputs = np.concatenate([patch.ravel(), patch.reshape(-1, 2).max(axis=0) * np.sqrt(32)])
    layer = embedding.projection
    expected = inputs @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])
    np.testing.assert_allclose(found[0, 3], expected, atol=1e-5)
    only = np.asarray(embedding(volume, np.array([[3, 0]])))
    np.testing.assert_allclose(only, found[:, [3, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "patch"), [(4, (8, 4, 12)), (2, (2, 2, 2)), (1, (4, 2, 3)), (8, (8, 24, 16))]
)
def test_cells_are_pooled_to_patches_exactly(cell, patch):
    random = np.random.default_rng(0)
    grid = (2, 3, 5)
    steps = [size // cell for size in patch]
    cells = random.integers(0, 256, (2, 3, *(n * s for n, s in zip(grid, steps, strict=True)))).astype(
        np.uint8
    )
    cells[0, 0], cells[0, 1] = 0, 255
    got = patches.pool_cells(jnp.asarray(cells), cell, patch)
    # Slices of one patch after the other, in whole numbers.
    expected = [
        cells[:, :, d * steps[0] :][:, :, : steps[0]][:, :, :, h * steps[1] :][:, :, :, : steps[1]][
            ..., w * steps[2] : (w + 1) * steps[2]
        ]
        .astype(np.int64)
        .sum((2, 3, 4))
        for d in range(grid[0])
        for h in range(grid[1])
        for w in range(grid[2])
    ]
    expected, whole = np.stack(expected, -1), 255 * np.prod(steps)
    assert got.shape == (2, 3, 30)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(np.rint(np.asarray(got, np.float64) * whole), expected)
    np.testing.assert_allclose(got, expected / whole, rtol=1.2e-7)  # of float32's rounding
    assert got.max() <= 1
    assert (got[0, 0] == 0).all()


def test_pooled_cells_lie_where_patchify_puts_the_patch():
    """A mask of whole cells, as voxels cut by `patchify` and as cells pooled."""
    cells = np.random.default_rng(1).integers(0, 2, (1, 1, 4, 6, 9)).astype(np.uint8)
    voxels = np.repeat(np.repeat(np.repeat(cells, 2, 2), 2, 3), 2, 4)[:, 0, ..., None]
    expected = patches.patchify(jnp.asarray(voxels, jnp.float32), (4, 4, 6)).mean(-1)
    np.testing.assert_allclose(patches.pool_cells(255 * cells, 2, (4, 4, 6))[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "patch", "message"),
    [
        (3, (8, 4, 4), "--organ-cell 4 or a divisor"),
        (0, (4, 4, 4), "do not divide"),
        (2, (8, 4, 4), "depth 12"),
    ],
)
def test_cells_that_do_not_fit_are_named(cell, patch, message):
    with pytest.raises(ValueError, match=message):
        patches.pool_cells(jnp.zeros((1, 1, 6, 4, 4), jnp.uint8), cell, patch)


@pytest.mark.parametrize(
    ("shape", "spacing", "patch"),
    [
        ((112, 224, 224), (3.0, 1.5, 1.5), (8, 28, 28)),  # cubes of 24 mm would be too many
        ((128, 144, 144), (1.5, 1.33, 1.33), (16, 18, 18)),
        ((96, 336, 336), (3.0, 1.0, 1.0), (16, 28, 28)),
        ((8, 16, 16), (8.0, 6.0, 6.0), (4, 4, 4)),
        ((7, 11, 13), (3.0, 1.5, 1.5), (7, 11, 13)),
    ],
)
def test_a_patch_is_chosen_that_divides_and_is_near_a_cube(shape, spacing, patch):
    chosen = patches.choose_patch(shape, spacing)
    assert chosen == patch
    assert np.prod(patches.grid_of(shape, chosen)) <= patches.MOST_TOKENS


def test_fewer_tokens_make_larger_patches():
    shape, spacing = (64, 160, 160), (3.0, 1.5, 1.5)
    counts = [
        np.prod(patches.grid_of(shape, patches.choose_patch(shape, spacing, tokens=n))) for n in (800, 80, 1)
    ]
    assert counts[0] == 800
    assert counts[0] > counts[1] > counts[2] == 1
