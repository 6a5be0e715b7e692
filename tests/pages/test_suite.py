"""The suite's page: best marked, ties and intervals, dashes with their reasons."""

import math
import re

import pytest

from medclip_jax.pages.suite import Column, Score, Suite, suite_figure, write_suite_page

NAN = math.nan


def made(best="highest", **scores):
    """A suite of one task, "auroc"."""
    return Suite(
        systems={name: name.upper() for name in scores},
        tasks={"auroc": Column("AUROC <b>", "about it", "0.5", best, 3)},
        scores={name: {"auroc": score} for name, score in scores.items()},
        about={name.upper(): "a system" for name in scores},
        seconds={"train": (30.0, 20.0), "evaluate": (10.0, 0.0)},
        facts={"scans to test on": "13", "machine": "two cores of a long name"},
        commands="medclip evaluate --suite phantom",
        notes=["a note"],
    )


@pytest.mark.parametrize(
    ("best", "scores", "expected"),
    [
        ("highest", {"a": Score(0.7, 0.6, 0.8), "b": Score(0.6)}, {"a": "best", "b": "near"}),
        ("highest", {"a": Score(0.7, 0.65, 0.8), "b": Score(0.6)}, {"a": "best"}),
        ("lowest", {"a": Score(0.7), "b": Score(0.6, 0.5, 0.65)}, {"b": "best"}),
        ("highest", {"a": Score(0.7), "b": Score(0.7)}, {"a": "best", "b": "best"}),
        ("highest", {"a": Score(0.7), "b": Score(NAN, reason="no text")}, {"a": "best"}),
        ("highest", {"a": Score(NAN), "b": Score(NAN)}, {}),
        ("", {"a": Score(3.0), "b": Score(4.0)}, {}),
    ],
)
def test_marks(best, scores, expected):
    assert made(best, **scores).marks("auroc") == expected


def test_cells():
    assert Score(0.81234, 0.7, 0.9).text() == "0.812 [0.700, 0.900]"
    assert Score(12.34).text(1) == "12.3"
    assert Score(NAN, reason="why").text() == "–"


def test_page(tmp_path):
    suite = made(a=Score(0.7, 0.65, 0.8), b=Score(0.6), c=Score(NAN, reason="it has <no> text"))
    text = write_suite_page(tmp_path / "out" / "suite.html", suite).read_text()
    assert '<td class="best">0.700<br><small>[0.650, 0.800]</small></td>' in text
    assert "<td>0.600</td>" in text
    assert "<td>–</td>" in text
    assert "it has &lt;no&gt; text" in text
    assert "AUROC &lt;b&gt;" in text
    assert re.search(r"together</td><td>40 s</td><td>20 s", text)
    assert "a note" in text


def test_the_figure_has_a_panel_for_each_task_with_values():
    figure = suite_figure(made(a=Score(0.7, 0.65, 0.8), b=Score(0.6), c=Score(NAN)))
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 1
    points = [line for line in shown[0].lines if line.get_marker() == "o"]
    assert sorted(float(line.get_xdata()[0]) for line in points) == [0.6, 0.7]
    assert suite_figure(made(a=Score(NAN))).axes
