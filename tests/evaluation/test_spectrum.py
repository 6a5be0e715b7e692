"""Spectra of tokens against NumPy's SVD, the tower's layers, the evaluator, and colors of tokens."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from medclip_jax.evaluation import pca
from medclip_jax.evaluation import spectrum_metrics as metrics
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.result_file import write_results
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.spectrum import evaluate_spectrum
from medclip_jax.models.encoder import Encoded, VisionEncoder
from medclip_jax.objectives.base import DataSpec, Embedding, Objective
from medclip_jax.objectives.towers import VisionTower, vision_defaults

SHAPE, SPACING = (4, 6, 4), (4.0, 3.0, 3.0)
SPEC = DataSpec(shape=SHAPE, spacing=SPACING)
VIT = {"patch": (2, 3, 2), "width": 12, "depth": 2, "heads": 2}
RESNET = {"depth": 18, "width": 4}


def tower(kind="vit", dtype="float32", **changes):
    config = ConfigDict(vision_defaults(kind))
    config.update(dtype=dtype, **({"vit": VIT, "resnet": RESNET}[kind] | changes))
    return VisionTower(config, SPEC, rngs=nnx.Rngs(1))


@nnx.jit
def looked_at(vision, volumes):
    """States of the layers, and what `encode` gives."""
    voxels = vision.to_voxels(volumes)
    return vision.layer_states(voxels), vision.encode(voxels).tokens


def names_of(vision):
    voxels = jax.ShapeDtypeStruct((1, *SHAPE, 1), jnp.float32)
    graph, state = nnx.split(vision)
    names = []
    jax.eval_shape(lambda x: names.extend(nnx.merge(graph, state).layer_states(x)), voxels)
    return names


def svd(tokens):
    return np.linalg.svd(tokens - tokens.mean(0), compute_uv=False)


def tokens_of_rank(rank, count=30, width=11):
    generator = np.random.default_rng(rank)
    return 5 + generator.normal(size=(count, rank)) @ generator.normal(size=(rank, width))


class TestMetrics:
    @pytest.mark.parametrize("shape", [(30, 11), (7, 19), (13, 13), (2, 5), (5, 1)])
    def test_singular_values_are_those_of_numpy(self, shape):
        tokens = 3 + np.random.default_rng(0).normal(size=shape)
        found = metrics.singular_values(tokens)
        assert found.shape == (min(shape),)
        # Centering takes one direction from fewer tokens than features: exactly 0 here.
        np.testing.assert_allclose(found, svd(tokens), rtol=1e-9, atol=1e-9)
        moments = metrics.Moments(shape[1])
        for part in np.array_split(tokens, [1, 2]):
            moments.add(part)
        np.testing.assert_allclose(moments.mean, tokens.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.singular_values(), svd(tokens), rtol=1e-9, atol=1e-6)

    def test_few_directions(self):
        tokens = tokens_of_rank(3)
        singular = metrics.singular_values(tokens)
        np.testing.assert_allclose(singular[:3], svd(tokens)[:3], rtol=1e-9)
        assert not singular[3:].any()  # no rounding is left that would count as a direction
        share = singular[:3] / singular.sum()
        expected = np.exp(-(share * np.log(share)).sum())
        assert metrics.effective_rank(singular) == pytest.approx(expected, rel=1e-12)
        assert 1 < expected < 3

    def test_alike_directions_count_fully(self):
        assert metrics.effective_rank(np.full(7, 0.3)) == pytest.approx(7)
        assert metrics.participation_ratio(np.full(7, 0.3)) == pytest.approx(7)
        assert metrics.first_share(np.full(7, 0.3)) == pytest.approx(1 / 7)

    def test_variances_of_unlike_directions(self):
        singular = np.array([3.0, 1.0, 0.0])
        assert metrics.participation_ratio(singular) == pytest.approx(100 / 82)
        assert metrics.first_share(singular) == pytest.approx(0.9)
        assert metrics.effective_rank(1e-200 * singular) == pytest.approx(metrics.effective_rank(singular))
        assert metrics.participation_ratio(1e-200 * singular) == pytest.approx(100 / 82)

    @pytest.mark.parametrize(
        "tokens",
        [np.zeros((4, 3)), np.ones((1, 5)), np.full((300, 64), 0.1), np.zeros((0, 3))],
        ids=["zeros", "one token", "equal tokens", "no token"],
    )
    def test_nothing_differs(self, tokens):
        singular = metrics.singular_values(tokens)
        assert not singular.any()
        assert metrics.effective_rank(singular) == metrics.participation_ratio(singular) == 0.0
        assert np.isnan(metrics.first_share(singular))

    def test_what_float32_cannot_hold_is_no_direction(self):
        generator = np.random.default_rng(0)
        tokens = generator.normal(size=24) * (1 + 1e-8 * generator.normal(size=(500, 24)))
        assert not metrics.singular_values(tokens.astype(np.float32)).any()

    def test_tokens_that_are_nearly_alike_keep_their_digits(self):
        # Sums of squares less the square of a sum, even in float64, would be off by half here.
        tokens = np.random.default_rng(0).normal(size=(2000, 5))
        moments = metrics.Moments(5)
        for part in np.array_split(tokens + 1e5, 9):
            moments.add(part)
        np.testing.assert_allclose(moments.singular_values(), svd(tokens), rtol=1e-8)

    def test_cosine_over_pairs(self):
        tokens = np.random.default_rng(1).normal(size=(9, 4))
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        pairs = (unit @ unit.T)[np.triu_indices(9, 1)]
        assert metrics.mean_cosine(tokens) == pytest.approx(pairs.mean(), rel=1e-12)
        assert metrics.mean_cosine(np.vstack([tokens, np.zeros(4)])) == pytest.approx(pairs.mean(), rel=1e-12)
        assert metrics.mean_cosine(np.ones((3, 2))) == pytest.approx(1)
        assert np.isnan(metrics.mean_cosine(np.ones((1, 2))))


class TestLayerStates:
    volume = np.random.default_rng(0).integers(-1000, 1000, (2, *SHAPE)).astype(np.int16)

    @pytest.mark.parametrize("changes", [{}, {"skip": True, "scan": True, "pre_norm": True}])
    def test_transformer(self, changes):
        vision = tower(**changes)
        assert names_of(vision) == ["patches", "block_1", "block_2", "final"]
        states, tokens = looked_at(vision, self.volume)
        assert {state.shape for state in states.values()} == {(2, 8, 12)}
        np.testing.assert_allclose(states["final"], tokens, rtol=1e-5, atol=1e-5)
        # The first block by hand, class token and all.
        embedded = vision.encoder._tokens(vision.to_voxels(self.volume), None)
        first = vision.encoder.blocks["0"](embedded)
        np.testing.assert_allclose(states["patches"], embedded[:, 1:], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(states["block_1"], first[:, 1:], rtol=1e-4, atol=1e-5)

    def test_residual_network(self):
        vision = tower("resnet")
        assert names_of(vision) == ["stem", "layer1", "layer2", "layer3", "layer4"]
        states, tokens = looked_at(vision, self.volume)
        assert [states[name].shape[-1] for name in names_of(vision)] == [4, 4, 8, 16, 32]
        np.testing.assert_allclose(states["layer4"], tokens, rtol=1e-5, atol=1e-6)

    def test_an_encoder_that_says_nothing_of_its_layers_shows_its_tokens(self):
        class Plain(VisionEncoder):
            def encode(self, voxels, keep=None, *, train=False):
                return Encoded.of(voxels.reshape(len(voxels), -1, 1), jnp.ones((len(voxels), 1)))

        found = Plain().layer_states(jnp.zeros((2, 3, 4, 5, 1)))
        assert {name: state.shape for name, state in found.items()} == {"final": (2, 60, 1)}


class Seeing(Objective):
    """A tower, and no text."""

    def __init__(self, kind="vit", **changes):
        self.vision = tower(kind, **changes)

    def embed_volumes(self, inputs):
        return Embedding(self.vision(inputs["volume"]))

    def volume_tower(self):
        return self.vision


def embedder_of(objective, batch_size=4):
    data = SimpleNamespace(text_length=6)
    return Embedder(objective, SPEC, data, None, batch_size=batch_size, progress=False)


def made_records(count=10):
    generator = np.random.default_rng(5)
    volumes = generator.integers(-1000, 900, (count, *SHAPE)).astype(np.int16)
    return [{"volume": volume, "study": index} for index, volume in enumerate(volumes)]


def split_of(count):
    ids = np.arange(count)
    return EmbeddedSplit("test", np.ones((count, 2), np.float32), ids, ids // 2)


def evaluated(objective, records, *, batch_size=4, **settings):
    return evaluate_spectrum(
        split_of(len(records)),
        None,
        embedder=embedder_of(objective, batch_size),
        open_records=lambda arrays: (records, ()),
        **settings,
    )


class TestEvaluator:
    @pytest.mark.parametrize("kind", ["vit", "resnet"])
    def test_numbers_are_those_of_the_towers_tokens(self, kind):
        objective, records = Seeing(kind), made_records()
        result = evaluated(objective, records, tokens=0, pictures=0)
        volumes = jnp.stack([record["volume"] for record in records])
        states, _ = looked_at(objective.vision, volumes)
        assert list(result.layers) == names_of(objective.vision)
        found = result.metrics()
        for name, state in states.items():
            state = np.asarray(state, np.float64)
            flat = state.reshape(-1, state.shape[-1])
            singular = svd(flat)
            np.testing.assert_allclose(result.layers[name].together, singular, rtol=2e-4, atol=1e-4)
            assert found[f"effective_rank/{name}"] == pytest.approx(
                metrics.effective_rank(singular), rel=1e-3
            )
            each = [metrics.effective_rank(svd(tokens)) / min(tokens.shape) for tokens in state]
            assert found[f"volume_rank/{name}"] == pytest.approx(np.mean(each), rel=2e-3, abs=1e-6)
            cosines = [metrics.mean_cosine(tokens) for tokens in state]
            np.testing.assert_allclose(result.layers[name].cosines, cosines, rtol=1e-4, atol=1e-5)
        assert result.maps is None

    def test_curves_say_all_that_the_numbers_follow_from(self, tmp_path):
        result = evaluated(Seeing(), made_records(), pictures=0)
        evaluation = Evaluation("test", 3, {"spectrum": result}, {}, None, 1.0)
        written = json.loads(write_results(tmp_path / "numbers.json", evaluation, {}).read_text())
        curves = written["curves"]["spectrum"]
        assert list(curves) == list(result.layers)
        for name, curve in curves.items():
            rank = metrics.effective_rank(np.array(curve["together"]))
            assert written["metrics"][f"spectrum/effective_rank/{name}"] == pytest.approx(rank, abs=1e-9)
            within = written["metrics"][f"spectrum/volume_rank/{name}"]
            assert within == pytest.approx(np.mean(curve["ranks"]), abs=1e-9)
            assert curve["decay"][0] == pytest.approx(1)

    def test_samples_and_tokens_are_drawn_and_stated(self):
        result = evaluated(Seeing(), made_records(), samples=3, tokens=5, pictures=2, batch_size=2)
        assert {layer.tokens for layer in result.layers.values()} == {5}
        assert {len(layer.ranks) for layer in result.layers.values()} == {3}
        assert len(result.maps.volumes) == 2
        assert result.conditions["n"].startswith("3 volumes of")
        assert result.conditions["tokens"] == "of each volume: 5, drawn at random, seed 0"
        again = evaluated(Seeing(), made_records(), samples=3, tokens=5, pictures=2, batch_size=16)
        assert again.metrics() == pytest.approx(result.metrics(), rel=1e-4)
        other = evaluated(Seeing(), made_records(), samples=3, tokens=5, pictures=0, seed=1)
        assert other.metrics() != pytest.approx(result.metrics(), rel=1e-4)

    def test_a_collapsed_tower_is_told(self):
        objective = Seeing()
        norm = objective.vision.encoder.norm
        norm.scale[...] = jnp.zeros_like(norm.scale[...])
        norm.bias[...] = jnp.ones_like(norm.bias[...])
        found = evaluated(objective, made_records()).metrics()
        assert found["effective_rank/final"] == found["volume_rank/final"] == 0
        assert np.isnan(found["first_share/final"])
        assert found["token_cosine/final"] == pytest.approx(1)
        assert found["effective_rank/block_2"] > 2

    def test_maps_lie_where_the_tokens_do(self):
        objective, records = Seeing(), made_records()
        maps = evaluated(objective, records, pictures=3).maps
        assert maps.layer == "final"
        assert maps.colors.shape == (3, *objective.vision.grid, 3)
        assert maps.spacings == [SPACING] * 3
        where = [next(i for i, r in enumerate(records) if (r["volume"] == v).all()) for v in maps.volumes]
        assert len(set(where)) == 3
        tokens = np.asarray(looked_at(objective.vision, maps.volumes)[1])
        expected = pca.token_colors(tokens)(tokens).reshape(maps.colors.shape)
        np.testing.assert_allclose(maps.colors, expected, atol=1e-3)

    def test_compiled_once_for_all_evaluations_of_a_run(self):
        embedder, records = embedder_of(Seeing()), made_records(3)
        for _ in range(2):
            evaluate_spectrum(
                split_of(3), None, embedder=embedder, open_records=lambda arrays: (records, ()), samples=3
            )
        assert [function._cache_size() for function in embedder._functions.values()] == [1, 1]

    def test_tokens_that_are_not_finite_are_an_error(self):
        objective = Seeing()
        objective.vision.encoder.norm.bias[...] = jnp.full(12, jnp.nan)
        with pytest.raises(ValueError, match="layer 'final' are not finite"):
            evaluated(objective, made_records())

    def test_needs_volumes_and_a_tower(self):
        assert embedder_of(Seeing()).lacks("volume tower") == ""

        class Blind(Seeing):
            def volume_tower(self):
                return None

        assert "no tower" in embedder_of(Blind()).lacks("volume tower")
        with pytest.raises(NotEvaluable, match="vectors alone"):
            evaluate_spectrum(split_of(3), None)

    def test_the_table_has_a_line_for_each_layer(self):
        result = evaluated(Seeing(), made_records())
        table = result.table()
        assert [row[0] for row in table.rows] == ["patches", "block_1", "block_2", "final"]
        assert "Token spectrum" in str(result)


class TestColors:
    def test_directions_of_most_variance(self):
        generator = np.random.default_rng(0)
        tokens = 4 + generator.normal(size=(5, 40, 6)) * np.array([1, 9, 0.1, 5, 0.2, 3])
        found = pca.token_colors(tokens)
        flat = tokens.reshape(-1, 6)
        _, singular, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
        np.testing.assert_allclose(np.abs(found.axes), np.abs(directions[:3]), atol=1e-9)
        np.testing.assert_allclose(found.shares, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-9)
        assert [int(np.abs(axis).argmax()) for axis in found.axes] == [1, 3, 5]
        assert (found.axes.max(axis=1) > 0.9).all()  # the heaviest feature weighs positively
        colors = found(tokens)
        assert colors.shape == (5, 40, 3)
        assert colors.min() == 0
        assert colors.max() == 1
        # One percent at either end share the outermost color.
        assert (colors == 1).mean() == pytest.approx(0.01, abs=0.005)

    def test_one_coloring_for_several_scans(self):
        tokens = np.random.default_rng(0).normal(size=(2, 30, 5))
        together = pca.token_colors(tokens)
        np.testing.assert_array_equal(together(tokens)[1], together(tokens[1]))

    def test_what_does_not_differ_is_gray(self):
        assert (pca.token_colors(np.ones((7, 4)))(np.ones((2, 4))) == 0.5).all()
        one = pca.token_colors(np.array([[0.0], [1.0]]))  # one feature: no second and third direction
        np.testing.assert_array_equal(one.axes[1:], 0)
        np.testing.assert_array_equal(one(np.array([[1.0]])), [[1.0, 0.5, 0.5]])

    def test_voxels_take_the_nearest_token(self):
        centers = (np.array([0.5, 2.5]), np.array([1.0]), np.array([0.0, 3.0]))
        nearest = pca.nearest_tokens(centers, (4, 3, 4))
        assert [list(index) for index in nearest] == [[0, 0, 1, 1], [0, 0, 0], [0, 0, 1, 1]]
        colors = np.arange(4.0).reshape(2, 1, 2)
        assert colors[np.ix_(*nearest)].shape == (4, 3, 4)


def test_the_towers_dtype_is_no_matter():
    exact, half = (
        evaluated(Seeing(dtype=dtype), made_records(), pictures=0).metrics()
        for dtype in ("float32", "bfloat16")
    )
    assert half["effective_rank/block_1"] == pytest.approx(exact["effective_rank/block_1"], rel=0.05)
    assert jax.config.jax_enable_x64 is False
