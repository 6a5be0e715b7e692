"""Pictures of the spectrum evaluator: they show the numbers, and the page holds them."""

import numpy as np
import pytest

from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.spectrum import LayerSpectrum, SpectrumResult
from medclip_jax.evaluation.token_maps import TokenMaps
from medclip_jax.pages import spectrum_figures
from medclip_jax.pages.evaluation import write_evaluation_page

SHAPE, SPACING = (4, 6, 8), (2.0, 1.0, 1.0)


def made_layer(first, *, collapsed=False):
    together = np.zeros(5) if collapsed else np.array([first, 2.0, 1.0, 0.5, 0.0])
    decay = together / max(together[0], 1.0)
    ranks, cosines = np.linspace(0.2, 0.4, 11), np.linspace(0.5, 0.7, 11)
    return LayerSpectrum(5, 8, together, decay, 0 * ranks if collapsed else ranks, cosines)


def made_result(**changes):
    colors = np.zeros((2, 2, 1, 2, 3))
    colors[:, 1, 0, 1] = (1.0, 0.0, 0.5)  # upper, on the patient's right
    centers = np.array([0.5, 2.5]), np.array([2.5]), np.array([1.5, 5.5])
    shares = np.array([0.6, 0.2, 0.1])
    maps = TokenMaps("final", np.zeros((2, *SHAPE), np.int16), colors, centers, shares, [SPACING] * 2)
    fields = {
        "layers": {"patches": made_layer(4.0), "block_1": made_layer(8.0), "final": made_layer(2.0)},
        "maps": maps,
        "conditions": {"n": "11 volumes"},
    }
    return SpectrumResult(**{**fields, **changes})


def test_decay_is_relative_to_the_first_and_logarithmic():
    figure = spectrum_figures.decay(made_result())
    together, within = figure.axes
    assert together.get_yscale() == "log"
    block = together.lines[1]
    assert block.get_label() == "block_1"
    np.testing.assert_allclose(block.get_ydata(), [1, 0.25, 0.125, 0.0625])  # no zero on a logarithmic scale
    np.testing.assert_array_equal(block.get_xdata(), [1, 2, 3, 4])
    assert len(within.lines) == 3


def test_a_collapsed_layer_is_drawn():
    result = made_result(layers={"patches": made_layer(4.0), "final": made_layer(0.0, collapsed=True)})
    assert len(spectrum_figures.decay(result).axes[0].lines[1].get_ydata()) == 0
    together = spectrum_figures.ranks(result).axes[0]
    assert together.lines[0].get_ydata()[1] == 0


def test_ranks_by_layer():
    result = made_result()
    together, within, cosine = spectrum_figures.ranks(result).axes
    expected = [result.metrics()[f"effective_rank/{name}"] for name in result.layers]
    np.testing.assert_allclose(together.lines[0].get_ydata(), expected)
    np.testing.assert_allclose(within.lines[0].get_ydata(), 0.3)
    band = within.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.21, 0.39))
    assert [label.get_text() for label in cosine.get_xticklabels()] == ["patches", "block 1", "final"]


def test_colors_lie_on_their_places():
    figure = spectrum_figures.token_maps(made_result().maps)
    assert len(figure.axes) == 12
    coronal = figure.axes[3].get_images()[1].get_array()
    assert coronal.shape == (4, 8, 3)
    # Superior is up and the patient's right on the left: rows and columns run against the array's.
    assert (coronal[:2, :4] == (1.0, 0.0, 0.5)).all()
    assert not coronal[2:].any()
    assert not coronal[:, 4:].any()


def test_page(tmp_path):
    evaluation = Evaluation("test", 11, {"spectrum": made_result()}, {}, None, 1.0)
    page = write_evaluation_page(tmp_path / "page.html", evaluation).read_text()
    assert page.count("data:image/png") == 3
    assert "red 60%, green 20%, blue 10% of the variance" in page
    assert "<h2>Token spectrum</h2>" in page
    without = Evaluation("test", 11, {"spectrum": made_result(maps=None)}, {}, None, 1.0)
    assert write_evaluation_page(tmp_path / "page.html", without).read_text().count("data:image/png") == 2
