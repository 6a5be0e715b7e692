"""A config's sections: what cannot be set, and who set what."""

import copy
import pickle

import pytest
from ml_collections import ConfigDict

from medclip_jax.sections import OpenSection, Section, SectionError, leaves, set_field


@pytest.fixture
def section():
    return Section(
        {"width": 8, "rate": 0.5, "tower": {"patch": (4, 4), "kind": "vit"}, "free": OpenSection()},
        name="config",
    )


def origins(section):
    return {name: origin for name, _, origin in leaves(section)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(s, "widht", 3), r"test_sections\.py:\d+: no config\.widht\. Did"),
        (lambda s: setattr(s.tower, "pacth", 3), r"pacth\. Did you mean config\.tower\.patch\?"),
        (lambda s: s.tower.update(pacth=3), r"test_sections\.py:\d+: no config\.tower\.pacth"),
        (lambda s: s.update({"tower": {"pacth": 3}}), r"no config\.tower\.pacth"),
        (lambda s: setattr(s, "tower", 3), r"config\.tower is a section, and cannot be 3"),
        (lambda s: setattr(s, "width", "8"), r"config\.width is a int \(now 8\) and cannot be '8'"),
    ],
)  # fmt: skip
def test_what_cannot_be_set(section, change, message):
    before = section.to_dict()
    with pytest.raises(ValueError, match=message):
        change(section)
    assert section.to_dict() == before


def test_reading_a_field_that_is_not_there_names_the_nearest(section):
    with pytest.raises(
        AttributeError, match=r"no config\.tower\.pacth\. Did you mean config\.tower\.patch\?"
    ):
        section.tower.pacth  # noqa: B018
    assert not hasattr(section, "pacth")
    assert section.get("pacth", 3) == 3


def test_each_field_tells_which_line_set_it(section):
    assert set(origins(section).values()) == {"default"}
    line = test_each_field_tells_which_line_set_it.__code__.co_firstlineno + 3
    section.width = 9
    section.tower.update(kind="resnet")
    set_field(section, "rate", 1, "override")
    assert origins(section) == {
        "width": f"tests/test_sections.py:{line}",
        "tower.kind": f"tests/test_sections.py:{line + 1}",
        "rate": "override",
        "tower.patch": "default",
        "free": "default",
    }
    section.tower = {"patch": (2, 2)}
    section.free = {"a": {"b": 1}}
    section.free.update(c={"d": 2})
    assert section.to_dict()["free"] == {"a": {"b": 1}, "c": {"d": 2}}
    assert section.rate == 1.0
    found = origins(section)
    assert found["tower.patch"].endswith(f":{line + 10}")
    assert found["free.a.b"].endswith(f":{line + 11}")
    assert found["free.c.d"].endswith(f":{line + 12}")


def test_a_section_that_is_put_in_is_the_same_section(section):
    """What is changed in it afterwards counts, and messages know where it is."""
    tower = Section({"patch": (8, 8), "kind": "vit"})
    section.tower = tower
    tower.kind = "resnet"
    assert section.tower.kind == "resnet"
    with pytest.raises(SectionError, match=r"no config\.tower\.kin\. Did you mean config\.tower\.kind"):
        tower.kin = "vit"
    plain = ConfigDict({"kind": "vit"})
    section.tower = plain
    with pytest.raises(AttributeError, match="kind"):
        plain.kin = 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda section: pickle.loads(pickle.dumps(section))])
def test_a_copy_is_locked_and_remembers(section, copied):
    section.tower.kind = "resnet"
    section.free = {"a": 1}
    again = copied(section)
    assert again == section
    assert origins(again) == origins(section)
    again.tower.kind = "vit"
    again.free.b = 2
    assert (section.tower.kind, section.free.to_dict()) == ("resnet", {"a": 1})
    with pytest.raises(SectionError, match=r"no config\.tower\.kin"):
        again.tower.kin = 3
    part = copied(section.tower)
    with pytest.raises(SectionError, match="kin"):
        part.kin = 3
