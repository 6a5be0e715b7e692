"""The pointing game on maps that are planted, against counts by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from medclip_jax.corpora.study import OUTSIDE_LABEL
from medclip_jax.evaluation import pointing
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.heatmaps import HeatMap
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.settings import check_evaluators
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pages.evaluation import write_evaluation_page

SHAPE = (3, 5, 4)
CLASSES = ("liver", "lung_nodule", "emphysema", "consolidation")


def made(n=24):
    """Nodules in every second volume, emphysema in every third; two volumes to a patient."""
    generator = np.random.default_rng(0)
    records = []
    for row in range(n):
        labels = np.zeros(SHAPE, np.uint8)
        labels[0] = 1
        if row % 2 == 0:
            labels[1, 1:3, generator.integers(0, 4)] = 2
        if row % 3 == 0:
            labels[2] = 3
        labels[:, 4] = OUTSIDE_LABEL
        volume = generator.integers(-1000, 100, SHAPE).astype(np.int16)
        records.append({"volume": volume, "label_map": labels})
    return records


def played(monkeypatch, records, heat_of, **settings):
    """The evaluator, with maps made by `heat_of` of the volume and of the direction of its prompt."""
    made_for = []

    def heat_map(objective, volume, positive, negative):
        made_for.append((positive, negative))
        heat = heat_of(next(r for r in records if r["volume"] is volume))
        return HeatMap(heat, heat, 0.5)

    monkeypatch.setattr(pointing, "heat_map", heat_map)
    spec = DataSpec(SHAPE, (3.0, 2.0, 1.0))
    embedder = SimpleNamespace(
        layout=SimpleNamespace(reads=("volume",), spec=spec),
        inputs=lambda record, row: record,
        objective=None,
        progress=False,
    )
    count = len(records)
    rows = np.arange(count)
    data = EmbeddedSplit("test", np.ones((count, 2), np.float32), rows, rows // 2, ids=[*map(str, rows)])
    result = pointing.evaluate_pointing(
        data,
        lambda texts: np.array([[len(text), 1.0] for text in texts], np.float32),
        **{"draws": 50} | settings,
        embedder=embedder,
        open_records=lambda arrays: (records, ()),
        open_label_maps=lambda: (records, CLASSES),
    )
    return result, made_for


def test_a_map_of_the_lesion_hits_and_a_flat_one_is_chance(monkeypatch):
    records = made()

    def heat(record):
        return 1.0 * (record["label_map"] == 2) + 0.5 * (record["label_map"] == 3)

    result, prompts = played(monkeypatch, records, heat)
    flat = result.metrics()
    assert flat["volumes/lung_nodule"] == 12
    assert flat["hit/lung_nodule"] == 1
    assert flat["chance/lung_nodule"] == pytest.approx(2 / (3 * 4 * 4))
    assert list(result.findings) == ["lung_nodule", "emphysema"]
    assert result.lacking == {"consolidation": "no volume shows it"}
    # In a volume with both, the nodule is the highest place: the map of emphysema misses there.
    assert flat["hit/emphysema"] == 0.5
    both = 0.5 * 16 / (2 + 0.5 * 16)
    assert flat["mass/emphysema"] == pytest.approx((1 + both) / 2)
    assert {negative for _, negative in prompts} == {None}
    constant, _ = played(monkeypatch, records, lambda r: np.full(SHAPE, 0.3))
    one = constant.metrics()
    for name in ("lung_nodule", "emphysema"):
        assert one[f"hit/{name}"] == pytest.approx(one[f"chance/{name}"], abs=1e-12)
        assert one[f"mass/{name}"] == pytest.approx(one[f"chance/{name}"], abs=1e-12)
    nothing, _ = played(monkeypatch, records, lambda r: np.zeros(SHAPE))
    assert nothing.metrics()["hit/emphysema"] == pytest.approx(one["chance/emphysema"], abs=1e-12)
    assert np.isnan(nothing.metrics()["mass_mean"])


def test_outside_of_the_scan_nothing_is_pointed_at(monkeypatch):
    def heat(record):
        found = 1.0 * (record["label_map"] == 2)
        found[record["label_map"] == OUTSIDE_LABEL] = 9
        return found

    result, _ = played(monkeypatch, made(), heat, findings=("lung_nodule",))
    assert result.metrics()["hit/lung_nodule"] == 1


def test_a_margin_in_mm():
    lesion = np.zeros(SHAPE, bool)
    lesion[1, 2, 1] = True
    assert pointing.within(lesion, 0.0, (3.0, 2.0, 1.0)) is lesion
    found = pointing.within(lesion, 2.0, (3.0, 2.0, 1.0))
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    expected = np.linalg.norm((at - [1, 2, 1]) * [3.0, 2.0, 1.0], axis=-1) <= 2
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == 6


def test_samples_are_drawn_and_intervals_are_over_patients(monkeypatch):
    generator = np.random.default_rng(3)
    result, _ = played(monkeypatch, made(), lambda r: generator.random(SHAPE), samples=7, draws=300)
    found = result.findings["emphysema"]
    assert len(found.rows) == 7
    assert (np.diff(found.rows) > 0).all()
    assert (found.rows % 3 == 0).all()
    low, high, _ = result.all_intervals()["hit/emphysema"]
    assert 0 <= low <= found.hits.mean() <= high <= 1
    task = result.scored()[""].tasks["emphysema"]
    np.testing.assert_array_equal(task.scores[0], found.hits)


def test_the_difference_of_both_prompts(monkeypatch):
    _, prompts = played(
        monkeypatch, made(), lambda r: np.ones(SHAPE), explain="difference", findings="emphysema"
    )
    positive, negative = prompts[0]
    assert len(positive) == len(negative) == 2


def test_on_the_page(monkeypatch, tmp_path):
    result, _ = played(monkeypatch, made(), lambda r: 1.0 * (r["label_map"] == 2) + 0.1, pictures=5)
    assert [one.finding for one in result.maps] == ["lung_nodule", "emphysema"]
    text = write_evaluation_page(
        tmp_path / "page.html", Evaluation("test", 24, {"pointing": result}, {}, None, 1.0)
    ).read_text()
    for part in (
        "Pointing game",
        "the highest place lies inside",
        "the highest place lies elsewhere",
        "too few",
    ):
        assert part in text
    assert text.count("data:image/png") == 2


def test_what_cannot_be_played_is_said(monkeypatch):
    records = made()
    for record in records:
        record["label_map"][:] = 0
    with pytest.raises(NotEvaluable, match="no label map of the split shows any of lung_nodule"):
        played(monkeypatch, records, lambda r: np.ones(SHAPE))
    monkeypatch.setattr(f"{__name__}.CLASSES", ("liver", "spleen"))
    with pytest.raises(NotEvaluable, match="none of these is a finding"):
        played(monkeypatch, records, lambda r: np.ones(SHAPE))
    with pytest.raises(ValueError, match="positive, difference"):
        check_evaluators({"pointing": {"explain": "both"}})
