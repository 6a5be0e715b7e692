"""Frames of a study: which are shown, of which series, padded, the same on every draw of a sample."""

import numpy as np
import pytest

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pipeline import midpoints, one_per_interval, train_batches
from tests.made_records import settings

VIEWS = ("cine_lax", "cine_sa", "lge_sa")
FIELDS = ("frames", "view", "frame_valid")
SPEC = DataSpec(shape=(), spacing=(), views=VIEWS, frame_shape=(2, 3))


def frames_of(view, count):
    """Frames whose pixels say of which series and which place they are."""
    return np.broadcast_to((1000 * view + np.arange(count))[:, None, None], (count, 2, 3)).astype(np.int16)


def record(*lengths):
    held = {name: frames_of(i, n) for i, (name, n) in enumerate(zip(VIEWS, lengths, strict=True)) if n}
    return {"study": np.int64(3), **held}


def layout(views=()):
    return Layout(FIELDS, SPEC, settings(frames=8, views=views))


def test_midpoints():
    np.testing.assert_array_equal(midpoints(100, 10), np.arange(10) * 10 + 4)
    np.testing.assert_array_equal(midpoints(7, 7), np.arange(7))
    np.testing.assert_array_equal(midpoints(3, 8), np.arange(3))
    np.testing.assert_array_equal(midpoints(48, 1), [23])
    assert len(midpoints(0, 8)) == 0


@pytest.mark.parametrize(("total", "count"), [(120, 64), (65, 64), (9, 4), (3, 8), (64, 64)])
def test_one_frame_of_each_interval_is_shown(total, count):
    kept = min(total, count)
    drawn = np.array([one_per_interval(total, count, np.random.default_rng(s)) for s in range(300)])
    edges = np.floor(np.arange(kept + 1) * total / kept)
    for chosen in (midpoints(total, count), *drawn):
        assert ((edges[:-1] <= chosen) & (chosen < edges[1:])).all()
    assert {*np.unique(drawn)} == {*range(total)}  # every frame is shown at some time


def test_evaluation_shows_the_midpoints_of_all_series_in_order():
    sample = layout().sample(record(6, 10, 8), 0)
    places = midpoints(24, 8)
    wanted = np.concatenate([frames_of(0, 6), frames_of(1, 10), frames_of(2, 8)])[places]
    np.testing.assert_array_equal(sample["frames"], wanted)
    np.testing.assert_array_equal(sample["view"], wanted[:, 0, 0] // 1000)
    np.testing.assert_array_equal(sample["frame_valid"], np.ones(8))


def test_few_frames_are_padded():
    sample = layout().sample(record(2, 0, 3), 0)
    np.testing.assert_array_equal(sample["view"], [0, 0, 2, 2, 2, -1, -1, -1])
    np.testing.assert_array_equal(sample["frame_valid"], [1] * 5 + [0] * 3)
    assert not sample["frames"][5:].any()
    np.testing.assert_array_equal(sample["frames"][2:5, 0, 0], [2000, 2001, 2002])


def test_a_study_without_frames_is_all_padding():
    sample = layout(views=("cine_lax",)).sample(record(0, 4, 4), 0)
    assert not sample["frames"].any()
    assert not sample["frame_valid"].any()


def test_chosen_series_alone_are_read_and_keep_their_numbers():
    chosen = layout(views=("lge_sa", "cine_lax"))
    assert chosen.reads == ("cine_lax", "lge_sa", "study")
    sample = chosen.sample(record(20, 20, 20), 0)
    assert {*sample["view"]} == {0, 2}
    assert (np.diff(sample["view"]) >= 0).all()


def test_the_fields_of_a_sample_agree_in_training():
    for seed in range(20):
        sample = layout().sample(record(6, 10, 8), 0, np.random.default_rng(seed))
        np.testing.assert_array_equal(sample["frames"][:, 0, 0] // 1000, sample["view"])


def test_batches_are_a_function_of_seed_and_step():
    source = [record(6, 10, n) for n in range(5)]
    made = layout()
    first = [next(train_batches(source, made, seed=1, batch_size=4, start_step=n)) for n in (0, 3)]
    stream = train_batches(source, made, seed=1, batch_size=4)
    batches = [next(stream) for _ in range(4)]
    stream.close()
    for one, other in zip(first, (batches[0], batches[3]), strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    ("spec", "views", "words"),
    [
        (DataSpec((8, 8, 8), (1.0, 1.0, 1.0)), (), "no series of frames: prepare with --corpus cmr"),
        (SPEC, ("cine_2ch",), "config.data.views names cine_2ch; the shards hold cine_lax, cine_sa, lge_sa"),
    ],
)
def test_what_the_data_cannot_give_is_refused(spec, views, words):
    with pytest.raises(ValueError, match=words):
        Layout(FIELDS, spec, settings(frames=8, views=views))
