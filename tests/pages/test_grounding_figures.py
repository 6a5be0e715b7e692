"""Pictures of sentences and words show what was selected, hung as the scan is, and the page holds them."""

import re

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from medclip_jax.evaluation.grounding import GroundingResult, Group, ShownScan, ShownSentence
from medclip_jax.evaluation.grounding_metrics import Score
from medclip_jax.evaluation.masked_words import Accuracy, MaskedWordsResult, ShownWord
from medclip_jax.evaluation.organs import Organ, OrgansResult, ShownOrgans
from medclip_jax.evaluation.reconstruction import ReconstructionResult, ShownReconstruction, Window
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.pages import grounding_figures
from medclip_jax.pages.evaluation import write_evaluation_page
from medclip_jax.pages.figures import LUNG_HU, SOFT_TISSUE_HU

NAN = float("nan")


def made_scan(**changes):
    """Grid (2, 3, 4) of patches of 4 voxels; one patch is selected, another lies in the place."""
    similarity = np.zeros((2, 3, 4))
    similarity[1, 2, 3] = 0.5
    selected = similarity > 0
    shares = np.zeros((2, 3, 4))
    shares[1, 2, 0] = 1.0
    fields = {
        "text": "A nodule <b> is seen.",
        "place": "lung_nodule",
        "score": Score(2.5, 8.0),
        "similarity": similarity,
        "selected": selected,
        "shares": shares,
    }
    volume = np.zeros((8, 12, 16), np.int16)
    return ShownScan(volume, (2.0, 1.0, 1.0), (ShownSentence(**{**fields, **changes}),))


def lines_of(panel):
    found = [c for c in panel.collections if isinstance(c, LineCollection)]
    return [np.array(c.get_segments()) for c in found]


def test_slices_cross_the_selection_and_its_outline_lies_where_it_hangs():
    scan = made_scan()
    figure = grounding_figures.selection(scan, scan.sentences[0])
    axial, coronal, sagittal = figure.axes[:3]
    # Layers 1, 2, 3 of patches of 4 voxels: their middle slices, counted from 1.
    assert axial.get_title() == "axial, slice 7 of 8"
    assert coronal.get_title() == "coronal, slice 11 of 12"
    assert sagittal.get_title() == "sagittal, slice 15 of 16"
    place, selected = lines_of(axial)
    # The last index is anterior and right: the upper left corner of an axial picture, 16 x 12 mm.
    assert selected[..., 0].min() == 0
    assert selected[..., 0].max() == 4
    assert selected[..., 1].max() == 12
    assert selected[..., 1].min() == 8
    assert place[..., 0].max() == 16
    assert place[..., 0].min() == 12
    place, selected = lines_of(sagittal)
    assert selected[..., 1].max() == 16  # 8 slices of 2 mm
    assert len(place) == 0  # the place lies in another slice


def test_only_selected_patches_are_colored():
    scan = made_scan()
    axial = grounding_figures.selection(scan, scan.sentences[0]).axes[0]
    overlay = axial.images[1]
    alpha = np.asarray(overlay.get_alpha())
    assert (alpha > 0).sum() == 1
    assert np.asarray(overlay.get_array())[alpha > 0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("place", "window"),
    [
        ("lung_nodule", LUNG_HU),
        ("emphysema", LUNG_HU),
        ("left lung upper lobe", LUNG_HU),
        ("trachea", LUNG_HU),
        ("cardiomegaly", SOFT_TISSUE_HU),
        ("pleural_effusion", SOFT_TISSUE_HU),
        ("coronary arteries", SOFT_TISSUE_HU),
    ],
)
def test_window(place, window):
    assert grounding_figures.window_of(place) == window


def test_what_stands_above():
    scan = made_scan()
    (sentence,) = scan.sentences
    assert grounding_figures.describe(sentence) == (
        "1 of 24 patches; in the place of lung nodule: 2.5 times chance, at most 8.0"
    )
    (sentence,) = made_scan(score=Score(NAN, NAN)).sentences
    assert "no organ of the set shows" in grounding_figures.describe(sentence)
    grounding_figures.selection(made_scan(selected=np.zeros((2, 3, 4), bool)), sentence)  # nothing to outline


def made_results():
    group = Group(3, 16.0, 2, 2.5, 8.0, None)
    grounding = GroundingResult(group, {"lung": group}, {"lung_nodule": group}, None, {}, [made_scan()])
    values = {"own": 0.5, "other": 0.4, "none": 0.3, "gain_over_other": 0.1, "gain_over_none": 0.2}
    report = [
        ShownWord("The ", False, {"own": "the", "none": "the"}, {"own": True, "none": True}),
        ShownWord("heart ", True, {"own": "heart", "none": "lungs"}, {"own": True, "none": False}),
        ShownWord("<is>", True, {"own": "are", "none": "is"}, {"own": False, "none": True}),
    ]
    accuracy = {name: Accuracy(7, values, {}) for name in ("words", "finding_words")}
    return {"grounding": grounding, "masked_words": MaskedWordsResult(accuracy, {}, [report])}


def made_organs(count=2):
    shares, told = np.zeros((count, 2, 3, 4)), np.zeros((count, 2, 3, 4))
    shares[0, 1, 2, 3] = told[0, 0, 2, 3] = 1.0
    return ShownOrgans(np.full((8, 12, 16), -1000, np.int16), (2.0, 1.0, 1.0), shares, told)


def test_organs_are_told_on_the_slices_of_the_masks():
    panels = grounding_figures.organ_maps(made_organs(), ["heart", "lung"]).axes
    assert [panel.get_title() for panel in panels] == [
        f"{view}: {what}"
        for what in ("masks", "told by the model")
        for view in ("axial, layer 2 of 2", "coronal, layer 3 of 3", "sagittal, layer 4 of 4")
    ]
    masks, told = (panels[place].images[0].get_array() for place in (0, 3))
    assert masks.max() > 100  # the heart's color, upper left
    assert np.unravel_index(masks.sum(axis=-1).argmax(), masks.shape[:2])[1] < masks.shape[1] / 4
    assert told.max() < 100  # told in another layer; what is left are the lines of the grid
    many = grounding_figures.organ_maps(made_organs(12), [f"organ {index}" for index in range(12)])
    colors = {patch.get_facecolor() for patch in many.legends[0].get_patches()}
    assert len(colors) == 12


def test_page_of_organs_and_reconstructions(tmp_path):
    cube = np.zeros((8, 12, 16))
    results = {
        "organs": OrgansResult({"heart": Organ(3, 0.5, 0.4, None)}, {}, [made_organs(1)]),
        "reconstruction": ReconstructionResult(
            [Window("-160 to 240", 0.7, None)],
            {},
            [ShownReconstruction("-160 to 240", (2.0, 1.0, 1.0), cube, cube, cube)],
        ),
    }
    evaluation = Evaluation("test", 3, results, {}, None, 1.0)
    text = write_evaluation_page(tmp_path / "page.html", evaluation).read_text()
    assert text.count("<img") == 2
    for value in ("0.500", "0.400", "0.700", "Organs of patches", "Hidden patches"):
        assert value in text


def test_page(tmp_path):
    evaluation = Evaluation("test", 3, made_results(), {}, None, 1.0)
    text = write_evaluation_page(tmp_path / "page.html", evaluation).read_text()
    assert text.count("<img") == 1
    assert "A nodule &lt;b&gt; is seen." in text
    assert "2.5 times chance" in text
    with_volume, without = re.findall(r'<div class="words">(.*?)</div>', text)
    assert "with its volume: 1 of 2 found" in with_volume
    assert 'The <mark class="right">heart</mark> <mark class="wrong">are</mark>' in with_volume
    assert "<small>&lt;is&gt;</small>" in with_volume
    assert '<mark class="wrong">lungs</mark><small>heart</small> <mark class="right">' in without
    assert "<b>0.200</b>" in text
