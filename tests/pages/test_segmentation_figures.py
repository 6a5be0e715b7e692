"""The picture of a segmentation shows the slices and outlines that it should."""

import numpy as np

from medclip_jax.evaluation.segmentation import ShownSegmentation
from medclip_jax.pages.label_outlines import COLORS
from medclip_jax.pages.segmentation_figures import segmentation_figure


def test_outlines_lie_where_the_classes_are():
    true, told = np.zeros((2, 6, 8, 10), np.uint8)
    true[2, 3:6, 1:5] = 1
    true[0] = 255
    told[2, 3:6, 5:9] = 2
    scan = ShownSegmentation(
        np.zeros(true.shape, np.int16), (4.0, 2.0, 3.0), true, told, {"liver": 1, "left_kidney": 2}
    )
    figure = segmentation_figure(scan)
    panels = np.array(figure.axes).reshape(2, 3)
    assert "axial, slice 3 of 6: label map" in panels[0, 0].get_title()
    assert "told" in panels[1, 0].get_title()
    (text,) = figure.legends
    assert [label.get_text() for label in text.get_texts()] == ["liver", "left kidney"]
    lines = [panel.collections for panel in panels[:, 0]]
    assert [len(found) for found in lines] == [1, 1]
    # Width grows to the patient's right, which is on the left of the picture; height to the front, its top.
    for (line,), (x, y), color in zip(lines, ((21, 9), (9, 9)), COLORS, strict=False):
        low, high = (
            np.array(line.get_paths()[0].vertices).min(0),
            np.array(line.get_paths()[0].vertices).max(0),
        )
        np.testing.assert_allclose((low + high) / 2, (x, y), atol=1.5)
        assert line.get_edgecolor()[0][:3].max() > 0
        assert color
