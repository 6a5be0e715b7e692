"""Losses of survival against NumPy in float64, written out event by event, and against lifelines."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter

from medclip_jax.losses import survival

HORIZONS = (1.0, 6.0, 12.0)
NAN = float("nan")
CASES = {
    "mixed": ([0.5, 1.0, 1.0, 3, 6, 8, 12, 12, 15, 30], [1, 1, 0, 1, 0, 1, 1, 0, 1, 0]),
    "ties": ([2, 2, 2, 2, 5, 5, 5, 9], [1, 1, 1, 0, 1, 1, 0, 1]),
    "all censored": ([0.5, 2, 7, 20], [0, 0, 0, 0]),
    "no censored": ([0.5, 2, 7, 20], [1, 1, 1, 1]),
    "one event": ([0.5, 2, 7], [0, 1, 0]),
    "one row": ([4.0], [1]),
    "unknown": ([4.0, NAN, 2.0, 9.0, NAN], [1, 1, NAN, 0, NAN]),
    "all unknown": ([NAN, 1.0], [1, NAN]),
}


def hazards_reference(logits, time, event, released):
    """Each interval's own factor of the likelihood, and the questions at the horizons."""
    total, count = 0.0, 0
    for row, t, e in zip(logits, time, event, strict=True):
        if np.isnan(t) or np.isnan(e):
            continue
        count += 1
        hazard = 1 / (1 + np.exp(-row))
        start = 0.0
        factors, questions = [], []
        for h, end in zip(hazard, HORIZONS, strict=True):
            if e and t <= end:
                questions.append(-np.log(h))
                if t > start:
                    factors.append(-np.log(h))
            elif t > end or (not e and t == end):
                factors.append(-np.log(1 - h))
                questions.append(-np.log(1 - h))
            start = end
        total += sum(factors) if not released else 2 * sum(factors) + sum(questions) / len(HORIZONS)
    return total, count


def cox_reference(risk, time, event, ties):
    total, count = 0.0, 0
    known = ~(np.isnan(time) | np.isnan(event))
    risk, time, event = risk[known], time[known], event[known] == 1
    for t in np.unique(time[event]):
        own = np.flatnonzero(event & (time == t))
        everyone = np.exp(risk[time >= t]).sum()
        for place, i in enumerate(own):
            share = place / len(own) if ties == "efron" else 0.0
            total += np.log(everyone - share * np.exp(risk[own]).sum()) - risk[i]
            count += 1
    return total, count


@functools.cache
def compiled(name, option):
    """Sum, count and gradient."""

    def loss(x, time, event):
        if name == "cox":
            return survival.cox(x, time, event, ties=option)
        return survival.discrete_hazards(x, time, event, HORIZONS, form=option)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def check(name, option, reference, inputs, time, event, rows=10):
    """Value, count, and the gradient along a direction; unknown patients fill up the rows."""
    padding = rows - len(time)
    time, event = (np.append(np.asarray(x, np.float64), np.full(padding, NAN)) for x in (time, event))
    arrays = (jnp.asarray(x, jnp.float32) for x in (inputs, time, event))
    (value, count), gradient = compiled(name, option)(*arrays)
    expected, number = reference(inputs, time, event)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
    assert float(count) == number
    direction = np.random.default_rng(5).normal(size=inputs.shape)
    ends = [reference(inputs + h * direction, time, event)[0] for h in (1e-5, -1e-5)]
    numeric = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", survival.FORMS)
def test_discrete_hazards(form):
    logits = np.random.default_rng(1).normal(size=(10, len(HORIZONS))) * 2

    def reference(x, time, event):
        return hazards_reference(x, time, event, form == "released")

    for outcomes in CASES.values():
        check("hazards", form, reference, logits, *outcomes)


@pytest.mark.parametrize("ties", survival.TIES)
def test_cox(ties):
    risk = np.random.default_rng(2).normal(size=10) * 2

    def reference(x, time, event):
        return cox_reference(x, time, event, ties)

    for outcomes in CASES.values():
        check("cox", ties, reference, risk, *outcomes)
    check("cox", ties, reference, risk[:1], [4.0], [1], rows=1)


def test_cox_of_lifelines():
    """At the coefficient that lifelines fits, by Efron, the likelihood is its own."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=40)
    time, event = np.ceil(draw.exponential(np.exp(-x)) * 4), draw.integers(0, 2, 40)
    fitted = CoxPHFitter().fit(pd.DataFrame({"x": x, "time": time, "event": event}), "time", "event")
    risk = jnp.asarray(x * fitted.params_["x"], jnp.float32)
    total, count = survival.cox(risk, jnp.asarray(time), jnp.asarray(event))
    assert len(np.unique(time)) < 20
    np.testing.assert_allclose(-float(total), fitted.log_likelihood_, rtol=1e-6)
    assert int(count) == event.sum()


def test_survival_at_the_horizons():
    logits = np.random.default_rng(3).normal(size=(5, 3)) * 3
    alive = np.cumprod(1 - 1 / (1 + np.exp(-logits)), axis=1)
    found = survival.cumulative_hazards(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(np.exp(-np.asarray(found)), alive, rtol=1e-5)


def test_large_numbers_stay_finite():
    rows = [1.0, 2, 3, *[NAN] * 7]
    time, event = jnp.asarray(rows), jnp.asarray([1.0, 1, 0, *[1.0] * 7])
    risk = jnp.asarray([500.0, -500.0, 0.0, *[900.0] * 7])
    logits = jnp.tile(jnp.asarray([[500.0, -500.0, 500.0]]), (10, 1))
    for name, option, inputs in (
        ("cox", "efron", risk),
        ("cox", "breslow", risk),
        ("hazards", "released", logits),
    ):
        (value, _), gradient = compiled(name, option)(inputs, time, event)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient[3:]).any()


def test_bad_arguments():
    logits, time = jnp.zeros((2, 3)), jnp.ones(2)
    with pytest.raises(ValueError, match="3 logits for 2 horizons"):
        survival.discrete_hazards(logits, time, time, (1, 6))
    for horizons in ((1, 6, 6), (0, 1, 2), (6, 1, 12)):
        with pytest.raises(ValueError, match="above 0 and increase"):
            survival.discrete_hazards(logits, time, time, horizons)
    with pytest.raises(ValueError, match="form='cumulative'"):
        survival.discrete_hazards(logits, time, time, HORIZONS, form="cumulative")
    with pytest.raises(ValueError, match="ties='exact'"):
        survival.cox(time, time, time, ties="exact")
