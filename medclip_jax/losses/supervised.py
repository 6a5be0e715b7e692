"""Labels as targets: findings that may go together, classes that exclude one another, ordered grades."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def multi_label(
    logits: Float[Array, "batch findings"], labels: Int[Array, "batch findings"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Binary cross-entropy of each finding, over those that are known, in float32.

    Args:
        logits: (B, F); their sigmoid is the probability of presence.
        labels: (B, F): above 0 present, below 0 absent, 0 unknown, which takes no part.

    Returns:
        Sum over what is known, and the number of known. The mean is sum / number; without any both are 0.
    """
    logits = logits.astype(jnp.float32)
    known = labels != 0
    losses = jax.nn.softplus(jnp.where(labels > 0, -logits, logits))
    return jnp.where(known, losses, 0.0).sum(), known.sum().astype(jnp.float32)


def multi_class(
    logits: Float[Array, "batch classes"], target: Int[Array, " batch"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of the softmax over classes that exclude one another, in float32.

    Args:
        logits: (B, C).
        target: (B,) class of each, from 0; below 0 unknown, which takes no part.

    Returns:
        Sum over the known rows, and their number. The mean is sum / number; without any both are 0.
    """
    known = target >= 0
    chosen = jnp.where(known, target, 0)[:, None]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), chosen, axis=1)[:, 0]
    return jnp.where(known, losses, 0.0).sum(), known.sum().astype(jnp.float32)


def ordinal(
    logits: Float[Array, "batch cuts"], grade: Int[Array, " batch"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Binary cross-entropy of "the grade is k or more" at each cut k, summed over the cuts, in float32.

    Args:
        logits: (B, T) for the grades 1 to T; the sigmoid of logit k is the probability of grade k or more.
        grade: (B,) from 0 to T; below 0 unknown, which takes no part.

    Returns:
        Sum over the known rows, and their number. The mean is sum / number; without any both are 0.

    References:
        Cao, Mirjalili and Raschka 2020, "Rank consistent ordinal regression for neural networks with
        application to age estimation", equation 4 with equal weights.
    """
    known = grade >= 0
    cuts = jnp.arange(1, logits.shape[1] + 1)
    reached = jnp.where(grade[:, None] >= cuts, 1, -1)
    total, _ = multi_label(logits, jnp.where(known[:, None], reached, 0))
    return total, known.sum().astype(jnp.float32)
