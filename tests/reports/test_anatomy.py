"""Which sentence goes to which organ, and whether it states anything abnormal."""

import importlib.util
from pathlib import Path

import pytest

from medclip_jax.reports.anatomy import assign_sentences, is_known, organ_sentences, regions_of, states_normal
from medclip_jax.reports.regions import HEADS, key_of

TOOL = Path(__file__).resolve().parents[2] / "tools" / "measure_anatomy.py"

LOBES = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)


def named(*regions):
    return {key_of(region) for region in regions}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("left lung lower lobe", "lung_lower_lobe_left"),
        ("right heart atrium", "heart_atrium_right"),
        ("thoracic vertebrae 12 (t12)", "vertebrae_T12"),
        ("left rib 7", "rib_left_7"),
        ("left adrenal gland", "adrenal_gland_left"),
        ("left clavicle", "clavicula_left"),
        ("thyroid gland", "thyroid"),
        ("heart tissue", "heart"),
        ("trachea and bronchie", "bronchi_trachea"),
    ],
)
def test_names_of_both_archives_mean_one_region(ours, theirs):
    assert key_of(ours) == key_of(theirs)
    assert is_known(ours)
    assert not is_known("left shoe")


@pytest.mark.parametrize(
    ("sentence", "regions"),
    [
        ("A nodule in the lower lobe of the left lung.", ("left lung lower lobe",)),
        ("Atelectasis in the right lower lobe and the left upper lobe.", LOBES[4:] + LOBES[:1]),
        ("Bands in the middle lobe and the inferior lingular segment.", (LOBES[3], LOBES[0])),
        (
            "Opacities in the middle lobe of the right lung and the lower lobes of both lungs.",
            (LOBES[3], LOBES[1], LOBES[4]),
        ),
        ("Nodules in the lower and middle lobes of the right lung.", (LOBES[4], LOBES[3])),
        ("No mass in both lungs.", ("left lung", "right lung")),
        ("The lung parenchyma is clear.", ("lung",)),
        ("Emphysema in the upper lobes.", ("lung upper lobe",)),
        ("In the lung parenchyma window; both main bronchi are open.", ("bronchie",)),
        ("When examined in the lung window; no infiltration was seen.", ("lung",)),
        ("Trachea and both main bronchi are open.", ("trachea", "bronchie")),
        ("No pleural or pericardial effusion.", ("pleura", "pericardium")),
        ("Calcific plaques in the aorta and coronary arteries.", ("aorta", "coronary arteries")),
        ("The ascending aorta measures 46 mm.", ("heart ascending aorta",)),
        ("No enlarged paratracheal lymph nodes.", ("mediastinal lymph nodes",)),
        ("No enlarged lymph node was seen.", ("mediastinal lymph nodes",)),
        ("A stone in the upper pole of the left kidney.", ("left kidney",)),
        ("Both adrenal glands are normal.", ("left adrenal gland", "right adrenal gland")),
        ("Compression fractures of the T5 and L1 vertebrae.", ("vertebrae_T5", "vertebrae_L1")),
        ("Fracture line in the 6th and 7th ribs on the left.", ("left rib 6", "left rib 7")),
        ("Upper abdominal organs are normal.", ("abdomen",)),
        ("No free fluid in the abdomen.", ("peritoneum",)),
        ("No free fluid or collection.", ("peritoneum",)),
        ("It is stable.", ()),
    ],
)
def test_regions_of_a_sentence(sentence, regions):
    assert regions_of(sentence) == named(*regions)


def test_a_sentence_may_belong_to_several_organs_and_order_is_the_reports():
    report = "The aorta is normal. No effusion in the pericardial or pleural space. The heart is enlarged."
    found = assign_sentences(report, ["pleura", "heart", "aorta", "liver", "unheard of"])
    assert found == {
        "pleura": "No effusion in the pericardial or pleural space.",
        "heart": "No effusion in the pericardial or pleural space. The heart is enlarged.",
        "aorta": "The aorta is normal.",
    }


def test_an_organ_without_its_own_takes_what_is_said_of_what_contains_it():
    report = "No mass in both lungs. A nodule in the right upper lobe. Consolidation in the lower lobes."
    found = assign_sentences(report, LOBES)
    assert found == {
        "lung_upper_lobe_left": "No mass in both lungs.",
        # The left lung and the lower lobes contain it, neither the other.
        "lung_lower_lobe_left": "No mass in both lungs. Consolidation in the lower lobes.",
        "lung_upper_lobe_right": "A nodule in the right upper lobe.",
        "lung_middle_lobe_right": "No mass in both lungs.",
        "lung_lower_lobe_right": "No mass in both lungs. Consolidation in the lower lobes.",
    }
    own = assign_sentences(report, LOBES, containing=False)
    assert own == {"lung_upper_lobe_right": "A nodule in the right upper lobe."}
    # Of the whole, everything that is said of its parts; nothing twice.
    assert assign_sentences(report + " " + report, ["lung"])["lung"] == report


def test_general_statements_do_not_reach_what_they_do_not_mean():
    report = "Upper abdominal organs are normal. Osteophytes along the thoracic vertebrae. No enlarged nodes."
    organs = ("liver", "aorta", "inferior_vena_cava", "spinal_cord", "vertebrae_T12")
    assert assign_sentences(report, organs) == {
        "liver": "Upper abdominal organs are normal.",
        "vertebrae_T12": "Osteophytes along the thoracic vertebrae.",
    }


def test_paths_are_taken_as_they_are():
    paths = {
        "": "The heart is enlarged. A nodule.",
        "lung": "A nodule. No mass.",
        "lung/lung/left lung/left lung lower lobe": "A nodule.",
        "heart/heart/heart tissue": "It is enlarged.",
        "others/unheard of": "Something.",
    }
    organs = ("lung", "lung_lower_lobe_left", "lung_upper_lobe_left", "heart", "heart_atrium_left", "others")
    assert organ_sentences(paths, organs) == {
        "lung": "A nodule. No mass.",
        "lung_lower_lobe_left": "A nodule.",
        "lung_upper_lobe_left": "No mass.",
        "heart": "It is enlarged.",
        "heart_atrium_left": "It is enlarged.",
        "others": "Something.",
    }
    assert set(organ_sentences(paths, organs, containing=False)) == {
        "lung",
        "lung_lower_lobe_left",
        "heart",
        "others",
    }
    assert organ_sentences({}, organs) == {}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The heart is normal in size. There is no pericardial effusion.", True),
        ("No mass or nodule was detected in both lungs.", True),
        ("The thoracic aorta has a normal course.", True),
        ("", True),
        ("The heart is enlarged.", False),
        ("Possible consolidation.", False),
        ("There is no effusion. A 4 mm structure is seen.", False),
        ("No lesion above 5 mm is seen.", True),
        ("Mild osteophytes along the spine.", False),
        ("A simple cyst is seen in the liver.", False),
        ("The gallbladder was operated.", False),
        ("No fracture, but a lytic area.", False),
    ],
)
def test_normal_texts(text, normal):
    assert states_normal(text) is normal


def test_heads_are_known_regions():
    assert all(is_known(head) for head in HEADS)


def test_score_on_real_sentences_that_tuned_nothing(report_data):
    """The floor of the held-out half: micro F1 0.91."""
    table = report_data / "radgenome_region_sentences_200.csv"
    if not table.exists():
        pytest.skip(f"no {table.name} there")
    spec = importlib.util.spec_from_file_location("measure_anatomy", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    sentences = tool.read_half(table, "report")
    assert len(sentences) == 1559
    right, wrong, missed = (counts.total() for counts in tool.measure(sentences))
    assert 2 * right / (2 * right + wrong + missed) >= 0.91
