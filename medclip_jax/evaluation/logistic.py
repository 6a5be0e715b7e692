"""Logistic regression on a few features or many, weakly or strongly penalized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp


def fit_logistic(
    inputs: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], penalties: Sequence[float] = (1.0,)
) -> Float[np.ndarray, "P K1"]:
    """Weights (K) and intercept of L2-penalized logistic regressions (the intercept is free).

    Each minimizes ``sum log(1 + exp(-y z)) + penalty / 2 |w|^2``.

    Args:
        inputs: standardized.
        labels: in {-1, 1}, both of them.
        penalties: above 0, one for each regression. From strong to weak is fastest: each starts where the
            last one ended.

    Returns:
        One row for each penalty.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second: not for whoever fits nothing

    inputs = np.asarray(inputs, np.float64)
    basis = np.eye(inputs.shape[1])
    if len(inputs) < inputs.shape[1]:
        # The best weights are a sum of inputs: fewer numbers say the same.
        _, _, basis = np.linalg.svd(inputs, full_matrices=False)
        inputs = inputs @ basis.T
    model = LogisticRegression(solver="newton-cholesky", tol=1e-8, max_iter=200, warm_start=True)
    found = np.empty((len(penalties), basis.shape[1] + 1))
    for row, penalty in zip(found, penalties, strict=True):
        model.set_params(C=1 / penalty).fit(inputs, labels)
        row[:-1], row[-1] = model.coef_[0] @ basis, model.intercept_[0]
    return found


def fit_softmax(
    inputs: Float[np.ndarray, "N K"], classes: Int[np.ndarray, " N"], penalties: Sequence[float]
) -> list[Callable[[Float[np.ndarray, "M K"]], Float[np.ndarray, "M C"]]]:
    """L2-penalized regressions of several classes (multinomial; the intercepts are free).

    Each minimizes ``sum of -log softmax(z)[class] + penalty / 2 |W|^2``.

    Args:
        inputs: standardized, one column or more.
        classes: from 0 to C - 1, all of them.
        penalties: above 0, one for each regression; from strong to weak is fastest.

    Returns:
        For each penalty, what gives the log probabilities of the classes.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="lbfgs", tol=1e-6, max_iter=2000, warm_start=True)
    found = []
    for penalty in penalties:
        model.set_params(C=1 / penalty).fit(inputs, classes)
        found.append(partial(_log_softmax, model.coef_.copy(), model.intercept_.copy()))
    return found


def _log_softmax(
    weights: Float[np.ndarray, "C K"], shift: Float[np.ndarray, " C"], inputs: Float[np.ndarray, "M K"]
) -> Float[np.ndarray, "M C"]:
    logits = inputs @ weights.T + shift
    if len(shift) == 1:  # two classes are told by the second's log odds
        logits = np.column_stack([np.zeros(len(logits)), logits])
    return logits - logsumexp(logits, axis=1, keepdims=True)
