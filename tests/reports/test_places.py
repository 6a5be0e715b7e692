"""Where findings lie, and which organs of a set show it."""

import pytest

from medclip_jax.reports.definitions import BUILT_IN
from medclip_jax.reports.places import (
    PLACES,
    channels_of,
    finding_place,
    named_organs,
    named_places,
    read_places,
    region_name,
)
from medclip_jax.reports.regions import REGIONS, key_of

ORGANS = (
    "heart",
    "aorta",
    "coronary_arteries",
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "vertebrae",
    "pleural_effusion",
)


def organs(indices):
    return {ORGANS[index] for index in indices}


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ("heart", {"heart"}),  # and not what lies within
        ("lung", {"lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right"}),
        ("left lung", {"lung_upper_lobe_left", "lung_lower_lobe_left"}),
        ("lung upper lobe", {"lung_upper_lobe_left", "lung_upper_lobe_right"}),
        ("heart ventricle left", {"heart"}),
        ("vertebrae_T12", {"vertebrae"}),
        ("pleura", {"pleural_effusion"}),
        ("abdomen", set()),  # what is said of it in general is not about the aorta
        ("pericardium", set()),
        ("spleen", set()),
    ],
)
def test_organs_that_show_a_region(region, expected):
    assert organs(channels_of(key_of(region), ORGANS)) == expected


@pytest.mark.parametrize(
    ("finding", "sentence", "expected"),
    [
        ("lung_nodule", "A nodule of 6 mm is seen in the left upper lobe.", {"lung_upper_lobe_left"}),
        ("coronary_stenosis", "The lumen of the right coronary artery is narrowed.", {"coronary_arteries"}),
        # The finding's own place counts, whatever else the sentence names.
        ("cardiomegaly", "There is cardiomegaly and atherosclerosis of the aorta.", {"heart"}),
        ("emphysema", "There is emphysema.", {n for n in ORGANS if n.startswith("lung")}),
        ("pericardial_effusion", "A small pericardial effusion is present.", {"heart"}),
        ("pleural_effusion", "There is a pleural effusion.", {"pleural_effusion"}),
        ("atherosclerosis", "Plaques are seen in the aorta and the coronary arteries.",
         {"aorta", "coronary_arteries"}),
        ("lymphadenopathy", "Enlarged mediastinal lymph nodes are seen.", set()),
    ],
)  # fmt: skip
def test_organs_in_which_a_stated_finding_lies(finding, sentence, expected):
    assert organs(finding_place(finding, sentence, ORGANS)) == expected


def test_regions_that_a_sentence_names():
    found = named_places("Both lungs are clear, the spleen is of normal size.", ORGANS)
    assert {name: organs(channels) for name, channels in found.items()} == {
        "left lung": {"lung_upper_lobe_left", "lung_lower_lobe_left"},
        "right lung": {"lung_upper_lobe_right"},
    }


@pytest.mark.parametrize(
    "name", ["lung", "left lung upper lobe", "vertebrae t12", "right 7 rib", "heart", "something"]
)
def test_a_region_s_name_means_the_region(name):
    assert key_of(region_name(key_of(name))) == key_of(name)


def test_the_table_knows_its_findings_and_regions():
    assert PLACES.keys() <= BUILT_IN.keys()
    regions = {region.name for region in REGIONS}
    assert {name for names in PLACES.values() for name in names} <= regions


def test_entries_of_one_s_own():
    places = read_places(["lung_nodule=left lung upper lobe, lung", "mine=heart", "emphysema="])
    assert places["lung_nodule"] == ("left lung upper lobe", "lung")
    assert places["mine"] == ("heart",)
    assert places["consolidation"] == PLACES["consolidation"]
    said = "There is emphysema of the left upper lobe."
    assert organs(finding_place("emphysema", said, ORGANS, places)) == {"lung_upper_lobe_left"}
    with pytest.raises(ValueError, match="write FINDING=REGION"):
        read_places(["lung_nodule"])
    with pytest.raises(ValueError, match="no region 'lungg'; there are lung, "):
        read_places(["lung_nodule=lungg"])


@pytest.mark.parametrize(
    ("sentence", "organs", "shown"),
    [
        ("No pericardial effusion.", ("heart", "aorta"), {0}),
        ("No pericardial effusion.", ("heart", "pericardium"), {1}),
        ("No pericardial effusion.", ("aorta",), set()),
        ("Trachea and main bronchi are patent.", ("trachea", "lung_upper_lobe_left"), {0}),
        ("Main bronchi are patent.", ("trachea", "lung_upper_lobe_left"), {1}),
        ("Heart and aorta are normal.", ("aorta", "liver", "heart"), {0, 2}),
        ("Lungs are clear.", ("lung_upper_lobe_left", "heart", "lung_lower_lobe_right"), {0, 2}),
        ("The examination is limited.", ("heart",), set()),
    ],
)
def test_organs_of_a_sentence(sentence, organs, shown):
    assert named_organs(sentence, organs) == shown
