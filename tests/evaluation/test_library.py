"""Image to image search: numbers by brute force, pictures of volumes and of frames, and the page."""

from types import SimpleNamespace

import numpy as np
import pytest

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.library import evaluate_library
from medclip_jax.evaluation.pictures import view_arrays, views_of
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pages.evaluation import write_evaluation_page
from medclip_jax.pages.library import study_picture
from tests.evaluation.test_few_shot import CLASSES, made_splits

CT = DataSpec((5, 6, 8), (2.0, 1.0, 1.5))
CINE = DataSpec((), (None, None, None), views=("cine_lax", "cine_sa", "lge_sa"), frame_shape=(4, 6))


def made_split(signal=1.0, **changes):
    split = made_splits(signal)["test"]
    texts = {"impression": [f"<b>study {row}</b> & more. " * 40 for row in range(len(split.volumes))]}
    return EmbeddedSplit(**{**vars(split), "texts": texts, **changes})


def library(split, **settings):
    return evaluate_library(split, None, **{"classes": CLASSES, "draws": 40, "ks": (1, 5), **settings})


def records_of(spec, count):
    generator = np.random.default_rng(0)
    if spec.shape:
        return [{"volume": generator.integers(-1000, 800, spec.shape).astype(np.int16)} for _ in range(count)]
    found = []
    for row in range(count):
        record = {}
        for name, counts in (("cine_lax", (1, 3)), ("cine_sa", (3, 4)), ("lge_sa", (5, 1))):
            if row % 2 and name == "lge_sa":
                continue
            frames = generator.integers(0, 4096, (counts[0] * counts[1], *spec.frame_shape))
            record |= {
                name: frames.astype(np.int16),
                f"{name}_frames": np.array(counts, np.int32),
                f"{name}_spacing": np.array([8.0, 1.5, 1.0], np.float32),
            }
        found.append(record)
    return found


def given(spec, count=90):
    embedder = SimpleNamespace(layout=SimpleNamespace(spec=spec))
    return {"embedder": embedder, "open_records": lambda arrays: (records_of(spec, count), ())}


def test_precision_by_brute_force():
    split = made_split(signal=0.4)
    flat = library(split).metrics()
    similarity = split.volumes.astype(float) @ split.volumes.astype(float).T
    present = np.stack([split.labels[name] == 1 for name in CLASSES])
    truth = np.where(present.sum(axis=0) == 1, present.argmax(axis=0), -1)
    shares, chances = [], []
    for row in np.flatnonzero(truth >= 0):
        others = np.flatnonzero((truth >= 0) & (split.patients != split.patients[row]))
        nearest = others[np.argsort(-similarity[row, others])[:5]]
        shares.append(np.mean(truth[nearest] == truth[row]))
        chances.append(np.mean(truth[others] == truth[row]))
    assert flat["P@5/classes"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert flat["chance/classes"] == pytest.approx(np.mean(chances), abs=1e-12)
    own = np.array(shares)[truth[truth >= 0] == 2]
    assert flat[f"P@5/classes/{CLASSES[2]}"] == pytest.approx(own.mean(), abs=1e-12)
    effusion = split.labels["pericardial_effusion"]
    found = []
    for row in np.flatnonzero(effusion == 1):
        others = np.flatnonzero((effusion != 0) & (split.patients != split.patients[row]))
        found.append(np.mean(effusion[others[np.argsort(-similarity[row, others])[:1]]] == 1))
    assert flat["P@1/pericardial_effusion"] == pytest.approx(np.mean(found), abs=1e-12)
    assert flat["queries/pericardial_effusion"] == len(found)
    assert flat["P@1_mean"] == flat["P@1/pericardial_effusion"]


def test_planted_classes_stand_together_and_noise_does_not():
    clear = library(made_split()).metrics()
    assert clear["P@5/classes"] > 0.9
    assert 0.25 < clear["chance/classes"] < 0.4
    noise = np.random.default_rng(0).normal(size=(90, 30))
    flat = library(made_split(volumes=noise / np.linalg.norm(noise, axis=1, keepdims=True)))
    low, high, _ = flat.neighborhoods["classes"].intervals[5]
    assert low < flat.metrics()["chance/classes"] < high


def test_a_collapsed_model_has_the_precision_of_chance():
    flat = library(made_split(volumes=np.ones((90, 1), np.float32))).metrics()
    assert flat["P@5/classes"] == pytest.approx(flat["chance/classes"], abs=1e-12)


def test_cases_show_other_patients_and_one_volume_of_a_study():
    split = made_split(studies=np.arange(90) // 2, patients=np.arange(90) // 6)
    result = library(split, pictures=4, neighbors=3, **given(CT))
    assert len(result.cases) == 4
    texts = list(split.texts["impression"])
    for case in result.cases:
        query = texts.index(case.query.text)
        rows = [texts.index(entry.text) for entry in case.found]
        assert len({row // 2 for row in rows}) == len(rows) == 3
        assert all(split.patients[row] != split.patients[query] for row in rows)
        near = split.volumes[query] @ split.volumes[rows].T
        np.testing.assert_allclose([entry.similarity for entry in case.found], near, atol=1e-6)
        assert sorted(near, reverse=True) == near.tolist()
        for entry, row in zip(case.found, rows, strict=True):
            assert entry.present == tuple(name for name in split.labels if split.labels[name][row] == 1)
    # One class after the other.
    first = [next(name for name in CLASSES if name in case.query.present) for case in result.cases]
    assert first[:3] == list(CLASSES)
    assert first[3] == CLASSES[0]


def test_agreement_follows_the_class_of_the_query():
    split = made_split()
    (case, *_) = library(split, pictures=1, neighbors=60).cases
    texts = list(split.texts["impression"])
    column = split.labels[CLASSES[0]]
    column[texts.index(case.found[0].text)] = 0
    (case, *_) = library(split, pictures=1, neighbors=60).cases
    statuses = [column[texts.index(entry.text)] for entry in case.found]
    assert [entry.agrees for entry in case.found] == [{1: True, -1: False}.get(one) for one in statuses]
    assert {True, False, None} == {entry.agrees for entry in case.found}


def test_few_queries_are_too_few_to_show():
    split = made_split()
    split.labels["pericardial_effusion"][np.flatnonzero(split.labels["pericardial_effusion"] == 1)[9:]] = -1
    result = library(split)
    rows = {row[0]: row[1:] for row in result.table().rows}
    assert rows["pericardial_effusion"][0] == "9"
    assert rows["pericardial_effusion"][2:] == ("too few", "too few")
    assert "too few: fewer than 10 queries" in str(result)
    assert 0 <= result.metrics()["P@5/pericardial_effusion"] <= 1


def test_pictures_of_a_volume():
    record = records_of(CT, 1)[0]
    (view,) = views_of(record, CT)
    np.testing.assert_array_equal(view.pixels, record["volume"][2, ::-1, ::-1])
    assert view.spacing == (1.0, 1.5)
    assert view_arrays(CT) == ("volume",)
    resized = DataSpec((5, 6, 8), (None, None, None))
    assert view_arrays(resized) == ("volume", "volume_spacing")
    (own,) = views_of({**record, "volume_spacing": np.array([3, 2, 1], np.float32)}, resized)
    assert own.spacing == (2.0, 1.0)


def test_pictures_of_frames():
    full, part = records_of(CINE, 2)
    assert "cine_sa_frames" in view_arrays(CINE)
    moving, still = views_of(full, CINE)
    assert (moving.name, still.name) == ("cine_lax", "lge_sa")
    np.testing.assert_array_equal(moving.pixels, full["cine_lax"][0])
    np.testing.assert_array_equal(still.pixels, full["lge_sa"][2])
    one, other = views_of(part, CINE)
    assert (one.name, other.name) == ("cine_lax", "cine_sa")
    np.testing.assert_array_equal(other.pixels, part["cine_sa"][4])
    assert other.spacing == (1.5, 1.0)
    assert views_of({}, CINE) == ()


@pytest.mark.parametrize("spec", [CT, CINE])
def test_page(spec, tmp_path):
    result = library(made_split(), pictures=2, neighbors=3, **given(spec))
    picture = study_picture(result.cases[0].query)
    assert picture.startswith(b"\x89PNG")
    evaluation = Evaluation("test", 90, {"library": result}, {}, None, 1.0)
    text = write_evaluation_page(tmp_path / "page.html", evaluation).read_text()
    assert text.count("data:image/png") == 2 * 4
    assert "shared: hypertrophic cardiomyopathy" in text
    assert "&lt;b&gt;study" in text
    assert "<b>study" not in text
    assert "more. ..." in text or "&amp; more. &lt;b&gt;study" in text
    for patient in made_split().patients:
        assert f">{patient}<" not in text


def test_without_records_there_are_words_alone():
    (case,) = library(made_split(), pictures=1).cases
    assert case.query.views == ()
    assert study_picture(case.query).startswith(b"\x89PNG")
    assert library(made_split(), pictures=0).cases == ()


def test_what_cannot_be_looked_up():
    with pytest.raises(NotEvaluable, match="a single patient"):
        library(made_split(patients=np.zeros(90, np.int64)))
    with pytest.raises(ValueError, match="two or more"):
        library(made_split(), classes=CLASSES[:1])
    with pytest.raises(ValueError, match="use one of report"):
        library(made_split(), text="letter")
    few = library(made_split(), ks=(1, 500)).metrics()
    assert np.isnan(few["P@500/classes"])
