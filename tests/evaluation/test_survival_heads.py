"""Survival heads against scikit-survival, and against the losses that models are trained with."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from medclip_jax.evaluation import survival_heads as heads
from medclip_jax.losses import survival

HORIZONS = (1.0, 6.0, 12.0)


def made(n=80, width=4, seed=0, ties=True):
    draw = np.random.default_rng(seed)
    inputs = draw.normal(size=(n, width))
    death = draw.exponential(9 * np.exp(-inputs[:, 0] - 0.5 * inputs[:, 1]))
    lost = draw.uniform(0, 24, size=n)
    time = np.minimum(death, lost)
    return inputs, np.ceil(time) if ties else time, death <= lost


@pytest.mark.parametrize("ties", [True, False])
def test_cox_of_scikit_survival(ties):
    inputs, time, event = made(ties=ties)
    for penalty, head in zip((20.0, 0.5), heads.fit_cox(inputs, time, event, (20.0, 0.5)), strict=True):
        fitted = CoxPHSurvivalAnalysis(alpha=penalty, ties="efron", tol=1e-12, n_iter=200)
        fitted.fit(inputs, Surv.from_arrays(event, time))
        np.testing.assert_allclose(head.weights, fitted.coef_, atol=1e-6)
        curves = fitted.predict_survival_function(inputs[:10])
        expected = np.array([[1 - curve(h) for h in HORIZONS] for curve in curves])
        np.testing.assert_allclose(head.probabilities(inputs[:10], HORIZONS), expected, atol=1e-6)


def test_the_partial_likelihood_is_the_loss_of_training():
    _, time, event = made()
    risk = np.random.default_rng(3).normal(size=len(time))
    value, slope = heads.partial_likelihood(risk, time, event)
    loss, _ = survival.cox(*(jnp.asarray(x, jnp.float32) for x in (risk, time, event)))
    assert value == pytest.approx(float(loss), rel=1e-5)
    direction = np.random.default_rng(4).normal(size=len(time))
    ends = [heads.partial_likelihood(risk + h * direction, time, event)[0] for h in (1e-6, -1e-6)]
    assert slope @ direction == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)
    inputs, w = made()[0], np.array([0.5, -0.2, 0.1, 0.0])
    curvature = heads._curvature(inputs, inputs @ w, time, event)
    for column, step in zip(curvature.T, np.eye(4) * 1e-5, strict=True):
        ends = [inputs.T @ heads.partial_likelihood(inputs @ (w + s), time, event)[1] for s in (step, -step)]
        np.testing.assert_allclose(column, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-6)
    nothing, flat = heads.partial_likelihood(risk, time, np.zeros(len(time), bool))
    assert nothing == 0
    assert not flat.any()


@pytest.mark.parametrize("ties", [True, False])
def test_discrete_head_minimizes_the_loss_of_training(ties):
    inputs, time, event = made(ties=ties)
    (head,) = heads.fit_discrete(inputs, time, event, (2.0,), HORIZONS)
    logits = inputs @ head.weights.T + head.intercepts
    loss, count = survival.discrete_hazards(
        *(jnp.asarray(x, jnp.float32) for x in (logits, time, event)), HORIZONS
    )
    assert head.loss(inputs, time, event, HORIZONS) == pytest.approx(float(loss / count), rel=1e-5)
    probabilities = head.probabilities(inputs, HORIZONS)
    hazards = survival.cumulative_hazards(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(probabilities, 1 - np.exp(-np.asarray(hazards)), atol=1e-6)
    assert (np.diff(probabilities, axis=1) > 0).all()

    def objective(flat):
        one = heads.DiscreteHead(flat.reshape(3, -1)[:, :-1], flat.reshape(3, -1)[:, -1])
        loss = one.loss(inputs, time, event, HORIZONS) * len(time)
        return loss + np.sum(one.weights**2)  # penalty 2

    found = np.column_stack([head.weights, head.intercepts]).ravel()
    best = minimize(objective, found, method="L-BFGS-B", options={"ftol": 1e-14})
    np.testing.assert_allclose(found, best.x, atol=2e-4)


def test_more_inputs_than_rows():
    inputs, time, event = made(n=20, width=50)
    (head,) = heads.fit_cox(inputs, time, event, (1.0,))
    _, slope = heads.partial_likelihood(inputs @ head.weights, time, event)
    np.testing.assert_allclose(inputs.T @ slope + head.weights, 0, atol=1e-4)


def test_an_interval_without_events_has_one_hazard_for_all():
    inputs, time, event = made()
    late = time > 6
    (head,) = heads.fit_discrete(inputs[late], time[late], event[late], (1.0,), HORIZONS)
    assert not head.weights[:2].any()
    rows = int(late.sum())
    np.testing.assert_allclose(1 / (1 + np.exp(-head.intercepts[:2])), 0.5 / (rows + 1))


def test_who_counts_in_which_interval():
    time, event = np.array([1.0, 1, 5, 6, 12, 20]), np.array([True, False, False, True, False, True])
    found = [(rows.tolist(), happened.tolist()) for rows, happened in heads.intervals(time, event, HORIZONS)]
    assert found == [
        ([0, 1, 2, 3, 4, 5], [True, False, False, False, False, False]),
        ([3, 4, 5], [True, False, False]),
        ([4, 5], [False, False]),
    ]
