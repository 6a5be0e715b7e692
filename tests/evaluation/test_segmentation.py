"""Segmentation: surfaces by brute force, the sliding window by loops, and numbers known by hand."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.segmentation import evaluate_segmentation
from medclip_jax.evaluation.segmentation_metrics import overlap_of, surface_distances
from medclip_jax.evaluation.sliding import slide, window_starts, window_weights
from medclip_jax.objectives.base import DataSpec, Embedding, Objective

SHAPE, WINDOW = (4, 5, 6), (2, 3, 4)
SPEC = DataSpec(SHAPE, (2.0, 1.0, 1.0), label_classes=("liver", "spleen", "tumor"))
NAMES = ("tumor", "liver", "kidney")


class Teller(Objective):
    """Logits that follow from the voxel: its HU over 100 is the class."""

    segments = True

    def crop_shape(self):
        return WINDOW

    def segmented_classes(self):
        return NAMES

    def embed_volumes(self, inputs):
        return Embedding(jnp.ones((len(inputs["volume"]), 2)))

    def segment(self, inputs):
        # Only the window's first voxel is wrong: it says kidney there.
        volume = inputs["volume"] / 100
        logits = -jnp.square(volume[..., None] - jnp.arange(4.0))
        return logits.at[:, 0, 0, 0].set(jnp.array([0.0, 0.0, 0.0, 9.0]))


def embedder(batch_size=3):
    return Embedder(
        Teller(), SPEC, SimpleNamespace(text_length=8), None, batch_size=batch_size, progress=False
    )


def surface_by_hand(mask):
    found = []
    for place in np.argwhere(mask):
        for axis in range(3):
            for step in (-1, 1):
                other = place.copy()
                other[axis] += step
                outside = (other < 0).any() or (other >= mask.shape).any()
                if outside or not mask[tuple(other)]:
                    found.append(tuple(place))
    return np.array(sorted(set(found)))


def overlap_by_hand(predicted, true, spacing, tolerance):
    one, other = surface_by_hand(predicted) * spacing, surface_by_hand(true) * spacing
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    there, back = distances.min(1), distances.min(0)
    near = (there <= tolerance).sum() + (back <= tolerance).sum()
    dice = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
    return dice, max(np.percentile(there, 95), np.percentile(back, 95)), near / (len(there) + len(back))


@pytest.mark.parametrize("seed", range(4))
def test_metrics_by_brute_force(seed):
    draw = np.random.default_rng(seed)
    true, spacing = draw.random((7, 6, 5)) < (0.7 if seed else 0.05), (3.0, 1.5, 0.8)
    predicted = true ^ (draw.random(true.shape) < 0.1)
    found = overlap_of(predicted, true, spacing, tolerance=1.5)
    np.testing.assert_allclose(found, overlap_by_hand(predicted, true, spacing, 1.5), rtol=1e-12)


def test_metrics_known_by_hand():
    true = np.zeros((8, 8, 8), bool)
    true[2:5, 2:5, 2:5] = True
    moved = np.roll(true, 1, axis=0)
    assert overlap_of(true, true, (4, 1, 1), tolerance=0) == (1, 0, 1)
    there, back = surface_distances(moved, true, (4, 1, 1))
    assert len(there) == len(back) == 26
    assert there.max() == back.max() == 4
    assert overlap_of(moved, true, (4, 1, 1), tolerance=4).surface_dice == 1
    assert overlap_of(moved, true, (4, 1, 1), tolerance=0).dice == pytest.approx(2 / 3)
    one = np.zeros_like(true)
    one[0, 0, 0] = True
    assert overlap_of(one, true, (1, 1, 1), tolerance=1).surface_dice == 0
    np.testing.assert_equal(overlap_of(~one & one, true, (1, 1, 1), tolerance=1), (0, np.nan, 0))
    np.testing.assert_equal(overlap_of(one, ~one & one, (1, 1, 1), tolerance=1), (0, np.nan, 0))
    np.testing.assert_equal(overlap_of(~one & one, ~one & one, (1, 1, 1), tolerance=1), (np.nan,) * 3)


def test_windows():
    assert window_starts((10, 4, 4), (4, 4, 4), 0.5) == [(0, 0, 0), (2, 0, 0), (4, 0, 0), (6, 0, 0)]
    assert window_starts((9, 4, 4), (4, 4, 4), 0.5)[-1] == (5, 0, 0)
    assert len(window_starts((9, 9, 9), (4, 4, 4), 0.99)) == 6**3  # a voxel at a time, at least
    for overlap in (0.0, 0.25, 0.75):
        covered = np.zeros((11, 7, 5), int)
        for start in window_starts(covered.shape, (4, 3, 5), overlap):
            covered[tuple(slice(s, s + n) for s, n in zip(start, (4, 3, 5), strict=True))] += 1
        assert (covered > 0).all()
    with pytest.raises(ValueError, match="do not fit"):
        window_starts((4, 4, 4), (5, 4, 4))
    with pytest.raises(ValueError, match="below 1"):
        window_starts((4, 4, 4), (4, 4, 4), 1.0)
    weights = window_weights((4, 5, 6))
    np.testing.assert_allclose(weights, weights[::-1, ::-1, ::-1])
    assert window_weights((3, 5, 7)).max() == 1
    assert weights.min() == np.float32(1e-3)
    expected = np.exp(-0.5 * (1 / (0.125 * 5)) ** 2)
    np.testing.assert_allclose(weights[1, 1, 2] / weights[1, 2, 2], expected, rtol=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_sliding_by_loops(overlap):
    """Batches of 3 windows cross from one volume into the next."""
    draw = np.random.default_rng(0)
    volumes = draw.integers(0, 400, (2, *SHAPE)).astype(np.int16)
    found = list(slide(embedder(), range(2), lambda index: volumes[index], overlap=overlap))
    weights = window_weights(WINDOW).astype(np.float64)
    for volume, told in zip(volumes, found, strict=True):
        sums, total = np.zeros((*SHAPE, 4)), np.zeros(SHAPE)
        for start in window_starts(SHAPE, WINDOW, overlap):
            for place in np.ndindex(WINDOW):
                voxel = tuple(np.add(start, place))
                logits = -((volume[voxel] / 100 - np.arange(4.0)) ** 2)
                if place == (0, 0, 0):
                    logits = np.array([0.0, 0.0, 0.0, 9.0])
                sums[voxel] += logits * weights[place]
                total[voxel] += weights[place]
        mean = sums / total[..., None]
        top = np.sort(mean, axis=-1)
        sure = top[..., -1] - top[..., -2] > 1e-4
        np.testing.assert_array_equal(told[sure], mean.argmax(-1)[sure])
        assert told.dtype == np.uint8
        assert sure.mean() > 0.9


def evaluated(maps, volumes, patients=(1, 1, 2, 3), **settings):
    records = [{"volume": volume, "study": 1} for volume in volumes]
    held = [{} if one is None else {"label_map": one} for one in maps]
    split = EmbeddedSplit(
        "test",
        np.ones((len(maps), 2), np.float32),
        np.arange(len(maps)),
        np.array(patients[: len(maps)]),
        ids=tuple(f"{row:x}" for row in range(len(maps))),
    )
    return evaluate_segmentation(
        split,
        None,
        embedder=embedder(),
        open_records=lambda fields: (records, ()),
        open_label_maps=lambda: (held, SPEC.label_classes),
        **{"draws": 20, **settings},
    )


def made_volumes():
    """Classes by value of SPEC: liver 1, spleen 2, tumor 3. The model knows tumor 1, liver 2, kidney 3."""
    maps = np.zeros((4, *SHAPE), np.uint8)
    maps[0, 1:3, 1:3, 1:5] = 1  # 16 voxels of liver, told
    maps[1, 1:3, 1:3, 1:5] = 1  # liver, of which half is told
    maps[2, 1, 1, 1:3] = 3  # a tumor that is missed, and a liver that is not there
    maps[2, 3, 4] = 255
    told = np.zeros((4, *SHAPE), np.int16)
    told[:2, 1:3, 1:3, 1:5] = 200
    told[1, 1] = 0
    told[2, 2, 2, 2:4] = 200
    told[2, 3, 4] = 100  # where nobody knows
    return list(maps), list(told)


def test_evaluator_by_hand():
    maps, volumes = made_volumes()
    maps[3] = None
    result = evaluated(maps, volumes, overlap=0.75, tolerance=1.0)
    assert list(result.classes) == ["tumor", "liver"]  # the set has no kidney
    liver, tumor = result.classes["liver"], result.classes["tumor"]
    assert (liver.volumes, liver.missed, liver.invented) == (2, 0, 1)
    assert (tumor.volumes, tumor.missed, tumor.invented) == (1, 1, 0)
    assert liver.dice == pytest.approx((1 + 2 * 8 / 24) / 2)
    assert liver.hd95 == pytest.approx(1.0)  # 0, and one slice of 2 mm
    assert (tumor.dice, tumor.surface_dice) == (0, 0)
    assert np.isnan(tumor.hd95)
    flat = result.metrics()
    assert flat["dice_mean"] == pytest.approx(liver.dice / 2)
    assert flat["hd95_mean"] == liver.hd95
    assert flat["invented/liver"] == 1
    assert set(result.all_intervals()) <= set(flat)
    assert "dice_mean" in result.all_intervals()
    assert "1 without a label map" in result.conditions["n"]
    assert result.scores.shape == (3, 4, 3)
    assert np.isnan(result.scores[:, 3]).all()
    text = str(result)
    assert "surface Dice at 1 mm" in text
    assert "liver" in text
    scored = result.scored()[""]
    assert set(scored.tasks) == {"liver", "tumor"}
    np.testing.assert_array_equal(scored.tasks["liver"].rows, [0, 1])
    np.testing.assert_allclose(scored.tasks["liver"].scores, [[1, 2 * 8 / 24]])
    assert scored.tasks["liver"].metric == "Dice"
    assert len(result.scans) == 2
    np.testing.assert_array_equal(result.scans[0].true == 2, maps[0] == 1)


def test_nothing_to_score():
    _, volumes = made_volumes()
    with pytest.raises(NotEvaluable, match="no label map of the split shows any"):
        evaluated([np.full(SHAPE, 255, np.uint8)] * 2, volumes[:2])
    with pytest.raises(NotEvaluable, match="no label map of the split shows any"):
        evaluated([np.full(SHAPE, 2, np.uint8)] * 2, volumes[:2])
    assert "tells no classes" not in embedder().lacks("label maps")
    plain = Embedder(Plain(), SPEC, SimpleNamespace(text_length=8), None, batch_size=1, progress=False)
    assert "segment" in plain.lacks("label maps")


class Plain(Teller):
    segments = False
