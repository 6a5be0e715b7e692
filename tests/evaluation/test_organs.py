"""Organs that a model tells of patches, and patches that it fills in: numbers known by hand."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.organs import evaluate_organs, overlap
from medclip_jax.evaluation.reconstruction import evaluate_reconstruction
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.objectives.base import DataSpec, Embedding, Objective, Reconstruction

SHAPE = (4, 4, 4)
SPEC = DataSpec(SHAPE, (2.0, 1.0, 1.0))
DATA = SimpleNamespace(text_length=8)
ORGANS = ("heart", "lung_left", "lung_right", "aorta")


class Teller(Objective):
    """Tells heart and lungs from the voxels of its two patches; fills hidden ones with 0."""

    predicts_organs = True
    reconstructs = True

    def volume_tower(self):
        return SimpleNamespace(grid=(2, 1, 1))

    def organ_names(self):
        return ("heart", "lung_left+lung_right", "spleen")

    def embed_volumes(self, inputs):
        return Embedding(jnp.ones((len(inputs["volume"]), 2)))

    def predict_organs(self, inputs):
        patches = inputs["volume"].reshape(-1, 2, 32).mean(axis=-1) / 100
        return jnp.stack([patches, 1 - patches, patches], axis=-1)

    def reconstructed_windows(self):
        return ((-1000.0, 0.0), (0.0, 100.0))

    def reconstruct(self, volumes, key):
        original = jnp.stack([volumes / 100, volumes / 50], axis=-1)
        hidden = (jnp.arange(4) >= 2)[:, None, None, None]
        visible = jnp.where(hidden, jnp.nan, original)
        return Reconstruction(original, visible, jnp.where(hidden, 0.0, original))


def made_records():
    """The heart fills the first patch by half, the lungs together the second; the last shows no heart."""
    organs = np.zeros((3, 4, 2, 2, 2), np.uint8)
    organs[:, 0, 0, :1] = 255
    organs[:, 1, 1, :, :1] = 255
    organs[:, 2, 1, :, 1:] = 255
    organs[2, 0] = 0
    volumes = np.zeros((3, *SHAPE), np.int16)
    volumes[:, :2] = np.array([50, 100, 0])[:, None, None, None]
    volumes[:, 2:] = 20
    return [{"volume": volumes[row], "organs": organs[row], "study": row} for row in range(3)]


def run(evaluate, organs=ORGANS, records=None, **settings):
    records = made_records() if records is None else records
    embedder = Embedder(Teller(), SPEC, DATA, None, batch_size=2, progress=False)
    count = len(records)
    split = EmbeddedSplit("test", np.ones((count, 2), np.float32), np.arange(count), np.arange(count))
    return evaluate(
        split,
        embedder.texts,
        **{"draws": 0, **settings},
        embedder=embedder,
        open_records=lambda fields: (records, organs),
    )


def test_overlap_of_each_organ():
    result = run(evaluate_organs)
    # Told 0.5, 0.2 and 1, 0.2 where there is 0.5, 0.
    heart = [2 * 0.5 / (0.7 + 0.5), 2 * 0.5 / (1.2 + 0.5)]
    assert result.organs["heart"].overlap == pytest.approx(np.mean(heart))
    assert result.organs["heart"].volumes == 2
    assert result.organs["heart"].mean_map == pytest.approx(2 * 0.25 / (0.25 + 0.5))  # one of two others
    lungs = [2 * 0.8 / (1.3 + 1), 2 * 0.8 / (0.8 + 1), 2 * 0.8 / (1.8 + 1)]
    assert result.organs["lung_left+lung_right"].overlap == pytest.approx(np.mean(lungs))
    assert result.organs["lung_left+lung_right"].mean_map == pytest.approx(1.0)
    assert list(result.organs) == ["heart", "lung_left+lung_right"]  # the set has no spleen
    assert result.metrics()["overlap_mean"] == pytest.approx(np.mean([np.mean(heart), np.mean(lungs)]))


def test_scans_and_intervals_of_organs():
    result = run(evaluate_organs, pictures=1, draws=20)
    (scan,) = result.scans
    np.testing.assert_allclose(scan.shares[0].ravel(), [0.5, 0])
    np.testing.assert_allclose(scan.told[1].ravel(), [0.5, 0.8], atol=1e-6)
    low, high, _ = result.organs["heart"].interval
    assert low < result.organs["heart"].overlap < high
    assert "heart" in str(result)


def test_organs_that_the_set_lacks():
    with pytest.raises(NotEvaluable, match=r"none of the organs .* heart, lung_left\+lung_right"):
        run(evaluate_organs, organs=("liver",) * 4)
    records = [{**record, "organs": record["organs"][:, :1]} for record in made_records()]
    with pytest.raises(NotEvaluable, match="do not divide into"):
        run(evaluate_organs, records=records)


def test_nothing_told_and_nothing_there():
    assert np.isnan(overlap(np.zeros(3), np.zeros(3)))
    assert overlap(np.ones(3), np.ones(3)) == 1.0


def test_variance_explained():
    result = run(evaluate_reconstruction, pictures=5, draws=20)
    # Hidden voxels are 0.2 and filled with 0; the visible mean is 0.5, 1 and 0.
    each = [1 - 0.2**2 / 0.3**2, 1 - 0.2**2 / 0.8**2, 1 - 0.2**2 / 0.2**2]
    for window in result.windows:  # the scale of a window changes nothing
        assert window.explained == pytest.approx(np.mean(each), abs=1e-5)
        assert window.interval.low < window.explained < window.interval.high
    assert [window.name for window in result.windows] == ["-1000 to 0", "0 to 100"]
    assert result.metrics().keys() == {"explained/0", "explained/1", "explained_mean"}
    assert len(result.volumes) == 2 * 2  # a batch of two volumes at most, in two windows
    shown = result.volumes[1]
    assert shown.window == "0 to 100"
    np.testing.assert_allclose(shown.original[:2], 1.0)
    assert np.isnan(shown.visible[2:]).all()
    np.testing.assert_array_equal(shown.completed[2:], 0)
    assert not run(evaluate_reconstruction, pictures=0).volumes
