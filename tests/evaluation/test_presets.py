"""The file of protocols: everything in it goes together, and each protocol is a plan that can run."""

import pytest

from medclip_jax.evaluation.presets import (
    described,
    find_protocols,
    label_sets,
    listing,
    name_tables,
    plan_of,
    protocols,
    published_table,
)
from medclip_jax.evaluation.settings import check_evaluators
from medclip_jax.reports.prompts import WORDINGS
from medclip_jax.reports.vocabulary import CT_RATE_FINDINGS


@pytest.mark.parametrize("name", protocols())
def test_every_protocol_has_settings_that_its_evaluators_take(name):
    protocol = protocols()[name]
    plan = check_evaluators(protocol.plan)
    assert list(plan) == ([name] if len(protocol.evaluators) == 1 else list(protocol.plan))
    assert protocol.about
    assert "\n" not in protocol.about
    for _, settings in plan.values():
        assert settings.get("label_set", "ct_rate_18") in label_sets()
        assert settings.get("template", "mean7") in WORDINGS
    for one in protocol.published:
        assert 2020 <= one.year <= 2026
        assert all((one.model, one.metric, one.value, one.source))


def test_label_sets():
    assert label_sets()["ct_rate_18"].findings == CT_RATE_FINDINGS
    assert set(label_sets()["ct_rate_16"].findings) == set(CT_RATE_FINDINGS) - {
        "medical_material",
        "lymphadenopathy",
    }
    assert set(label_sets()["rad_chest_standard"].findings) == set(CT_RATE_FINDINGS) - {
        "coronary_calcification",
        "mosaic_attenuation",
    }
    assert len(label_sets()["merlin_30"].findings) == 30
    for one in label_sets().values():
        assert len(set(one.findings)) == len(one.findings)
        assert {*one.labels, *one.scores} <= set(one.findings)


def test_names_have_what_their_base_has():
    assert set(name_tables()["fvlm"]) == set(name_tables()["ct_rate"]) == set(CT_RATE_FINDINGS)
    assert name_tables()["fvlm"]["lung_nodule"] == "Nodule"
    assert name_tables()["fvlm"]["cardiomegaly"] == "Cardiomegaly"


def test_changes_are_stated():
    chosen = find_protocols("ct_rate/mean7, ct_rate/retrieval,ct_rate/mean7")
    plan = plan_of(chosen)
    assert list(plan) == ["ct_rate/mean7", "ct_rate/retrieval"]
    assert described(chosen, plan) == {name: name for name in plan}
    plan["ct_rate/mean7"] |= {"threshold": "validation", "draws": 0, "findings": ()}
    plan["ct_rate/retrieval"]["ks"] = (5, 10, 50, 100)  # as the file has it, in a list
    words = described(chosen, plan)
    assert words["ct_rate/mean7"] == "ct_rate/mean7, changed: threshold, draws, findings"
    assert words["ct_rate/retrieval"] == "ct_rate/retrieval"


def test_the_list_has_a_line_for_each():
    lines = listing().splitlines()
    for name in (*protocols(), *label_sets()):
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_published_values_say_whose_they_are():
    table = published_table(find_protocols("ct_rate/mean7"))
    expected = ("ct_rate/mean7", "valid", "RadFinder", "AUROC", "83.8 %", "RadFinder, MICCAI, 2026", "")
    assert table.rows == (expected,)
    assert "none is a result of yours" in str(table)
    assert published_table(find_protocols("ct_rate/hlip")) is None
