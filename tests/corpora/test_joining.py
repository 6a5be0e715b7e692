"""Tables joined to volumes by id: nothing is dropped in silence."""

import csv

import pytest

from medclip_jax.corpora.joining import join, write_unmatched
from medclip_jax.corpora.tables import TableError


def test_both_sides_are_counted_and_listed():
    joining = join(["c", "a", "b"], {"reports": {"a": 1, "x": 2, "b": 3, "y": 4}, "labels": {"a": 5}})
    assert list(joining.matched["reports"].items()) == [("a", 1), ("b", 3)]
    assert joining.unmatched == {"reports": (("c",), ("x", "y")), "labels": (("c", "b"), ())}
    assert joining.remarks == (
        "reports: 2 of 3 volumes have a row; 1 has none (c); 2 rows have no volume (x, y)",
        "labels: 1 of 3 volumes have a row; 2 have none (c, b)",
    )


def test_a_complete_table_is_said_to_be_complete():
    joining = join(["a", "b"], {"reports": {"b": 1, "a": 2}}, unit="study")
    assert joining.remarks == ("reports: a row for each of 2 studies",)
    assert joining.unmatched == {"reports": ((), ())}


def test_an_id_of_several_volumes_counts_once():
    joining = join(["a", "a", "b"], {"reports": {"a": 1}})
    assert joining.unmatched["reports"] == (("b",), ())
    assert "1 of 2 volumes" in joining.remarks[0]


def test_remarks_show_five_ids_and_lists_all():
    ids = [f"v{number}" for number in range(12)]
    joining = join([], {"reports": dict.fromkeys(ids)})
    assert joining.remarks[0].endswith("12 rows have no volume (v0, v1, v2, v3, v4 and 7 more)")
    assert joining.unmatched["reports"][1] == tuple(ids)


def test_fifty_thousand_rows():
    keys = [f"train_{number}_a_1" for number in range(50_000)]
    joining = join(keys, {name: dict.fromkeys(keys[:-3]) for name in ("reports", "labels", "metadata")})
    assert joining.unmatched["labels"][0] == tuple(keys[-3:])


def test_the_list_names_every_id(tmp_path):
    joining = join(["a", "b"], {"reports": {"a": 1, "x": 2}, "labels": {}})
    assert write_unmatched(tmp_path / "list.csv", joining.unmatched) == 4
    with (tmp_path / "list.csv").open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows == [
        ["table", "missing", "id"],
        ["reports", "row", "b"],
        ["reports", "volume", "x"],
        ["labels", "row", "a"],
        ["labels", "row", "b"],
    ]


def test_a_list_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(TableError, match="a folder that exists"):
        write_unmatched(tmp_path / "nowhere" / "list.csv", {})
