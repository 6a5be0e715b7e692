"""The picture of organ occupancy: the right patch, on the right side, as deep in color as it is full."""

import numpy as np
import pytest

from medclip_jax.pages.contact_sheet import contact_sheet
from medclip_jax.pages.label_outlines import COLORS
from medclip_jax.pages.occupancy import draw_occupancy, patch_shares
from medclip_jax.shards.series import SeriesSettings

SHAPE, CELL, PATCH = (8, 16, 24), 2, (4, 4, 8)


def sample(**more):
    """One organ in the topmost, foremost, rightmost patch, and a quarter of another in the opposite one."""
    organs = np.zeros((2, 4, 8, 12), np.uint8)
    organs[0, 2:, 6:, 8:] = 255
    organs[1, :2, :2, :4] = 255 // 5
    return {
        "id": "0123456789abcdef",
        "volume": np.full(SHAPE, 40, np.int16),
        "organs": organs,
        "report": "A report.",
        "findings": np.zeros(0, np.int8),
        "labels": np.zeros(0, np.int8),
        "organ_sentences": {"heart": {"text": "The <heart>.", "normal": True}},
    } | more


def test_shares_are_those_of_the_model():
    shares = patch_shares(sample()["organs"], CELL, PATCH)
    assert shares.shape == (2, 2, 4, 3)
    expected = np.zeros_like(shares)
    expected[0, 1, 3, 2], expected[1, 0, 0, 0] = 1, 0.2
    np.testing.assert_allclose(shares, expected, atol=1e-7)


def test_each_view_hangs_as_radiologists_do():
    shares = patch_shares(sample()["organs"], CELL, PATCH)
    views = draw_occupancy(
        sample()["volume"],
        shares,
        ("#ff0000", "#00ff00"),
        spacing=(2.0, 1.0, 1.0),
        window=(-160, 240),
        height=96,
    )
    assert [(v.name, v.layer, v.layers) for v in views] == [
        ("axial", 1, 2),
        ("coronal", 3, 4),
        ("sagittal", 2, 3),
    ]
    # 16 mm in depth, 16 in height, 24 in width, at 6 pixels a millimeter.
    assert [v.image.shape for v in views] == [(96, 144, 3), (96, 144, 3), (96, 96, 3)]
    for view, (rows, columns) in zip(views, [(4, 3), (2, 3), (2, 4)], strict=True):
        height, width = view.image.shape[:2]
        # In the middle of each patch, off the lines.
        blocks = view.image[height // rows // 2 :: height // rows, width // columns // 2 :: width // columns]
        red = blocks[..., 0].astype(int) - blocks[..., 1]
        assert red[0, 0] > 100  # top left: upper, front, right
        red[0, 0] = 0
        assert not red.any()
    gray = views[0].image[90, 140]
    assert gray.tolist() == [128, 128, 128]  # 40 HU is the middle of the window


def test_a_fifth_full_is_a_fifth_as_deep():
    shares = np.zeros((1, 1, 1, 2), np.float32)
    shares[0, 0, 0] = (1.0, 0.2)
    volume = np.full((4, 4, 8), -160, np.int16)
    options = {"spacing": (1.0, 1.0, 1.0), "window": (-160, 240), "height": 40}
    axial = draw_occupancy(volume, shares, ("#ffffff",), **options)[0].image.astype(float)
    assert axial[20, 20, 0] / axial[20, 60, 0] == pytest.approx(0.2, abs=0.01)


VOLUME = SeriesSettings("volume", SHAPE, (2.0, 1.0, 1.0))


def page(samples, **more):
    return contact_sheet(
        "T", {}, {"t": [["a"]]}, (), samples, series=(VOLUME,), findings=(), organs=("heart", "aorta"),
        cell=CELL, **more,
    )  # fmt: skip


def test_the_page_shows_occupancy_and_text():
    html = page([sample()], patch=PATCH)
    assert html.count("alt='organ occupancy") == 3
    assert "patches, axial layer 2 of 2" in html
    assert "4×4×8 voxels" in html
    assert "The &lt;heart&gt;." in html
    assert "text about 1 organs" in html
    for organ, color in zip(("heart", "aorta"), COLORS, strict=False):
        assert f"background:{color}'></i>{organ}" in html


def test_the_page_without_a_patch_or_organs_draws_no_occupancy():
    without = sample()
    del without["organs"], without["organ_sentences"]
    empty = sample(organs=np.zeros((2, 4, 8, 12), np.uint8))
    for drawn in (page([sample()]), page([without], patch=PATCH), page([empty], patch=PATCH)):
        assert "organ occupancy," not in drawn
        assert "A report." in drawn


def test_cells_that_do_not_divide_the_patch_are_refused():
    with pytest.raises(ValueError, match="organ cells of 2 voxels do not divide the patch"):
        page([sample()], patch=(4, 3, 8))
