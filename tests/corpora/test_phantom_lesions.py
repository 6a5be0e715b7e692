"""Lesions and label maps of phantoms: they lie on what was painted, and change nothing else."""

import csv
import dataclasses

import nibabel
import numpy as np
import pytest

from medclip_jax.corpora.phantom import PhantomSettings, generate, write
from medclip_jax.corpora.phantom.organs import LABELS, LARGE_ORGANS, LESION_CLASSES, LESIONS, LUNG_LOBES
from medclip_jax.corpora.phantom.settings import PREVALENCES

SICK = PhantomSettings(
    in_plane_mm=(3.0, 3.2),
    slice_mm=(3.5,),
    prevalences=dict(PREVALENCES) | dict.fromkeys(LESIONS, 1.0),
    severities=(0.6, 1.0),
)
"""Patients who have everything that a lesion map shows."""

COARSE = PhantomSettings(in_plane_mm=(6.0, 6.5), slice_mm=(8.0,))


@pytest.fixture(scope="module")
def sick():
    return [generate(3, index, settings=SICK) for index in range(3)]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("lung_nodule", -450, 250),
        ("consolidation", -200, 150),
        ("pleural_effusion", -40, 60),
        ("pericardial_effusion", -40, 70),
        ("emphysema", -1024, -880),
    ],
)
def test_each_lesion_is_where_its_densities_are(sick, name, low, high):
    inside = np.concatenate([phantom.voxels[phantom.lesions == LESIONS[name]] for phantom in sick])
    assert len(inside) > 20
    assert low < np.median(inside) < high


def test_nodules_have_about_the_volume_of_their_diameter():
    settings = dataclasses.replace(
        SICK,
        in_plane_mm=(2.0, 2.0),
        slice_mm=(2.0,),
        prevalences=dict.fromkeys(PREVALENCES, 0.0) | {"lung_nodule": 1.0},
        more_nodules=0.0,
        nodule_mm=(16.0, 24.0),
    )
    phantom = generate(5, 0, settings=settings)
    volume = (phantom.lesions == LESIONS["lung_nodule"]).sum() * 8.0
    assert volume == pytest.approx(np.pi / 6 * phantom.measurements["lung_nodule_mm"] ** 3, rel=0.45)
    assert set(np.unique(phantom.lesions)) == {0, LESIONS["lung_nodule"]}


def test_the_map_agrees_with_the_organ_map(sick):
    for phantom in sick:
        in_lung = np.isin(
            phantom.lesions, [LESIONS[n] for n in ("lung_nodule", "consolidation", "emphysema")]
        )
        assert np.isin(phantom.organs[in_lung], LUNG_LOBES).all()
        for value, name in ((205, "pericardial_effusion"), (206, "pleural_effusion")):
            np.testing.assert_array_equal(phantom.organs == value, phantom.lesions == LESIONS[name])


def test_names_are_those_of_findings():
    assert set(LESION_CLASSES.values()) <= set(PREVALENCES)


def test_label_maps_show_lesions_over_organs():
    phantom = generate(3, 0, settings=SICK)
    shown = phantom.label_map()
    np.testing.assert_array_equal(np.where(shown <= max(LESION_CLASSES), shown, 0), phantom.lesions)
    for name, values in LARGE_ORGANS.items():
        organ = np.isin(phantom.organs, values)
        assert (shown == LABELS[name]).sum() > 0.5 * organ.sum() > 0, name
        assert not (shown == LABELS[name])[~organ].any(), name


def test_label_maps_change_nothing_else(tmp_path):
    plain = write(tmp_path / "plain", 2, seed=4, settings=COARSE)
    with_maps = write(tmp_path / "maps", 2, seed=4, settings=COARSE, label_maps=True)
    assert not (tmp_path / "plain/label_maps").exists()
    rows = [list(csv.DictReader(table.open())) for table in (plain, with_maps)]
    for before, after in zip(*rows, strict=True):
        assert after.pop("label_classes") == "label_classes.json"
        shown = nibabel.load(with_maps.parent / after.pop("label_map"))
        assert after == before
        for column in ("volume", "organs"):
            one, other = (nibabel.load(table.parent / before[column]) for table in (plain, with_maps))
            np.testing.assert_array_equal(one.dataobj, other.dataobj)
            np.testing.assert_array_equal(other.affine, shown.affine)
    assert write(tmp_path / "maps", 2, seed=4, settings=COARSE, label_maps=True) == with_maps
