"""Which names of masks may be written into a set: organs', and nothing that could be a patient's."""

import pytest

from medclip_jax.corpora.organ_names import is_organ_name
from medclip_jax.corpora.phantom import ORGANS
from medclip_jax.reports.regions import HEADS, REGIONS


def test_names_in_use():
    sides = [f"{side} {region.name}" for region in REGIONS if region.paired for side in ("left", "right")]
    assert all(map(is_organ_name, [*ORGANS, *HEADS, *sides, *(region.name for region in REGIONS)]))


@pytest.mark.parametrize(
    "name",
    [
        *("kidney_cyst_left", "portal_vein_and_splenic_vein", "iliac_vena_right", "gluteus_maximus_left"),
        *("vertebrae_T12", "vertebrae_S1", "rib_left_7", "rib_right_12", "autochthon_right", "Heart"),
        *("lung_trachea_bronchia", "heart_atrium_left", "left-ventricle", "lung nodules", "lung_vessels"),
        *("clavicula_left", "subclavian_artery_right", "intervertebral_discs", "subcutaneous_fat", "LV"),
    ],
)
def test_organs(name):
    assert is_organ_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("PHI-778812_Mueller_heart", "Mueller_vertebrae_T12", "heart_1948", "heart 13", "heart_7_11", ""),
        *("王伟_heart", "heart.mueller", "heart\u200bmueller", "1", "T12", "segmentation", "heart_hans"),
        *("heart__müller", "rib_left_7_T12", "DOE^JANE", "heart " * 8, "20240101_lung", "heart.nii", "stern"),
    ],
)
def test_names_that_could_be_a_patients(name):
    assert not is_organ_name(name)
