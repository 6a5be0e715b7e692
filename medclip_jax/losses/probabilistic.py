"""Losses between Gaussian embeddings: diagonal normal distributions, given by mean and log-variance.

All compute in float32. Means are taken as they are: a system that puts them on the unit sphere normalizes
them itself.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medclip_jax.losses.chunked import map_rows
from medclip_jax.losses.contrastive import matching_pairs

_FAR = 80.0
"""Difference of two log-variances beyond which the hyperbolic functions would overflow float32."""


def csd(
    mean_a: Float[Array, "rows features"],
    log_variance_a: Float[Array, "rows features"],
    mean_b: Float[Array, "columns features"],
    log_variance_b: Float[Array, "columns features"],
) -> Float[Array, "rows columns"]:
    """Closed-form sampled distance of all pairs, the expected squared distance of two draws.

    ``|mean_a - mean_b|^2 + trace(variance_a) + trace(variance_b)``; the smaller, the more alike.

    Args:
        mean_a: (A, D).
        log_variance_a: (A, D), natural logarithm.
        mean_b: (B, D).
        log_variance_b: (B, D).

    Returns:
        (A, B).

    References:
        Chun 2023, "Improved probabilistic image-text representations", equation 1; HiPro-CT, equation 5.
    """
    mean_a, mean_b = mean_a.astype(jnp.float32), mean_b.astype(jnp.float32)
    squares = jnp.sum(mean_a**2, axis=-1)[:, None] + jnp.sum(mean_b**2, axis=-1)[None, :]
    distance = jnp.maximum(squares - 2.0 * _products(mean_a, mean_b), 0.0)
    return distance + trace(log_variance_a)[:, None] + trace(log_variance_b)[None, :]


def pair_logits(
    mean_a: Float[Array, "rows features"],
    log_variance_a: Float[Array, "rows features"],
    mean_b: Float[Array, "columns features"],
    log_variance_b: Float[Array, "columns features"],
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float,
) -> Float[Array, "rows columns"]:
    """Logits that two Gaussians belong together: ``scale (mean . mean - traces / 2) + bias``.

    For means of length 1 this is ``scale (1 - csd / 2) + bias``.

    Args:
        mean_a: (A, D).
        log_variance_a: (A, D).
        mean_b: (B, D).
        log_variance_b: (B, D).
        logit_scale: the multiplier itself, not its logarithm.
        logit_bias: added to all.

    Returns:
        (A, B).

    References:
        HiPro-CT, equation 6.
    """
    traces = trace(log_variance_a)[:, None] + trace(log_variance_b)[None, :]
    alike = _products(mean_a.astype(jnp.float32), mean_b.astype(jnp.float32)) - 0.5 * traces
    return jnp.asarray(logit_scale, jnp.float32) * alike + jnp.asarray(logit_bias, jnp.float32)


def sigmoid_pair_loss(
    logits: Float[Array, "batch batch"],
    *,
    positive: Bool[Array, "batch batch"] | None = None,
    part: Bool[Array, "batch batch"] | None = None,
) -> Float[Array, ""]:
    """Each pair is a binary question; the sum of -log sigmoid over pairs, divided by the rows that take part.

    Args:
        logits: (B, B), row i and column i of one sample.
        positive: (B, B) True where a pair belongs together; by default the diagonal.
        part: (B, B) False on pairs that take no part (padding, samples without an organ, pairs that are
            neither alike nor unlike). A row whose diagonal takes no part does not count as a row.

    Returns:
        Sum over pairs / rows; 0 where no pair takes part.

    References:
        Zhai et al. 2023, "Sigmoid loss for language image pre-training", equation 2.
    """
    logits = logits.astype(jnp.float32)
    diagonal = jnp.eye(logits.shape[0], dtype=bool)
    positive = diagonal if positive is None else positive
    losses = -jax.nn.log_sigmoid(jnp.where(positive, logits, -logits))
    if part is None:
        return losses.sum() / logits.shape[0]
    rows = jnp.maximum(jnp.where(diagonal, part, False).sum(), 1)
    return jnp.where(part, losses, 0.0).sum() / rows


def pair_contrast(
    mean_a: Float[Array, "batch features"],
    log_variance_a: Float[Array, "batch features"],
    mean_b: Float[Array, "batch features"],
    log_variance_b: Float[Array, "batch features"],
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float,
    *,
    groups: Int[Array, "batch words"] | None = None,
    same_group: str = "positive",
    alike: Int[Array, " batch"] | None = None,
    valid: Bool[Array, " batch"] | None = None,
    chunk_rows: int = 0,
) -> Float[Array, ""]:
    """`sigmoid_pair_loss` of `pair_logits` over a full batch, some rows at a time.

    Under a mesh each device takes its own rows against all columns, see `losses.chunked.map_rows`.

    Args:
        mean_a: (B, D); row i belongs to row i of b.
        log_variance_a: (B, D).
        mean_b: (B, D).
        log_variance_b: (B, D).
        logit_scale: the multiplier itself, not its logarithm.
        logit_bias: added to all.
        groups: (B, G) equal rows mark samples that belong together.
        same_group: "positive" counts such a pair as matching; "ignore" leaves it out.
        alike: (B,) samples with equal numbers from 0 on may as well belong together: such a pair is
            left out, unless it is positive. Negative numbers are like nothing.
        valid: (B,) False on samples that take no part, neither as row nor as column.
        chunk_rows: rows of a device at a time, computed again in the backward pass; 0 = all, and kept.

    Returns:
        Sum over the pairs that take part / valid rows; 0 where none is.

    Raises:
        ValueError: unknown `same_group`.

    References:
        HiPro-CT, section 3.5.1.
    """

    def questions(rows, columns):
        positive, part = matching_pairs(rows, columns, same_group)
        if "alike" in rows:
            equal = rows["alike"][:, None] == columns["alike"][None, :]
            part = part & ((positive > 0) | ~(equal & (rows["alike"] >= 0)[:, None]))
        traces = rows["trace"][:, None] + columns["trace"][None, :]
        alike = _products(rows["mean"], columns["mean"]) - 0.5 * traces
        logits = columns["scale"] * alike + columns["bias"]
        return jnp.where(part, -jax.nn.log_sigmoid((2.0 * positive - 1.0) * logits), 0.0).sum(axis=1)

    batch = mean_a.shape[0]
    known = {"groups": groups, "alike": alike, "valid": valid}
    samples = {"index": jnp.arange(batch)} | {name: x for name, x in known.items() if x is not None}
    # Of a variance only the trace is needed: one number travels to the other devices, not D.
    rows = {"mean": mean_a.astype(jnp.float32), "trace": trace(log_variance_a), **samples}
    columns = {"mean": mean_b.astype(jnp.float32), "trace": trace(log_variance_b), **samples}
    numbers = {"scale": jnp.asarray(logit_scale, jnp.float32), "bias": jnp.asarray(logit_bias, jnp.float32)}
    losses = map_rows(questions, rows, columns | numbers, chunk_rows)
    count = batch if valid is None else jnp.maximum(valid.sum().astype(jnp.float32), 1.0)
    return losses.sum() / count


def inclusion(
    mean_1: Float[Array, "*batch features"],
    log_variance_1: Float[Array, "*batch features"],
    mean_2: Float[Array, "*batch features"],
    log_variance_2: Float[Array, "*batch features"],
    *,
    form: str = "exact",
    reduce: str = "per_dim",
) -> Float[Array, "*batch features"] | Float[Array, "*batch"]:
    """How far distribution 1 lies inside distribution 2: ``log int p1^2 p2 - log int p1 p2^2``.

    Positive where 1 is the narrower one. With t = l2 - l1, the difference of the log-variances, and d the
    difference of the means, one dimension gives

        t/2 - ln((1 + 2 e^t) / (2 + e^t)) / 2 + d^2 e^(-(l1 + l2)/2) 2 sinh(t/2) / (5 + 4 cosh t)

    Both integrals are Gaussian; what is left of their quotients once common factors are canceled, so that
    nothing large is subtracted from something large.

    Args:
        mean_1: (..., D) of the distribution that should lie inside.
        log_variance_1: (..., D).
        mean_2: (..., D) of the one that should contain it.
        log_variance_2: (..., D).
        form: "exact", or "prolip": ``t`` instead of ``t/2`` in front, as in ProLIP's released code, where
            the normalizing constants are taken twice.
        reduce: "per_dim" keeps the dimensions apart; "joint" sums them, the score of the full vectors.

    Returns:
        (..., D), or (...) for "joint".

    Raises:
        ValueError: unknown `form` or `reduce`.

    References:
        HiPro-CT, equation 7; Chun et al. 2024, "Probabilistic language-image pre-training", section 3.3.
    """
    if form not in ("exact", "prolip"):
        raise ValueError(f"form={form!r} is unknown: use 'exact' or 'prolip'")
    if reduce not in ("per_dim", "joint"):
        raise ValueError(f"reduce={reduce!r} is unknown: use 'per_dim' or 'joint'")
    mean_1, log_variance_1, mean_2, log_variance_2 = (
        x.astype(jnp.float32) for x in (mean_1, log_variance_1, mean_2, log_variance_2)
    )
    wider = log_variance_2 - log_variance_1
    log_2 = math.log(2.0)
    widths = (0.5 if form == "exact" else 1.0) * wider
    widths -= 0.5 * (jnp.logaddexp(0.0, wider + log_2) - jnp.logaddexp(log_2, wider))
    near = jnp.clip(wider, -_FAR, _FAR)
    share = 2.0 * jnp.sinh(0.5 * near) / (5.0 + 4.0 * jnp.cosh(near))
    # The difference over the geometric mean of the deviations first: its square alone may be too small.
    scaled = (mean_1 - mean_2) * jnp.exp(-0.25 * (log_variance_1 + log_variance_2))
    scores = widths + scaled**2 * share
    return scores if reduce == "per_dim" else scores.sum(axis=-1)


def inclusion_loss(
    mean_1: Float[Array, "*batch features"],
    log_variance_1: Float[Array, "*batch features"],
    mean_2: Float[Array, "*batch features"],
    log_variance_2: Float[Array, "*batch features"],
    *,
    form: str = "exact",
    reduce: str = "per_dim",
    scale: float = 1.0,
    eps: float = 1e-6,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """``-log sigmoid(scale * inclusion)``, with scores beyond odds of 1 / eps compressed.

    A score s beyond ``limit = -ln eps`` becomes ``limit (1 + ln(s / limit))``, a negative one likewise:
    equal in value and slope at the limit. A pair far from being included so pulls no harder the farther it
    is, and still pulls; a clamp would drop it.

    Args:
        mean_1: (..., D) of the distribution that should lie inside.
        log_variance_1: (..., D).
        mean_2: (..., D) of the one that should contain it.
        log_variance_2: (..., D).
        form: see `inclusion`.
        reduce: "per_dim" asks each dimension and takes the mean; "joint" asks the sum over the dimensions.
        scale: multiplier of the scores.
        eps: probability within which of 0 or 1 a score is compressed; above 0, below 1/2.

    Returns:
        The loss (...), and the share (...) of its scores that were compressed.

    Raises:
        ValueError: unknown `form` or `reduce`, or an `eps` that is no small probability.

    References:
        HiPro-CT, section 3.5.2; the limit is ours.
    """
    if not 0.0 < eps < 0.5:
        raise ValueError(f"eps={eps}: give a probability above 0 and below 0.5, such as 1e-6")
    scores = scale * inclusion(mean_1, log_variance_1, mean_2, log_variance_2, form=form, reduce=reduce)
    limit = -math.log(eps)
    size = jnp.abs(scores)
    far = size > limit
    beyond = jnp.sign(scores) * limit * (1.0 + jnp.log(jnp.where(far, size, limit) / limit))
    losses = -jax.nn.log_sigmoid(jnp.where(far, beyond, scores))
    compressed = far.astype(jnp.float32)
    if reduce == "joint":
        return losses, compressed
    return losses.mean(axis=-1), compressed.mean(axis=-1)


def vib(
    mean: Float[Array, "*batch features"],
    log_variance: Float[Array, "*batch features"],
    *,
    reduce: str = "mean",
) -> Float[Array, "*batch"]:
    """Kullback-Leibler divergence from the standard normal distribution, a bottleneck on information.

    ``(mean^2 + variance - 1 - ln variance) / 2`` of each dimension.

    Args:
        mean: (..., D).
        log_variance: (..., D).
        reduce: "mean" over the dimensions, or "sum", the divergence itself: hundreds of dimensions that
            start at a log-variance of -10 then outweigh every other loss.

    Returns:
        (...).

    Raises:
        ValueError: unknown `reduce`.

    References:
        HiPro-CT, equation 8; Alemi et al. 2017, "Deep variational information bottleneck".
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce={reduce!r} is unknown: use 'mean' or 'sum'")
    mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
    # expm1(l) - l: variance - 1 - ln variance without cancellation near 0.
    divergence = 0.5 * (mean**2 + jnp.expm1(log_variance) - log_variance)
    return divergence.mean(axis=-1) if reduce == "mean" else divergence.sum(axis=-1)


def trace(log_variance: Float[Array, "*batch features"]) -> Float[Array, "*batch"]:
    """Trace of the diagonal covariance: the uncertainty of an embedding in one number.

    Args:
        log_variance: (..., D).

    Returns:
        (...).
    """
    return jnp.exp(log_variance.astype(jnp.float32)).sum(axis=-1)


def _products(a, b):
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
