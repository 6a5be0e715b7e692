"""Contrastive losses against plain loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp

from medclip_jax.losses import contrastive

# Compiled as a whole: op by op, the tests would spend their time in the compiler.
info_nce = jax.jit(contrastive.info_nce, static_argnames="same_group")
sigmoid_pairs = jax.jit(contrastive.sigmoid_pairs, static_argnames="same_group")
soft_target = jax.jit(
    contrastive.soft_target, static_argnames=("soft_target", "target_temperature", "text_targets")
)

# float32 sums of a few hundred terms against float64.
VALUE = {"rtol": 2e-6, "atol": 2e-6}
GRADIENT = {"rtol": 2e-4, "atol": 2e-5}


def unit(rows):
    rows = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def cross_entropy(logits, targets, rows, columns):
    """Mean over `rows` of -sum_j targets[i, j] log softmax(logits[i, columns[i]])[j]."""
    total = 0.0
    for i in rows:
        seen = columns[i]
        total -= sum(targets[i, j] * (logits[i, j] - logsumexp(logits[i, seen])) for j in seen)
    return total / max(len(rows), 1)


def pairs(batch, groups, same_group, valid):
    rows = [i for i in range(batch) if valid is None or valid[i]]
    same = np.eye(batch, dtype=bool)
    if groups is not None:
        same |= (np.asarray(groups)[:, None] == np.asarray(groups)[None]).all(-1)
    if same_group == "positive":
        return rows, {i: rows for i in rows}, same
    columns = {i: [j for j in rows if j == i or not same[i, j]] for i in rows}
    return rows, columns, np.eye(batch, dtype=bool)


def reference_info_nce(volume, text, scale, groups=None, same_group="positive", valid=None):
    logits = scale * unit(volume) @ unit(text).T
    rows, columns, positive = pairs(len(volume), groups, same_group, valid)
    targets = np.zeros(logits.shape)
    for i in rows:
        mine = [j for j in columns[i] if positive[i, j]]
        targets[i, mine] = 1 / len(mine)
    forward = cross_entropy(logits, targets, rows, columns)
    return 0.5 * (forward + cross_entropy(logits.T, targets, rows, columns))


def reference_sigmoid(volume, text, scale, bias, groups=None, same_group="positive", valid=None):
    logits = scale * unit(volume) @ unit(text).T + bias
    rows, columns, positive = pairs(len(volume), groups, same_group, valid)
    total = 0.0
    for i in rows:
        for j in columns[i]:
            total -= np.log(expit(logits[i, j] if positive[i, j] else -logits[i, j]))
    return total / max(len(rows), 1)


def reference_targets(affinity, kind, temperature, rows):
    targets = np.zeros(affinity.shape)
    for i in rows:
        if kind == "onehot":
            targets[i, i] = 1
        elif kind == "softmax":
            row = affinity[i, rows] / temperature
            targets[i, rows] = np.exp(row - logsumexp(row))
        else:
            row = np.clip(affinity[i, rows], 0, None)
            targets[i, rows] = row / row.sum() if row.sum() > 0 else np.asarray(rows) == i
    return targets


def reference_soft(volume, text, findings, scale, kind, temperature, text_targets, valid=None):
    logits = scale * unit(volume) @ unit(text).T
    rows = [i for i in range(len(volume)) if valid is None or valid[i]]
    columns = {i: rows for i in rows}
    affinity = unit(findings) @ unit(findings).T
    forward = reference_targets(affinity, kind, temperature, rows)
    back = (
        forward.T if text_targets == "transposed" else reference_targets(affinity.T, kind, temperature, rows)
    )
    return 0.5 * (
        cross_entropy(logits, forward, rows, columns) + cross_entropy(logits.T, back, rows, columns)
    )


def sample(batch, width=5, findings=7, seed=0):
    draw = np.random.default_rng(seed)
    volume, text = draw.normal(size=(2, batch, width)) * 3
    return volume, text, draw.choice([-1, 1], size=(batch, findings))


def check(loss, reference, volume, text, scale):
    """The value, and directional derivatives against central differences of the float64 reference."""
    point = [np.asarray(volume, np.float64), np.asarray(text, np.float64), np.float64(scale)]
    value_and_gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    value, gradient = value_and_gradient(*(jnp.asarray(x, jnp.float32) for x in point))
    assert value.dtype == jnp.float32
    assert value.shape == ()
    np.testing.assert_allclose(value, reference(*point), **VALUE)
    draw = np.random.default_rng(1)
    for which in range(3):
        for _ in range(3):
            direction = draw.normal(size=point[which].shape)
            shifted = [[x.copy() if x.shape else x for x in point] for _ in range(2)]
            shifted[0][which] = point[which] + 1e-5 * direction
            shifted[1][which] = point[which] - 1e-5 * direction
            numeric = (reference(*shifted[0]) - reference(*shifted[1])) / 2e-5
            np.testing.assert_allclose(np.sum(np.asarray(gradient[which]) * direction), numeric, **GRADIENT)


GROUPS = np.array([[1, 2], [3, 2], [1, 2], [1, 9], [3, 2], [1, 2], [7, 7]])


@pytest.mark.parametrize(
    ("batch", "same_group", "masked"),
    [(3, None, False)]
    + [(7, kind, masked) for kind in (None, "positive", "ignore") for masked in (False, True)],
)
def test_info_nce_and_sigmoid_equal_plain_loops(batch, same_group, masked):
    volume, text, _ = sample(batch)
    options = {}
    if same_group:
        options |= {"groups": GROUPS[:batch], "same_group": same_group}
    if masked:
        options |= {"valid": np.arange(batch) != 1}
    arrays = {name: jnp.asarray(x) if not isinstance(x, str) else x for name, x in options.items()}

    def loss(v, t, s):
        return info_nce(v, t, s, **arrays)

    def reference(v, t, s):
        return reference_info_nce(v, t, s, **options)

    check(loss, reference, volume, text, 9.0)
    check(
        lambda v, t, b: sigmoid_pairs(v, t, 9.0, b, **arrays),
        lambda v, t, b: reference_sigmoid(v, t, 9.0, b, **options),
        volume,
        text,
        -4.0,
    )


@pytest.mark.parametrize("kind", ["softmax", "clip", "onehot"])
@pytest.mark.parametrize(
    ("batch", "columns", "masked", "text_targets"),
    [(3, 1, False, "renormalized"), (7, 7, False, "transposed"), (7, 7, True, "renormalized")],
)
def test_soft_target_equals_plain_loops(kind, text_targets, batch, columns, masked):
    volume, text, findings = sample(batch, findings=columns, seed=batch)
    valid = np.arange(batch) != 2 if masked else None
    options = {"soft_target": kind, "target_temperature": 0.3, "text_targets": text_targets}

    def loss(v, t, s):
        mask = None if valid is None else jnp.asarray(valid)
        return soft_target(v, t, jnp.asarray(findings, jnp.int8), s, valid=mask, **options)

    def reference(v, t, s):
        return reference_soft(v, t, findings, s, kind, 0.3, text_targets, valid)

    check(loss, reference, volume, text, 14.0)


def test_one_pair():
    volume, text, findings = sample(1, findings=1)
    check(info_nce, reference_info_nce, volume, text, 9.0)
    args = (jnp.float32(volume), jnp.float32(text))
    for loss in (
        info_nce(*args, 9.0),
        soft_target(*args, jnp.asarray(findings), 9.0),
    ):
        assert float(loss) == 0.0
    expected = reference_sigmoid(volume, text, 9.0, -4.0)
    np.testing.assert_allclose(sigmoid_pairs(*args, 9.0, -4.0), expected, **VALUE)


def test_soft_target_by_hand():
    """Two patients, opposite findings, orthogonal embeddings: every number on paper."""
    eye = jnp.eye(2)
    findings = jnp.array([[1, 1], [-1, -1]])
    # A = [[1, -1], [-1, 1]], Q = softmax -> sigmoid(2); logits 2 on the diagonal, 0 beside it.
    q = expit(2.0)
    expected = -(q * np.log(expit(2.0)) + (1 - q) * np.log(expit(-2.0)))
    np.testing.assert_allclose(soft_target(eye, eye, findings, 2.0), expected, rtol=1e-6)
    sharp = soft_target(eye, eye, findings, 2.0, target_temperature=0.01)
    np.testing.assert_allclose(sharp, -np.log(expit(2.0)), rtol=1e-6)


def test_one_hot_is_info_nce():
    volume, text, findings = sample(6)
    args = (jnp.float32(volume), jnp.float32(text))
    soft = soft_target(*args, jnp.asarray(findings), 5.0, soft_target="onehot")
    np.testing.assert_allclose(soft, info_nce(*args, 5.0), rtol=1e-6)


def test_soft_targets_are_distributions():
    """For constant logits a cross-entropy is (sum of the targets) x log B."""
    _, _, findings = sample(5, findings=3, seed=4)
    same = jnp.ones((5, 2))
    for kind in ("softmax", "clip", "onehot"):
        loss = soft_target(same, same, jnp.asarray(findings), 3.0, soft_target=kind)
        assert float(loss) == pytest.approx(np.log(5), rel=1e-6)


def test_transposed_targets_are_another_loss():
    volume, text, findings = sample(5, findings=3, seed=4)
    both = [
        soft_target(jnp.float32(volume), jnp.float32(text), jnp.asarray(findings), 9.0, text_targets=name)
        for name in ("renormalized", "transposed")
    ]
    assert abs(float(both[0] - both[1])) > 1e-2


def test_shared_report_is_no_false_negative():
    """Two reconstructions of one scan: identical rows must not be pushed apart."""
    volume = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    groups = jnp.array([[5, 5], [5, 5], [6, 6]])
    plain = info_nce(volume, volume, 50.0)
    shared = info_nce(volume, volume, 50.0, groups=groups)
    ignored = info_nce(volume, volume, 50.0, groups=groups, same_group="ignore")
    np.testing.assert_allclose(plain, 2 / 3 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(shared, 2 / 3 * np.log(2), rtol=1e-6)  # the entropy of its own target
    assert float(ignored) < 1e-6
    # At this point the target is met: no force on the similarities.
    gradient = jax.grad(lambda v: info_nce(v, volume, 50.0, groups=groups))(volume + 0.0)
    assert float(jnp.abs(gradient).max()) < 1e-5
    assert float(sigmoid_pairs(volume, volume, 100.0, -50.0)) > 30
    for same_group in ("positive", "ignore"):
        loss = sigmoid_pairs(volume, volume, 100.0, -50.0, groups=groups, same_group=same_group)
        assert float(loss) < 1e-6


def test_both_words_of_a_group_count():
    volume, text, _ = sample(2)
    args = (jnp.float32(volume), jnp.float32(text), 3.0)
    apart = info_nce(*args, groups=jnp.array([[1, 2], [1, 3]]))
    assert float(apart) == float(info_nce(*args))


@jax.jit
def all_losses(volume, text, findings, scale, **valid):
    return list(_all_losses(volume, text, findings, scale, **valid))


def _all_losses(volume, text, findings, scale, **valid):
    yield info_nce(volume, text, scale, **valid)
    yield sigmoid_pairs(volume, text, scale, -10.0, **valid)
    for kind in ("softmax", "clip", "onehot"):
        for text_targets in ("renormalized", "transposed"):
            yield soft_target(
                volume, text, findings, scale, soft_target=kind, text_targets=text_targets, **valid
            )


@pytest.mark.parametrize("findings", [np.zeros((3, 4)), np.ones((3, 4)), -np.ones((3, 1))])
def test_zero_vectors_give_finite_values_and_gradients(findings):
    text = jnp.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])

    def summed(v, t, s):
        return sum(all_losses(v, t, jnp.asarray(findings), s))

    graded = jax.jit(jax.value_and_grad(summed, argnums=(0, 1, 2)))
    value, gradient = graded(jnp.zeros((3, 2)), text, 100.0)
    assert np.isfinite(value)
    assert all(bool(jnp.isfinite(g).all()) for g in gradient)
    assert float(jnp.abs(gradient[0]).max()) == 0.0  # a zero vector has no direction to turn


def test_rows_of_padding_change_nothing():
    volume, text, findings = (jnp.asarray(x, jnp.float32) for x in sample(4))
    more = [jnp.concatenate([x, 7 * jnp.ones((2, x.shape[1]))]) for x in (volume, text, findings)]
    valid = jnp.array([1, 1, 1, 1, 0, 0], bool)
    for alone, padded in zip(
        all_losses(volume, text, findings, 8.0), all_losses(*more, 8.0, valid=valid), strict=True
    ):
        np.testing.assert_allclose(alone, padded, rtol=2e-6)
    for empty in all_losses(*more, 8.0, valid=jnp.zeros(6, bool)):
        assert float(empty) == 0.0


def test_bfloat16_embeddings_are_computed_in_float32():
    volume, text, findings = sample(5)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (volume, text)]
    exact = [np.asarray(x, np.float64) for x in half]
    got = info_nce(*half, 20.0)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference_info_nce(*exact, 20.0), **VALUE)
    soft = soft_target(*half, jnp.asarray(findings, jnp.int8), 20.0)
    expected = reference_soft(*exact, findings, 20.0, "softmax", 1.0, "renormalized")
    np.testing.assert_allclose(soft, expected, **VALUE)
    sigmoid = sigmoid_pairs(*half, 20.0, -10.0)
    np.testing.assert_allclose(sigmoid, reference_sigmoid(*exact, 20.0, -10.0), **VALUE)


def test_scale_of_the_embeddings_does_not_matter():
    volume, text, findings = (jnp.asarray(x, jnp.float32) for x in sample(5))
    for small, large in zip(
        all_losses(volume * 1e-6, text, findings, 8.0),
        all_losses(volume * 1e6, text * 1e3, findings, 8.0),
        strict=True,
    ):
        np.testing.assert_allclose(small, large, rtol=2e-6)


def test_unknown_options_name_the_choices():
    volume, text, findings = (jnp.asarray(x) for x in sample(2))
    with pytest.raises(ValueError, match="'softmax', 'clip' or 'onehot'"):
        soft_target(volume, text, findings, 1.0, soft_target="raw")
    with pytest.raises(ValueError, match="'renormalized' or 'transposed'"):
        soft_target(volume, text, findings, 1.0, text_targets="raw")
    with pytest.raises(ValueError, match="'positive' or 'ignore'"):
        info_nce(volume, text, 1.0, same_group="negative")
