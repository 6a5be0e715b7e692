"""Time to an event, where some patients are lost to follow-up before it: discrete hazards, and Cox.

All take `time` and `event` of each patient: the time of the event where `event` is 1, and the time at which
the patient was last known to be without it (censored) where it is 0. A NaN in either is unknown: that row
counts nowhere. A patient who is censored at the time of someone's event was still at risk of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

FORMS = ("hazards", "released")
"""What `discrete_hazards` takes its logits for."""

TIES = ("efron", "breslow")
"""How `cox` counts events at the same time."""


def discrete_hazards(
    logits: Float[Array, "batch horizons"],
    time: Num[Array, " batch"],
    event: Num[Array, " batch"],
    horizons: Sequence[float],
    *,
    form: str = "hazards",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Negative log likelihood of hazards in the intervals that end at the horizons, in float32.

    The sigmoid of logit j is the probability h_j of the event within (horizon j-1, horizon j], given that it
    has not come before; the first interval starts at 0. An event in interval k costs
    ``-log h_k - sum over j < k of log(1 - h_j)``. Who is censored, or has the event after the last horizon,
    costs ``-sum of log(1 - h_j)`` over the intervals that were lived through to the end.

    Args:
        logits: (B, T).
        time: (B,) of event or censoring, in the unit of the horizons; NaN unknown.
        event: (B,) 1 event, 0 censored; NaN unknown.
        horizons: T ends of intervals, increasing, above 0.
        form: "hazards", or "released": twice that, plus the binary cross-entropy of the same logits with "had
            the event by horizon j", over the horizons at which that is known, divided by T. The two read
            the logits as different probabilities, which agree in the first interval alone; it is what
            published code for INSPECT does.

    Returns:
        Sum over the known rows, and their number. The mean is sum / number; without any both are 0.

    Raises:
        ValueError: horizons that do not increase, or are not as many as the logits; an unknown `form`.

    References:
        Gensheimer and Narasimhan 2019, "A scalable discrete-time survival model for neural networks",
        equation 1, with censored patients counted through their completed intervals.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown: use one of {', '.join(FORMS)}")
    _check_horizons(horizons, logits.shape[1])
    logits = logits.astype(jnp.float32)
    time, event, known = _outcomes(time, event)
    ends = jnp.asarray(tuple(horizons), jnp.float32)
    starts = jnp.concatenate([jnp.zeros(1), ends[:-1]])

    by_then = event[:, None] & (time[:, None] <= ends)
    happened = by_then & ((time[:, None] > starts) | (jnp.arange(len(ends)) == 0))
    # At its own horizon an event is inside, whereas who is censored there has lived through the interval.
    survived = jnp.where(event[:, None], time[:, None] > ends, time[:, None] >= ends)
    losses = jnp.where(happened, jax.nn.softplus(-logits), 0.0) + jnp.where(
        survived, jax.nn.softplus(logits), 0.0
    )
    losses = losses.sum(axis=1)
    if form == "released":
        status = jnp.where(by_then, jax.nn.softplus(-logits), 0.0) + jnp.where(
            survived, jax.nn.softplus(logits), 0.0
        )
        losses = 2 * losses + status.mean(axis=1)
    return jnp.where(known, losses, 0.0).sum(), known.sum().astype(jnp.float32)


def cumulative_hazards(logits: Float[Array, "batch horizons"]) -> Float[Array, "batch horizons"]:
    """``H_j = -log S_j`` at each horizon of hazards (B, T) as `discrete_hazards` takes them.

    The probability to be without the event at horizon j is ``S_j = exp(-H_j)``; the last H is a risk by which
    patients can be ranked.
    """
    return jnp.cumsum(jax.nn.softplus(logits.astype(jnp.float32)), axis=1)


def cox(
    risk: Float[Array, " batch"],
    time: Num[Array, " batch"],
    event: Num[Array, " batch"],
    *,
    ties: str = "efron",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Negative log partial likelihood of a proportional hazards model, in float32.

    For each event i, with R the patients whose time is not before its own:
    ``log(sum over R of exp(risk)) - risk_i``. Of d events at the same time, "efron" takes l / d of their own
    exp(risk) away for the l-th (l = 0, ..., d-1), as though they came in some order; "breslow" none. Patients
    are compared within the batch: it must be the global one, and not a part of it. (B, B) numbers are held.

    Args:
        risk: (B,) log hazard up to a constant; higher means earlier.
        time: (B,) of event or censoring, in any unit; NaN unknown.
        event: (B,) 1 event, 0 censored; NaN unknown.
        ties: "efron" or "breslow".

    Returns:
        Sum over the events, and their number. The mean is sum / number; without any both are 0.

    Raises:
        ValueError: unknown `ties`.

    References:
        Cox 1972, "Regression models and life-tables"; Efron 1977, "The efficiency of Cox's likelihood
        function for censored data"; Breslow 1974, "Covariance analysis of censored survival data".
    """
    if ties not in TIES:
        raise ValueError(f"ties={ties!r} is unknown: use one of {', '.join(TIES)}")
    risk = risk.astype(jnp.float32)
    time, event, known = _outcomes(time, event)
    at_risk = known & (time >= time[:, None])
    weights = at_risk.astype(jnp.float32)
    if ties == "efron":
        tied = event[:, None] & event & (time == time[:, None])
        before = jnp.tril(tied, -1).sum(axis=1) / jnp.maximum(tied.sum(axis=1), 1)
        weights = jnp.where(tied, 1.0 - before[:, None], weights)
    # A row of nobody at risk, of an unknown patient, has itself: its logarithm is taken, and then left out.
    weights = jnp.where(known[:, None], weights, jnp.eye(len(risk)))
    losses = jax.nn.logsumexp(jnp.broadcast_to(risk, weights.shape), axis=1, b=weights) - risk
    return jnp.where(event, losses, 0.0).sum(), event.sum().astype(jnp.float32)


def _outcomes(
    time: Num[Array, " batch"], event: Num[Array, " batch"]
) -> tuple[Float[Array, " batch"], Bool[Array, " batch"], Bool[Array, " batch"]]:
    """Time with 0 where unknown, whether there was an event, and whether both are known."""
    time, event = time.astype(jnp.float32), event.astype(jnp.float32)
    known = ~(jnp.isnan(time) | jnp.isnan(event))
    return jnp.where(known, time, 0.0), known & (event > 0), known


def _check_horizons(horizons: Sequence[float], count: int) -> None:
    if len(horizons) != count:
        raise ValueError(f"{count} logits for {len(horizons)} horizons: give the head one output for each")
    if not all(a < b for a, b in zip((0, *horizons), horizons, strict=False)):
        raise ValueError(f"horizons={tuple(horizons)} must be above 0 and increase")
