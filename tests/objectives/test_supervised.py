"""Classifiers: what their targets read, tell and are scored by; features and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax import objectives
from medclip_jax.models.heads import ClassifierHead, OrderedCuts, standardized
from medclip_jax.objectives import supervised, supervised_frames
from medclip_jax.objectives.base import DataSpec
from medclip_jax.objectives.targets import make_target
from tests.objectives.made_batches import SPEC, make_batch, small

FINDINGS = SPEC.findings


def config_of(**target):
    config = small(supervised.default_config())
    config.vision.update(depth=1, width=12)
    config.target.update(target)
    return config


def made(**target):
    return objectives.create(config_of(**target), SPEC, rngs=nnx.Rngs(0))


TARGETS = {
    "multi_label": {"findings": FINDINGS[1:3]},
    "reported": {"labels": "findings"},
    "multi_class": {"task": "multi_class", "findings": FINDINGS[2:5]},
    "grades": {"task": "multi_class", "measurement": "cac_grade", "edges": (1, 3)},
    "ordinal": {"task": "ordinal", "measurement": "cac_grade", "edges": (1, 2, 3, 4)},
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_loss_learns_what_is_scored(name):
    """Logits that tell the truth as `truths` has it have no loss, and count what is known there."""
    target = make_target(config_of(**TARGETS[name]).target, SPEC)
    batch = make_batch(9)
    batch["measurements"] = batch["measurements"].at[4].set(jnp.nan)
    columns = [
        {one: np.asarray(batch[field])[:, place] for place, one in enumerate(names)}
        for field, names in (
            ("labels", FINDINGS),
            ("findings", FINDINGS),
            ("measurements", SPEC.measurements),
        )
    ]
    truths = target.truths(*columns)
    assert tuple(truths) == target.outputs
    truth = np.stack(list(truths.values()), axis=1)
    assert truth.dtype == np.int8
    assert set(np.unique(truth)) == {-1, 0, 1}
    total, count = target.loss(jnp.asarray(50.0 * truth), batch)
    assert float(total) < 1e-6
    known = truth != 0
    assert float(count) == (known.sum() if target.task == "multi_label" else known.all(axis=1).sum())
    wrong, _ = target.loss(jnp.asarray(-50.0 * truth), batch)
    assert float(wrong) > 10
    if target.task == "multi_class":
        assert set((truth[known.all(axis=1)] == 1).sum(axis=1)) == {1}
    told = target.probabilities(jnp.asarray(50.0 * truth))
    np.testing.assert_array_equal((np.asarray(told) > 0.5)[known], (truth == 1)[known])


def test_grades_begin_at_their_edges():
    target = make_target(config_of(task="ordinal", measurement="cac_grade", edges=(0.1, 3)).target, SPEC)
    measured = np.array([0.0, 0.1, 2.9, 3.0, 7.0, np.nan], np.float32)
    truths = target.truths({}, {}, {"cac_grade": measured})
    np.testing.assert_array_equal(truths["cac_grade_from_0.1"], [-1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(truths["cac_grade_from_3"], [-1, -1, -1, 1, 1, 0])
    grades = make_target(config_of(task="multi_class", measurement="cac_grade", edges=(0.1, 3)).target, SPEC)
    assert grades.outputs == ("cac_grade_below_0.1", "cac_grade_0.1_to_3", "cac_grade_from_3")
    truths = grades.truths({}, {}, {"cac_grade": measured})
    np.testing.assert_array_equal(truths["cac_grade_0.1_to_3"], [-1, 1, 1, -1, -1, 0])


TIMED = {"time": "months", "event": "died"}


def test_hazards_tell_the_probability_of_an_event_by_each_horizon():
    target = make_target(config_of(task="hazards", horizons=(1, 6, 12), **TIMED).target, SPEC)
    assert target.outputs == ("died_by_1", "died_by_6", "died_by_12")
    assert target.scores == 3
    logits = jnp.array([[-1.0, 0.5, 2.0], [30.0, 0.0, 0.0]])
    hazards = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    np.testing.assert_allclose(target.probabilities(logits), 1 - np.cumprod(1 - hazards, axis=1), atol=1e-6)
    # Patients 0, 2, 4 are censored at 0, 4 and 8 months; 1, 3, 5 died at 2, 6, 10.
    batch = make_batch()
    total, count = target.loss(jnp.full((6, 3), -0.5), batch)
    h = 1 / (1 + np.exp(0.5))
    lived = -np.log1p(-h)
    expected = 0 + (lived - np.log(h)) + lived + (lived - np.log(h)) + 2 * lived + (2 * lived - np.log(h))
    np.testing.assert_allclose([total, count], [expected, 6], rtol=1e-5)


def test_what_came_after_the_last_look_is_unknown():
    target = make_target(config_of(task="hazards", horizons=(1, 6), **TIMED).target, SPEC)
    months = np.array([0.5, 0.5, 1, 6, 6, 9, 9, np.nan, 3])
    died = np.array([1, 0, 0, 1, 0, 1, 0, 1, np.nan])
    truths = target.truths({}, {}, {"months": months, "died": died})
    np.testing.assert_array_equal(truths["died_by_1"], [1, 0, -1, -1, -1, -1, -1, 0, 0])
    np.testing.assert_array_equal(truths["died_by_6"], [1, 0, 0, 1, -1, -1, -1, 0, 0])


def test_cox_compares_the_patients_of_a_batch():
    target = make_target(config_of(task="cox", **TIMED).target, SPEC)
    risk = np.array([0.3, -1.0, 0.2, 0.9, -0.4, 0.1])
    total, count = target.loss(jnp.asarray(risk)[:, None], make_batch())
    expected = sum(np.log(np.exp(risk[row:]).sum()) - risk[row] for row in (1, 3, 5))
    np.testing.assert_allclose([total, count], [expected, 3], rtol=1e-5)
    np.testing.assert_array_equal(target.probabilities(jnp.asarray(risk)[:, None])[:, 0], np.float32(risk))


def test_a_set_without_the_columns_has_no_truths():
    assert made(**TARGETS["ordinal"]).truths({}, {}, {"age_years": np.zeros(3)}) == {}
    assert made(**TARGETS["multi_class"]).truths({FINDINGS[2]: np.ones(3)}, {}, {}) == {}


@pytest.mark.parametrize("name", ["multi_class", "ordinal"])
def test_predictions_are_probabilities(name):
    model = made(**TARGETS[name])
    model.head.out.kernel[...] = model.head.out.kernel[...] * 300
    told = np.asarray(jax.jit(model.predict)(make_batch()))
    assert told.shape == (6, len(model.predicts))
    assert np.all((told >= 0) & (told <= 1))
    assert np.ptp(told) > 0.1
    if name == "multi_class":
        assert model.exclusive
        np.testing.assert_allclose(told.sum(axis=1), 1, atol=1e-5)
    else:
        assert np.all(np.diff(told, axis=1) <= 0)


def test_cuts_are_in_order_whatever_is_learned():
    cuts = OrderedCuts(4)
    cuts.bias[...] = jnp.array([-9.0, 0.0, 5.0])
    logits = np.asarray(cuts(jnp.array([[0.0], [2.0]])))
    np.testing.assert_allclose(logits[0, 0], 0)
    np.testing.assert_allclose(np.diff(logits, axis=1), [-np.log1p(np.exp([-9.0, 0.0, 5.0]))] * 2, atol=1e-6)
    np.testing.assert_array_equal(OrderedCuts(1)(jnp.ones((2, 1))), np.ones((2, 1)))


@pytest.mark.parametrize("layers", ["linear", "mlp"])
def test_heads_equal_their_layers(layers):
    head = ClassifierHead(6, 3, layers=layers, hidden=5, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(4, 6))
    weights = {name: np.asarray(leaf[...], np.float64) for name, leaf in _named(head)}
    expected = x
    if layers == "mlp":
        hidden = x @ weights["hidden/kernel"] + weights["hidden/bias"]
        hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
        from scipy.special import ndtr

        expected = hidden * ndtr(hidden)
    expected = expected @ weights["out/kernel"] + weights["out/bias"]
    np.testing.assert_allclose(head(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def _named(module):
    return [("/".join(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(nnx.state(module))]


def test_dropout_is_a_samples_own_and_keeps_the_mean():
    head = ClassifierHead(2000, 1, dropout=0.4, rngs=nnx.Rngs(0))
    head.out.kernel[...] = jnp.full((2000, 1), 1 / 2000)
    keys = jax.random.split(jax.random.key(0), 5)
    dropped = np.asarray(head(jnp.ones((5, 2000)), keys))[:, 0]
    np.testing.assert_allclose(dropped, 1, atol=0.08)
    assert len(set(dropped.tolist())) > 3
    np.testing.assert_array_equal(head(jnp.ones((2, 2000)), keys[3:])[:, 0], dropped[3:])
    np.testing.assert_allclose(head(jnp.ones((1, 2000))), 1, atol=1e-5)


def test_asap_features_are_those_before_the_final_norm():
    config = config_of()
    config.features = "asap"
    model = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    norm = model.vision.encoder.norm
    norm.scale[...] = jnp.zeros_like(norm.scale[...])  # what follows the norm would be 0
    batch = make_batch()
    found = np.asarray(model.pool_volumes(batch))
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=1), 1, atol=1e-3)
    states = model.vision.layer_states(model.vision.to_voxels(batch["volume"]))["block_1"]
    np.testing.assert_allclose(found, standardized(states.mean(axis=1)), atol=1e-4)


def test_calibration_is_for_towers_from_scratch():
    batch = make_batch()
    for calibrate in (False, True):
        config = config_of()
        config.vision.pooling = "grid"
        config.calibrate = calibrate
        model = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
        before = np.asarray(model.vision.encoder.grid_scale[...])
        model.calibrate(batch, jax.random.key(0))
        assert np.array_equal(before, model.vision.encoder.grid_scale[...]) != calibrate


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"task": "both"}, "target.task='both': use one of"),
        ({"labels": "report"}, "use one of labels, findings"),
        ({"findings": ("gout",)}, "names 'gout'; the findings of the shards are: pleural_effusion"),
        ({"task": "multi_class"}, "name two or more"),
        ({"task": "ordinal"}, "measurement is empty"),
        ({"task": "ordinal", "measurement": "cac_grade"}, "give where the grades"),
        ({"task": "ordinal", "measurement": "cac_grade", "edges": (2, 1)}, "from low to high"),
        (
            {"task": "ordinal", "measurement": "agatston", "edges": (1,)},
            "measurements of the shards are: age",
        ),
        ({"task": "hazards"}, "name the measurements of when and whether"),
        ({"task": "hazards", **TIMED}, "give times above 0, from early to late"),
        ({"task": "hazards", **TIMED, "horizons": (6, 1)}, "from early to late"),
        ({"task": "hazards", **TIMED, "horizons": (6,), "form": "logits"}, "use one of hazards, released"),
        ({"task": "hazards", "time": "days", "event": "died", "horizons": (6,)}, "target.time names 'days'"),
        ({"task": "cox", **TIMED, "horizons": (6,)}, "are for task 'hazards'"),
        ({"task": "cox", **TIMED, "ties": "exact"}, "use one of efron, breslow"),
        ({"task": "cox", **TIMED, "findings": FINDINGS}, "takes time and event alone"),
        ({"measurement": "cac_grade", "edges": (1,)}, "is for tasks 'multi_class' and 'ordinal'"),
        (
            {"task": "multi_class", "measurement": "cac_grade", "edges": (1,), "findings": FINDINGS},
            "leave one",
        ),
    ],
)
def test_errors_say_what_to_do(target, message):
    with pytest.raises(ValueError, match=message):
        made(**target)


def test_a_set_without_findings_is_refused():
    with pytest.raises(ValueError, match="prepare with --findings"):
        objectives.create(config_of(), DataSpec(SPEC.shape, SPEC.spacing), rngs=nnx.Rngs(0))
    for section, name in (("config", "features"), ("head", "layers")):
        config = config_of()
        (config if section == "config" else config.head)[name] = "cubic"
        with pytest.raises(ValueError, match=rf"{name}='cubic': use one of"):
            objectives.create(config, SPEC, rngs=nnx.Rngs(0))


def test_a_model_predicts_scans():
    from medclip_jax.evaluation.results import NotEvaluable
    from medclip_jax.inference.model import Model
    from medclip_jax.objectives import mae
    from medclip_jax.training.config import base_config

    config = base_config()
    config.objective = config_of(**TARGETS["multi_class"])
    objective = made(**TARGETS["multi_class"])
    model = Model(objective, SPEC, None, config.to_dict(), batch_size=2, progress=False)
    draw = np.random.default_rng(0)  # values that pass for HU: air, and tissue in disorder
    volumes = draw.normal(-950, 25, (3, *SPEC.shape))
    volumes = np.where(draw.random(volumes.shape) < 0.5, volumes, draw.normal(40, 60, volumes.shape))
    volumes = volumes.astype(np.int16)
    together, alone = model.predict(volumes), model.predict(volumes[1])
    assert list(alone) == list(FINDINGS[2:5])
    np.testing.assert_allclose(list(together[1].values()), list(alone.values()), atol=1e-6)
    np.testing.assert_allclose(
        list(alone.values()), objective.predict({"volume": volumes[1:2]})[0], atol=1e-5
    )
    assert "predicts: classes that exclude one another, from ground truth" in repr(model)
    other = objectives.create(small(mae.default_config()), SPEC, rngs=nnx.Rngs(0))
    with pytest.raises(NotEvaluable, match="the model predicts nothing by itself"):
        Model(other, SPEC, None, config.to_dict(), progress=False).predict(volumes)


@pytest.mark.parametrize("target", [{}, {"task": "ordinal", "measurement": "cac_grade", "edges": (1, 3)}])
def test_a_study_without_frames_takes_no_part(target):
    config = small(supervised_frames.default_config())
    config.target.update(target)
    model, batch = objectives.create(config, SPEC, rngs=nnx.Rngs(0)), make_batch()
    logits = jax.random.normal(jax.random.key(0), (6, len(model.predicts)))
    batch["frame_valid"] = batch["frame_valid"].at[2].set(0)

    @jax.jit
    def terms(logits):
        return {
            name: (term.sum, term.count) for name, term in model.couple({"logits": logits}, batch).items()
        }

    found, other = terms(logits), terms(logits.at[2].add(5.0))
    np.testing.assert_array_equal(found[model.target.task], other[model.target.task])
    field = model.target.field
    rows = [0, 1, 3, 4, 5]
    total, count = model.target.loss(logits[jnp.array(rows)], {field: batch[field][jnp.array(rows)]})
    np.testing.assert_allclose(found[model.target.task], (total, count), rtol=1e-6)
    np.testing.assert_allclose(found["without_frames"], (1, 6))
