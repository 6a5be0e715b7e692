"""Crops with a share of foreground, mirrored and turned."""

import jax
import numpy as np
import pytest

from medclip_jax.transforms import cut_boxes, foreground_starts, mirror, quarter_turns

SHAPE, BOX = (5, 6, 7), (3, 2, 4)


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


starts_of = jax.jit(foreground_starts, static_argnames=("count", "shape", "foreground"))


def middles(labels, foreground, count=4000, box=(1, 1, 1), seed=0):
    """Starts of boxes; of those of one voxel, the voxel that was chosen."""
    found = starts_of(labels[None], keys(seed, 1), count=count, shape=box, foreground=foreground)
    return np.asarray(found[0])


def made_labels():
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 2, 3:6], labels[4, 5, 6], labels[0] = 1, 2, 255
    return labels


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_and_every_voxel_of_a_kind_alike(share):
    labels = made_labels()
    chosen = labels[tuple(middles(labels, share).T)]
    assert not (chosen == 255).any()
    assert (chosen > 0).mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000))
    if share:
        # Three voxels of class 1, one of class 2.
        assert (chosen == 2).sum() / (chosen > 0).sum() == pytest.approx(0.25, abs=0.06)
    if share == 0:
        counts = np.zeros(SHAPE, int)
        np.add.at(counts, tuple(middles(labels, share).T), 1)
        assert (counts[labels == 0] > 0).all()


@pytest.mark.parametrize("fill", [0, 1, 255])
def test_maps_of_one_kind(fill):
    """Without foreground, without background, without any label: what there is."""
    labels = np.full(SHAPE, fill, np.uint8)
    for share in (0.0, 1.0):
        counts = np.zeros(SHAPE, int)
        np.add.at(counts, tuple(middles(labels, share).T), 1)
        assert (counts > 0).all()


def test_boxes_lie_inside_and_hold_what_they_were_cut_for():
    labels = made_labels()
    starts = middles(labels, 1.0, count=300, box=BOX)
    assert (starts >= 0).all()
    assert (starts + BOX <= SHAPE).all()
    boxes = np.asarray(cut_boxes(labels[None], starts[None], BOX)[0])
    for box, (d, h, w) in zip(boxes, starts, strict=True):
        np.testing.assert_array_equal(box, labels[d : d + 3, h : h + 2, w : w + 4])
    assert ((boxes > 0) & (boxes < 255)).any(axis=(1, 2, 3)).all()


def test_a_function_of_its_own_key():
    labels = np.stack([made_labels(), made_labels()[:, ::-1]])
    both = starts_of(labels, keys(3, 2), count=5, shape=BOX, foreground=0.5)
    alone = starts_of(labels[1:], keys(3, 2)[1:], count=5, shape=BOX, foreground=0.5)
    np.testing.assert_array_equal(both[1], alone[0])
    other = starts_of(labels, keys(4, 2), count=5, shape=BOX, foreground=0.5)
    assert np.any(both != other)


def test_mirror():
    boxes = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(mirror(boxes, keys(0, 2), 0.0), boxes)
    np.testing.assert_array_equal(mirror(boxes, keys(0, 2), 1.0), boxes[:, ::-1, ::-1, ::-1])
    many = np.asarray(mirror(np.repeat(boxes[:1], 64, 0), keys(0, 64), 0.5))
    assert len({box.tobytes() for box in many}) == 8
    np.testing.assert_array_equal(many, mirror(np.repeat(boxes[:1], 64, 0), keys(0, 64), 0.5))


def test_quarter_turns():
    boxes = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    np.testing.assert_array_equal(quarter_turns(boxes, keys(0, 2), 0.0), boxes)
    turns = [np.rot90(boxes[0], count, axes=(1, 2)) for count in range(4)]
    for probability, shares in ((1.0, (0, 1 / 3, 1 / 3, 1 / 3)), (0.3, (0.7, 0.1, 0.1, 0.1))):
        many = np.asarray(quarter_turns(np.repeat(boxes[:1], 3000, 0), keys(0, 3000), probability))
        found = [np.mean([np.array_equal(box, turn) for box in many]) for turn in turns]
        np.testing.assert_allclose(found, shares, atol=0.03)
    with pytest.raises(ValueError, match="as high as wide"):
        quarter_turns(boxes[:, :, :3], keys(0, 2), 0.5)
