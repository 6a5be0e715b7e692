"""Findings by the names that people write."""

import pytest

from medclip_jax.reports.names import UnknownFinding, finding_name, is_finding
from medclip_jax.reports.prompts import pair
from medclip_jax.reports.vocabulary import CT_RATE_COLUMNS, FINDINGS


@pytest.mark.parametrize(
    "given",
    ["pericardial_effusion", "Pericardial effusion", "pericardial effusion", " PERICARDIAL-EFFUSION\n",
     "Pericardial  Effusions", "pericardial\u00a0effusion"],
)  # fmt: skip
def test_spellings_of_one_finding(given):
    assert finding_name(given) == "pericardial_effusion"
    assert is_finding(given)


def test_every_name_and_phrase_and_title_finds_its_own():
    for name, finding in FINDINGS.items():
        assert finding_name(name) == finding_name(name.upper()) == finding_name(finding.phrase) == name
    for title, name in CT_RATE_COLUMNS.items():
        assert finding_name(title) == finding_name(title.lower() + " ") == name


def test_among_the_columns_of_some_shards():
    assert finding_name("coronary artery wall calcification", ["coronary_calcification"]) == (
        "coronary_calcification"
    )
    assert finding_name("My Own", ["my_own"]) == "my_own"
    with pytest.raises(UnknownFinding, match=r"^unknown finding 'emphysema'; known: cardiomegaly$"):
        finding_name("emphysema", ["cardiomegaly"])


def test_unknown_names_say_what_is_near():
    with pytest.raises(
        UnknownFinding, match=r"'pericardal effusion', perhaps pericardial_effusion or .*; known:"
    ):
        finding_name("pericardal effusion")
    assert not is_finding("There is cardiomegaly.")
    assert not is_finding("")
    for kind in (KeyError, ValueError):  # whichever a caller caught before
        with pytest.raises(kind):
            finding_name("heartbreak")
    with pytest.raises(TypeError, match="is a string, not 3"):
        finding_name(3)


def test_prompts_take_them():
    assert pair("Mosaic attenuation pattern") == pair("mosaic_attenuation")
    assert pair("LUNG NODULES", "is_present")[0] == "Lung nodule is present"
