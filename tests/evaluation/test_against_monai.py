"""Losses, windows and surface distances of segmentation against MONAI's."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.segmentation_metrics import overlap_of
from medclip_jax.evaluation.sliding import slide, window_weights
from medclip_jax.losses.dice import overlap_sums, soft_dice
from medclip_jax.objectives.base import DataSpec, Embedding, Objective

pytestmark = pytest.mark.slow  # importing MONAI takes seconds
torch = pytest.importorskip("torch")
pytest.importorskip("monai")

SHAPE, WINDOW = (11, 9, 14), (4, 5, 6)


def made_masks(seed):
    """A ball, and one that is shifted and gnawed at."""
    draw = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    true = np.linalg.norm(grid - (5, 4, 6), axis=-1) < 4
    predicted = np.roll(true, draw.integers(-2, 3, 3), (0, 1, 2)) & (draw.random(SHAPE) < 0.9)
    return predicted, true


@pytest.mark.parametrize("seed", range(3))
def test_scores(seed):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    predicted, true = made_masks(seed)
    one, other = (torch.tensor(np.stack([~mask, mask])[None]) for mask in (predicted, true))
    spacing = (3.0, 1.5, 0.8)
    found = overlap_of(predicted, true, spacing, tolerance=2.0)
    far = compute_hausdorff_distance(one, other, percentile=95, spacing=spacing)
    near = compute_surface_dice(one, other, [2.0], spacing=spacing)
    np.testing.assert_allclose(found.hausdorff, far.item(), rtol=1e-6)
    np.testing.assert_allclose(found.surface_dice, near.item(), rtol=1e-6)
    np.testing.assert_allclose(found.dice, 2 * (predicted & true).sum() / (predicted.sum() + true.sum()))


def test_loss():
    from monai.losses import DiceCELoss

    draw = np.random.default_rng(0)
    logits = draw.normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
    labels = draw.integers(0, 3, (2, 3, 4, 5)).astype(np.uint8)
    expected = DiceCELoss(to_onehot_y=True, softmax=True)(
        torch.tensor(np.moveaxis(logits, -1, 1)), torch.tensor(labels[:, None].astype(np.int64))
    )
    sums = overlap_sums(jnp.asarray(logits), labels)
    found = (1 - soft_dice(*sums[:3])).mean() + sums.cross_entropy.sum() / sums.voxels.sum()
    np.testing.assert_allclose(found, expected.item(), rtol=2e-6)


class Shifted(Objective):
    """Each voxel's logit says what the voxel before it holds, so that windows disagree at their edges."""

    segments = True

    def crop_shape(self):
        return WINDOW

    def segmented_classes(self):
        return ("a",)

    def embed_volumes(self, inputs):
        return Embedding(jnp.ones((len(inputs["volume"]), 2)))

    def segment(self, inputs):
        moved = jnp.roll(inputs["volume"].astype(jnp.float32), 1, axis=(1, 2, 3)) / 100
        return jnp.stack([jnp.zeros_like(moved), moved], axis=-1)


@pytest.mark.parametrize("overlap", [0.25, 0.75])
def test_sliding_window(overlap):
    from monai.data.utils import compute_importance_map
    from monai.inferers import sliding_window_inference

    np.testing.assert_allclose(
        window_weights(WINDOW), compute_importance_map(WINDOW, mode="gaussian", sigma_scale=0.125), rtol=1e-5
    )
    volume = np.random.default_rng(0).integers(-300, 300, SHAPE).astype(np.int16)

    def twin(crops):
        moved = torch.roll(crops, (1, 1, 1), (2, 3, 4)) / 100
        return torch.cat([torch.zeros_like(moved), moved], 1)

    expected = sliding_window_inference(
        torch.tensor(volume[None, None].astype(np.float32)), WINDOW, 2, twin, overlap=overlap, mode="gaussian"
    )[0, 1].numpy()
    config = SimpleNamespace(text_length=8)
    embedder = Embedder(Shifted(), DataSpec(SHAPE, (1.0,) * 3), config, None, batch_size=2, progress=False)
    (found,) = slide(embedder, range(1), lambda index: volume, overlap=overlap)
    sure = np.abs(expected) > 1e-4
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure] == 1, expected[sure] > 0)
