"""A small classifier on frozen features: two hidden layers, trained with Adam."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    Attributes:
        hidden: width of both hidden layers, with ReLU behind them.
        epochs: passes over the volumes to learn from, in batches of 16.
        learning_rate: of Adam.
    """

    hidden: int = 128
    epochs: int = 30
    learning_rate: float = 1e-4


def classify(
    inputs: Float[np.ndarray, "N P"],
    classes: Int64[np.ndarray, " N"],
    queries: Float[np.ndarray, "M P"],
    recipe: Recipe,
    *,
    seed: int,
) -> Float[np.ndarray, "M C"]:
    """Probabilities of the classes by a classifier that minimizes the cross-entropy.

    Args:
        inputs: features to learn from, standardized.
        classes: of each row, from 0 to C - 1, all of them; -1 where it is unknown.
        queries: features to classify.
        recipe: of the training.
        seed: of initial weights and order.

    Returns:
        float64.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier  # takes a second: not for whoever fits nothing
    from threadpoolctl import threadpool_limits

    known = classes >= 0
    model = MLPClassifier(
        (recipe.hidden, recipe.hidden),
        learning_rate_init=recipe.learning_rate,
        max_iter=recipe.epochs,
        batch_size=min(16, int(known.sum())),
        alpha=0.0,
        n_iter_no_change=recipe.epochs + 1,  # all epochs, however the loss goes
        random_state=seed,
    )
    # Products of 16 rows are small: threads would wait for one another.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs[known], classes[known])
    return model.predict_proba(queries).astype(np.float64)
