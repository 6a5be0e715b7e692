"""Contrast and inclusion of Gaussians over a batch: against loops in float64, in chunks, on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import expit

from medclip_jax.losses import probabilistic
from tests.losses.comparing import assert_equal

VALUE = {"rtol": 3e-6, "atol": 3e-6}
GRADIENT = {"rtol": 2e-4, "atol": 2e-5}
GAUSSIANS = ("mean_a", "log_a", "mean_b", "log_b")


def sample(batch, width=5):
    draw = np.random.default_rng(batch)
    data = {name: draw.normal(size=(batch, width)) for name in ("mean_a", "mean_b")}
    data = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in data.items()}
    data |= {name: draw.uniform(-6.0, 0.0, (batch, width)) for name in ("log_a", "log_b")}
    data |= {"scale": np.array(7.0), "bias": np.array(-3.0)}
    groups = draw.integers(0, max(batch // 2, 1), (batch, 1)).repeat(2, axis=1)
    return data | {
        "groups": groups,
        "alike": draw.integers(-1, 3, batch),
        "valid": np.arange(batch) % 5 != 3,
    }


OPTIONS = {
    "plain": (),
    "same study": ("groups",),
    "same study ignored": ("groups", "ignore"),
    "alike": ("alike",),
    "everything": ("groups", "alike", "valid"),
}


def by_hand(data, given):
    """Every pair on its own."""
    batch = len(data["mean_a"])
    valid = data["valid"] if "valid" in given else np.ones(batch, bool)
    total = 0.0
    for i in range(batch):
        for j in range(batch):
            grouped = "groups" in given and (data["groups"][i] == data["groups"][j]).all()
            positive = i == j or (grouped and "ignore" not in given)
            alike = "alike" in given and data["alike"][i] == data["alike"][j] >= 0
            if not (valid[i] and valid[j]) or (not positive and (grouped or alike)):
                continue
            traces = np.exp(data["log_a"][i]).sum() + np.exp(data["log_b"][j]).sum()
            logit = data["scale"] * (data["mean_a"][i] @ data["mean_b"][j] - traces / 2) + data["bias"]
            total += np.logaddexp(0.0, -logit if positive else logit)
    return total / max(valid.sum(), 1)


def on_device(data):
    kinds = {"groups": jnp.int32, "alike": jnp.int32, "valid": bool}
    return {name: jnp.asarray(x, kinds.get(name, jnp.float32)) for name, x in data.items()}


def loss(data, given, chunk_rows=0):
    return probabilistic.pair_contrast(
        *(data[name] for name in (*GAUSSIANS, "scale", "bias")),
        **{name: data[name] for name in given if name != "ignore"},
        same_group="ignore" if "ignore" in given else "positive",
        chunk_rows=chunk_rows,
    )


def graded(names, chunk_rows):
    """All losses and their gradients in one compiled program."""

    def run(data):
        trained = {name: data[name] for name in (*GAUSSIANS, "scale", "bias")}
        return {
            name: jax.value_and_grad(lambda x, name=name: loss(data | x, OPTIONS[name], chunk_rows))(trained)
            for name in names
        }

    return jax.jit(run)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_pairs_against_loops(batch):
    data = sample(batch)
    found = graded(OPTIONS, 0)(on_device(data))
    for name, given in OPTIONS.items():
        np.testing.assert_allclose(found[name][0], by_hand(data, given), err_msg=name, **VALUE)


def test_gradients_against_differences():
    data = sample(4)
    name = "everything"
    gradients = graded([name], 0)(on_device(data))[name][1]
    for part, gradient in gradients.items():
        for index in np.ndindex(np.shape(gradient)):
            moved = [dict(data, **{part: data[part].copy()}) for _ in "+-"]
            moved[0][part][index] += 1e-5
            moved[1][part][index] -= 1e-5
            slope = (by_hand(moved[0], OPTIONS[name]) - by_hand(moved[1], OPTIONS[name])) / 2e-5
            np.testing.assert_allclose(gradient[index], slope, err_msg=f"{part} {index}", **GRADIENT)


def test_plain_pairs_are_the_loss_of_the_logits():
    data = on_device(sample(5))
    logits = probabilistic.pair_logits(*(data[name] for name in (*GAUSSIANS, "scale", "bias")))
    np.testing.assert_allclose(loss(data, ()), probabilistic.sigmoid_pair_loss(logits), rtol=1e-6)


def test_nobody_valid_is_no_loss_and_no_gradient():
    data = on_device(sample(3)) | {"valid": jnp.zeros(3, bool)}
    value, gradient = jax.value_and_grad(lambda x: loss(data | {"mean_a": x}, ("valid",)))(data["mean_a"])
    assert float(value) == 0.0
    assert not np.asarray(gradient).any()


def test_group_options_are_checked():
    with pytest.raises(ValueError, match="same_group='both' is unknown"):
        probabilistic.pair_contrast(*[jnp.ones((2, 3))] * 4, 1.0, 0.0, same_group="both")


@pytest.mark.parametrize("chunk_rows", [4, 12])
def test_chunks_change_nothing(chunk_rows):
    """13 rows in chunks of 4 or 12 leave a chunk that is nearly all filling."""
    data = on_device(sample(13))
    assert_equal(graded(OPTIONS, chunk_rows)(data), graded(OPTIONS, 0)(data))


def test_what_is_kept_is_linear_in_the_batch():
    def kept(batch, chunk_rows):
        """Bytes that the forward pass keeps for the backward pass."""

        def residuals(data):
            trained = {name: data[name] for name in GAUSSIANS}
            pull = jax.vjp(lambda x: loss(data | x, OPTIONS["everything"], chunk_rows), trained)[1]
            return jax.tree.leaves(pull)

        shapes = jax.eval_shape(lambda: on_device(sample(batch, width=16)))
        return sum(x.size * x.dtype.itemsize for x in jax.eval_shape(residuals, shapes))

    few, more, most = (kept(batch, 64) for batch in (512, 1024, 2048))
    assert few < more < 2.05 * few
    assert more < most < 2.05 * more
    assert most < kept(2048, 0) / 20
    # The guard itself: full matrices grow with the square.
    assert kept(1024, 0) > 3.5 * kept(512, 0)


@pytest.mark.parametrize("chunk_rows", [0, 3])
def test_eight_devices_equal_one(chunk_rows):
    """64 rows, 8 a device, in chunks of 3; scale and bias are on every device."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    data = on_device(sample(64))
    expected = graded(["everything"], 0)(data)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = {name: jax.device_put(x, rows if x.ndim else whole) for name, x in data.items()}
    with jax.set_mesh(mesh):
        assert_equal(jax.device_get(graded(["everything"], chunk_rows)(placed)), expected)


def inclusion_by_hand(mean_1, log_1, mean_2, log_2, *, reduce, scale, limit):
    """From the two Gaussian integrals as the equation states them."""

    def log_integral(mean_1, log_1, mean_2, log_2):
        a = np.exp(-log_1) + 0.5 * np.exp(-log_2)
        b = 2 * mean_1 * np.exp(-log_1) + mean_2 * np.exp(-log_2)
        c = mean_1**2 * np.exp(-log_1) + 0.5 * mean_2**2 * np.exp(-log_2)
        return -log_1 - 0.5 * log_2 - 0.5 * np.log(a) + b**2 / (4 * a) - c

    scores = log_integral(mean_1, log_1, mean_2, log_2) - log_integral(mean_2, log_2, mean_1, log_1)
    scores = scale * (scores.sum(axis=1, keepdims=True) if reduce == "joint" else scores)
    far = np.abs(scores) > limit
    with np.errstate(divide="ignore"):
        scores = np.where(far, np.sign(scores) * limit * (1 + np.log(np.abs(scores) / limit)), scores)
    return np.logaddexp(0.0, -scores).mean(axis=1), far.mean(axis=1)


@pytest.mark.parametrize("reduce", ["per_dim", "joint"])
def test_inclusion_loss_against_the_integrals(reduce):
    """Scores on both sides of the limit; gradients by differences of the float64 reference."""
    data = sample(6)
    arguments = [data[name] for name in GAUSSIANS]
    eps, options = 0.1, {"reduce": reduce, "scale": {"per_dim": 5.0, "joint": 1.0}[reduce]}
    limit = -np.log(eps)
    expected, far = inclusion_by_hand(*arguments, **options, limit=limit)
    assert 0 < far.mean() < 1
    found = [jnp.asarray(x, jnp.float32) for x in arguments]
    loss, compressed = probabilistic.inclusion_loss(*found, **options, eps=eps)
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(compressed, far, rtol=1e-6)
    gradients = jax.grad(
        lambda *x: probabilistic.inclusion_loss(*x, **options, eps=eps)[0].sum(), argnums=(0, 1, 2, 3)
    )(*found)
    for place, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            moved = [[x.copy() for x in arguments] for _ in "+-"]
            moved[0][place][index] += 1e-5
            moved[1][place][index] -= 1e-5
            above, below = (inclusion_by_hand(*x, **options, limit=limit)[0].sum() for x in moved)
            np.testing.assert_allclose(gradient[index], (above - below) / 2e-5, rtol=1e-3, atol=1e-4)


def test_a_compressed_score_still_pulls_and_no_harder():
    """Far from included, the slope falls as 1 / score, where a clamp would have none."""
    mean, log = jnp.zeros((1, 1)), jnp.full((1, 1), -10.0)

    def pull(distance):
        def loss(wider):
            outside = (mean + distance, jnp.full((1, 1), wider))
            return probabilistic.inclusion_loss(mean, log, *outside)[0].sum()

        return float(jax.grad(loss)(-11.0))

    near, far, farther = pull(0.05), pull(0.5), pull(1.5)
    assert near < 0
    assert -100 < far < -1
    # Beyond the limit the slope in the width no longer grows with the distance.
    assert farther == pytest.approx(far, rel=0.05)


@pytest.mark.parametrize("reduce", ["per_dim", "joint"])
def test_inclusion_loss_is_finite_where_training_starts_and_far_from_it(reduce):
    """512 dimensions at log-variance -10, equal and opposite means; and log-variances from -30 to 30."""
    draw = np.random.default_rng(0)
    mean = draw.normal(size=(4, 512))
    mean = jnp.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), jnp.float32)
    start = jnp.asarray(-10 + 0.3 * draw.normal(size=(2, 4, 512)), jnp.float32)
    wild = jnp.asarray(draw.uniform(-30, 30, size=(2, 4, 512)), jnp.float32)
    for log_1, log_2 in (start, wild):
        for other in (mean, -mean, mean[::-1]):

            def loss(*x):
                return probabilistic.inclusion_loss(*x, reduce=reduce)[0].sum()

            value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(mean, log_1, other, log_2)
            assert np.isfinite(value)
            assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_limits_are_probabilities():
    one = jnp.ones((1, 2))
    for eps in (0.0, 0.5, -1.0):
        with pytest.raises(ValueError, match=f"eps={eps}: give a probability above 0 and below 0.5"):
            probabilistic.inclusion_loss(one, one, one, one, eps=eps)
    # A score within the limit is left alone.
    loss, compressed = probabilistic.inclusion_loss(one, one, one, 1.5 * one, eps=0.4)
    score = float(probabilistic.inclusion(one, one, one, 1.5 * one)[0, 0])
    np.testing.assert_allclose(loss, -np.log(expit(score)), rtol=1e-6)
    assert not np.asarray(compressed).any()
