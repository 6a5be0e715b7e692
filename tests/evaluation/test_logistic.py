"""Logistic regression against the optimum that SciPy finds, in float64."""

import numpy as np
import pytest
from scipy import optimize, special

from medclip_jax.evaluation.logistic import fit_logistic

STRENGTHS = (100.0, 1.0, 0.01, 0.0001)


def loss(parameters, inputs, labels, penalty):
    """Penalized negative log-likelihood, its gradient and its Hessian."""
    weights, margin = parameters[:-1], labels * (inputs @ parameters[:-1] + parameters[-1])
    extended = np.column_stack([inputs, np.ones(len(inputs))])
    free = penalty * np.append(np.ones(len(weights)), 0)
    value = np.logaddexp(0, -margin).sum() + penalty / 2 * weights @ weights
    gradient = extended.T @ (-labels * special.expit(-margin)) + free * parameters
    curvature = special.expit(margin) * special.expit(-margin)
    return value, gradient, extended.T @ (extended * curvature[:, None]) + np.diag(free)


def optimum(inputs, labels, penalty):
    return optimize.minimize(
        lambda p: loss(p, inputs, labels, penalty)[:2],
        np.zeros(inputs.shape[1] + 1),
        jac=True,
        hess=lambda p: loss(p, inputs, labels, penalty)[2],
        method="trust-exact",
        options={"gtol": 1e-11, "maxiter": 5000},
    ).x


@pytest.mark.parametrize(("rows", "features"), [(5, 40), (80, 10), (60, 60), (40, 130)])
def test_equals_the_optimum(rows, features):
    """More rows than features and fewer, separable or not, strong penalty or weak."""
    generator = np.random.default_rng(rows)
    inputs = generator.normal(size=(rows, features))
    labels = np.where(inputs[:, 0] + generator.normal(size=rows) > 0.7, 1, -1)
    labels[:2], labels[2:4] = 1, -1
    penalties = [rows * strength for strength in STRENGTHS]
    for penalty, found in zip(penalties, fit_logistic(inputs, labels, penalties), strict=True):
        expected = optimum(inputs, labels, penalty)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        value, best = (loss(p, inputs, labels, penalty)[0] for p in (found, expected))
        assert value == pytest.approx(best, rel=1e-6)


def test_a_start_from_another_penalty_changes_nothing():
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(30, 4))
    labels = np.where(inputs.sum(axis=1) + generator.normal(size=30) > 0, 1, -1)
    (alone,) = fit_logistic(inputs, labels, (3.0,))
    _, after = fit_logistic(inputs, labels, (300.0, 3.0))
    np.testing.assert_allclose(alone, after, atol=1e-5)
