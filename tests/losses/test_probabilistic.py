"""Gaussian embeddings: against NumPy in float64, and integrals against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from medclip_jax.losses import probabilistic

# float32 sums of a few terms against float64.
VALUE = {"rtol": 3e-6, "atol": 3e-6}
GRADIENT = {"rtol": 2e-4, "atol": 2e-5}


def gaussians(rows, features=5, seed=0, low=-10.0, high=1.0):
    draw = np.random.default_rng(seed)
    mean = draw.normal(size=(rows, features))
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True), draw.uniform(low, high, size=(rows, features))


def float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize(("rows", "columns", "features"), [(1, 1, 1), (3, 5, 4), (4, 2, 7)])
def test_distance_and_logits_of_all_pairs(rows, columns, features):
    a, b = gaussians(rows, features), gaussians(columns, features, seed=1)
    distance, logits = np.zeros((rows, columns)), np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            traces = np.exp(a[1][i]).sum() + np.exp(b[1][j]).sum()
            distance[i, j] = ((a[0][i] - b[0][j]) ** 2).sum() + traces
            logits[i, j] = 7.0 * (a[0][i] @ b[0][j] - traces / 2) - 10.0
    np.testing.assert_allclose(probabilistic.csd(*float32(*a, *b)), distance, **VALUE)
    np.testing.assert_allclose(
        probabilistic.pair_logits(*float32(*a, *b), 7.0, -10.0), logits, rtol=3e-6, atol=3e-5
    )
    # Means of length 1: a logit is a distance.
    np.testing.assert_allclose(7.0 * (1 - distance / 2) - 10.0, logits)


def test_distance_is_that_of_draws():
    """10^5 pairs of draws: the mean squared distance, within five standard errors."""
    (mean_a, log_a), (mean_b, log_b) = gaussians(1, 3), gaussians(1, 3, seed=1)
    draw = np.random.default_rng(2)
    first = mean_a + np.exp(log_a / 2) * draw.normal(size=(100_000, 3))
    second = mean_b + np.exp(log_b / 2) * draw.normal(size=(100_000, 3))
    squares = ((first - second) ** 2).sum(axis=1)
    found = float(probabilistic.csd(*float32(mean_a, log_a, mean_b, log_b))[0, 0])
    assert abs(squares.mean() - found) < 5 * squares.std() / np.sqrt(len(squares))


def reference_pair_loss(logits, positive, part):
    total = 0.0
    for i in range(len(logits)):
        for j in range(len(logits)):
            if part[i, j]:
                total += np.logaddexp(0.0, -logits[i, j] if positive[i, j] else logits[i, j])
    return total / max(np.diag(part).sum(), 1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_pair_loss(batch):
    draw = np.random.default_rng(3)
    logits = draw.normal(scale=20.0, size=(batch, batch))
    everything, diagonal = np.ones((batch, batch), bool), np.eye(batch, dtype=bool)
    loss = probabilistic.sigmoid_pair_loss(jnp.asarray(logits))
    np.testing.assert_allclose(loss, reference_pair_loss(logits, diagonal, everything), **VALUE)
    positive, part = diagonal | (draw.random((batch, batch)) < 0.3), draw.random((batch, batch)) < 0.7
    loss = probabilistic.sigmoid_pair_loss(
        jnp.asarray(logits), positive=jnp.asarray(positive), part=jnp.asarray(part)
    )
    np.testing.assert_allclose(loss, reference_pair_loss(logits, positive, part), **VALUE)


def test_nothing_asked_is_no_loss():
    value, gradient = jax.value_and_grad(
        lambda x: probabilistic.sigmoid_pair_loss(x, part=jnp.zeros((2, 2), bool))
    )(jnp.full((2, 2), 1e6))
    assert float(value) == 0.0
    assert not gradient.any()


def reference_inclusion(mean_1, log_1, mean_2, log_2):
    """Both integrals by quadrature, on a grid fine and wide enough for the narrower and the wider density.

    The integrands are scaled by their maximum, since densities to the third power leave float64's range.
    """

    def log_integral(twice, once):
        def exponent(x):
            return 2 * stats.norm.logpdf(x, *twice) + stats.norm.logpdf(x, *once)

        precision = 2 / twice[1] ** 2 + 1 / once[1] ** 2
        peak = (2 * twice[0] / twice[1] ** 2 + once[0] / once[1] ** 2) / precision
        reach, top = 12 / np.sqrt(precision), exponent(peak)
        area, _ = integrate.quad(
            lambda x: np.exp(exponent(x) - top), peak - reach, peak + reach, epsabs=0, epsrel=1e-12, limit=200
        )
        return top + np.log(area)

    first, second = (mean_1, np.exp(log_1 / 2)), (mean_2, np.exp(log_2 / 2))
    return log_integral(first, second) - log_integral(second, first)


CASES = [
    (log_1, log_1 + ratio, difference)
    for log_1 in (-12.0, -5.0, 0.0, 3.0)
    for ratio in (-10.0, -3.0, -0.5, 0.0, 1e-3, 1.0, 4.0, 10.0)
    for difference in (0.0, 1e-3, 0.3, -1.7)
]


def test_inclusion_is_the_quotient_of_the_integrals():
    """Ratios of variances up to e^10, means apart by nothing and by many deviations."""
    # Rounded first: the difference of two log-variances keeps what rounding did to each.
    log_1, log_2, mean_2 = (np.float32(x) for x in zip(*CASES, strict=True))
    arguments = [np.zeros_like(log_1), log_1, mean_2, log_2]
    expected = np.array([reference_inclusion(*np.float64(case)) for case in zip(*arguments, strict=True)])
    found = probabilistic.inclusion(*arguments)
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6)
    joint = probabilistic.inclusion(*arguments, reduce="joint")
    np.testing.assert_allclose(joint, expected.sum(), rtol=1e-5)


def closed_form(mean_1, log_1, mean_2, log_2, normalizer=1.0):
    """The two integrals term by term, as the equation stands, in float64."""

    def log_integral(mean_1, log_1, mean_2, log_2):
        a = np.exp(-log_1) + 0.5 * np.exp(-log_2)
        b = 2 * mean_1 * np.exp(-log_1) + mean_2 * np.exp(-log_2)
        c = mean_1**2 * np.exp(-log_1) + 0.5 * mean_2**2 * np.exp(-log_2)
        return normalizer * (-log_1 - 0.5 * log_2) - 0.5 * np.log(a) + b**2 / (4 * a) - c

    return log_integral(mean_1, log_1, mean_2, log_2) - log_integral(mean_2, log_2, mean_1, log_1)


@pytest.mark.parametrize(("form", "normalizer"), [("exact", 1.0), ("prolip", 2.0)])
def test_inclusion_forms_and_gradients(form, normalizer):
    """Against the equation as it stands and its central differences in float64."""
    (mean_1, log_1), (mean_2, log_2) = gaussians(4, low=-3.0), gaussians(4, seed=1, low=-3.0)
    arguments = [mean_1, log_1, mean_2, log_2]
    found = probabilistic.inclusion(*float32(*arguments), form=form)
    np.testing.assert_allclose(found, closed_form(*arguments, normalizer), rtol=2e-5, atol=2e-6)
    gradients = jax.grad(lambda *x: probabilistic.inclusion(*x, form=form).sum(), argnums=(0, 1, 2, 3))(
        *float32(*arguments)
    )
    for place, gradient in enumerate(gradients):
        step = [1e-6 * (place == i) for i in range(4)]
        above, below = (
            closed_form(*(x + sign * s for x, s in zip(arguments, step, strict=True)), normalizer)
            for sign in (1, -1)
        )
        np.testing.assert_allclose(gradient, (above - below) / 2e-6, **GRADIENT)


def test_inclusion_says_which_is_inside():
    """Antisymmetric; 0 for equals, and with a slope there: that is where training starts."""
    (mean_1, log_1), (mean_2, log_2) = gaussians(3), gaussians(3, seed=1)
    there = probabilistic.inclusion(*float32(mean_1, log_1, mean_2, log_2))
    back = probabilistic.inclusion(*float32(mean_2, log_2, mean_1, log_1))
    np.testing.assert_allclose(there, -back, rtol=1e-5, atol=1e-6)
    same = float32(mean_1, log_1, mean_1, log_1)
    assert not probabilistic.inclusion(*same).any()
    slope = jax.grad(lambda wider: probabilistic.inclusion(*same[:3], wider).sum())(same[3])
    # d/dt at t = 0 of the equation: 1/2 - 1/6.
    np.testing.assert_allclose(slope, 1 / 3, rtol=1e-5)
    assert float(probabilistic.inclusion(*float32(0.1, -8.0, 0.0, -2.0))) > 0


@pytest.mark.parametrize("form", ["exact", "prolip"])
def test_inclusion_is_finite_wherever_training_can_go(form):
    """Log-variances from -30 to 30 in every combination, means on opposite ends of the sphere."""
    logs = np.linspace(-30, 30, 31)
    log_1, log_2 = float32(*np.meshgrid(logs, logs))
    ones = jnp.ones_like(log_1)

    def score(*x):
        return probabilistic.inclusion(*x, form=form)

    arguments = (ones, log_1, -ones, log_2)
    assert bool(jnp.isfinite(score(*arguments)).all())
    for gradient in jax.grad(lambda *x: score(*x).sum(), argnums=(0, 1, 2, 3))(*arguments):
        assert bool(jnp.isfinite(gradient).all())


def test_vib_is_the_divergence_from_the_standard_normal():
    mean, log_variance = gaussians(6, low=-10.0)
    log_variance[0] = 0.0

    def divergence(mean, log_variance):
        deviation = np.exp(log_variance / 2)

        def integrand(x):
            own = stats.norm.logpdf(x, mean, deviation)
            return np.exp(own) * (own - stats.norm.logpdf(x))

        return integrate.quad(integrand, mean - 12 * deviation, mean + 12 * deviation, epsrel=1e-10)[0]

    expected = np.vectorize(divergence)(mean, log_variance)
    found = float32(mean, log_variance)
    np.testing.assert_allclose(probabilistic.vib(*found), expected.mean(axis=1), rtol=2e-6)
    np.testing.assert_allclose(probabilistic.vib(*found, reduce="sum"), expected.sum(axis=1), rtol=2e-6)
    assert float(probabilistic.vib(jnp.zeros(4), jnp.zeros(4))) == 0.0
    by_mean, by_log = jax.grad(lambda *x: probabilistic.vib(*x, reduce="sum").sum(), argnums=(0, 1))(*found)
    np.testing.assert_allclose(by_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(by_log, (np.exp(log_variance) - 1) / 2, rtol=1e-5, atol=1e-7)


def test_gradients_of_the_pair_loss():
    """Central differences in float64, through the logits to means, variances, scale and bias."""
    a, b = gaussians(4, low=-4.0), gaussians(4, seed=1, low=-4.0)
    arguments = [*a, *b, np.array(9.0), np.array(-3.0)]

    def reference(*x):
        mean_a, log_a, mean_b, log_b, scale, bias = x
        traces = np.exp(log_a).sum(1)[:, None] + np.exp(log_b).sum(1)[None]
        logits = scale * (mean_a @ mean_b.T - traces / 2) + bias
        everything = np.ones(logits.shape, bool)
        return reference_pair_loss(logits, np.eye(4, dtype=bool), everything)

    gradients = jax.grad(
        lambda *x: probabilistic.sigmoid_pair_loss(probabilistic.pair_logits(*x)), argnums=tuple(range(6))
    )(*float32(*arguments))
    for place, gradient in enumerate(gradients):
        for index in np.ndindex(np.shape(gradient)):
            moved = [[np.array(x) for x in arguments] for _ in "+-"]
            moved[0][place][index] += 1e-5
            moved[1][place][index] -= 1e-5
            slope = (reference(*moved[0]) - reference(*moved[1])) / 2e-5
            np.testing.assert_allclose(gradient[index], slope, **GRADIENT)


@pytest.mark.parametrize(("name", "value"), [("form", "sampled"), ("reduce", "mean")])
def test_unknown_settings(name, value):
    nothing = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=name):
        probabilistic.inclusion(nothing, nothing, nothing, nothing, **{name: value})
    with pytest.raises(ValueError, match="reduce"):
        probabilistic.vib(nothing, nothing, reduce="median")
