"""Frames that move: the animation has every frame of the longest series, and shows where attention lies."""

import io

import numpy as np
from PIL import Image

from medclip_jax.pages.beating import SCALE, Beat, animation, attention_over_time
from medclip_jax.pages.html import data_uri


def beat(phases, corner=False):
    frames = np.random.default_rng(phases).integers(0, 4096, (phases, 12, 16)).astype(np.int16)
    attention = np.full((phases, 3, 4), 0.01)
    if corner:
        attention[:, 0, 0] = 1.0
    return Beat(frames, attention)


def pictures(gif):
    image = Image.open(io.BytesIO(gif))
    found = []
    for place in range(image.n_frames):
        image.seek(place)
        found.append(np.asarray(image.convert("RGB"), np.int32))
    return found


def test_every_frame_of_the_longest_series_is_shown():
    found = pictures(animation([beat(5), beat(3)]))
    assert len(found) == 5
    assert {one.shape for one in found} == {(2 * 12 * SCALE, 2 * 16 * SCALE, 3)}
    lower = [one[12 * SCALE :] for one in found]
    np.testing.assert_allclose(lower[0], lower[3], atol=40)  # the shorter one began anew; colors are few
    assert np.abs(lower[0] - lower[1]).mean() > 20


def test_color_lies_where_attention_is():
    (first, *_) = pictures(animation([beat(2, corner=True)]))
    right = first[:, 16 * SCALE :]
    color = right.max(axis=2) - right.min(axis=2)
    assert color[: 2 * SCALE, : 2 * SCALE].mean() > 5 * color[6 * SCALE :, 8 * SCALE :].mean()
    left = first[:, : 16 * SCALE]
    assert (left.max(axis=2) - left.min(axis=2)).mean() < 8  # gray, but for the palette of a GIF


def test_attention_over_the_sequence_goes_on_from_series_to_series():
    figure = attention_over_time({"cine_sa": beat(4, corner=True), "lge_sa": beat(3)})
    lines = figure.axes[0].get_lines()
    assert [line.get_xdata().tolist() for line in lines] == [[0, 1, 2, 3], [4, 5, 6]]
    np.testing.assert_allclose(lines[0].get_ydata(), 1.11)


def test_a_gif_is_embedded_as_one():
    assert data_uri(animation([beat(2)])).startswith("data:image/gif;base64,")
