"""Contrast of volumes with texts over a whole batch.

All take raw embeddings, normalise them here, compute in float32 and return the mean over the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

EXCLUDED = -1e30
"""Logit of a pair that takes no part: its probability is exactly 0 and no NaN can come of it."""


def normalize(vectors: Num[Array, "... features"]) -> Float[Array, "... features"]:
    """L2-normalise the last axis in float32; a zero vector stays zero, with zero gradient."""
    vectors = vectors.astype(jnp.float32)
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    nonzero = square > 1e-30
    return jnp.where(nonzero, vectors * jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def cosine(
    first: Num[Array, "rows features"], second: Num[Array, "columns features"]
) -> Float[Array, "rows columns"]:
    """All pairs of cosine similarities, in full float32 on every device."""
    return jnp.matmul(normalize(first), normalize(second).T, precision=jax.lax.Precision.HIGHEST)


def info_nce(
    volume: Float[Array, "batch features"],
    text: Float[Array, "batch features"],
    logit_scale: Float[Array, ""] | float,
    *,
    groups: Int[Array, "batch words"] | None = None,
    same_group: str = "positive",
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Symmetric softmax contrast; row i of `volume` belongs to row i of `text`.

    Args:
        volume: (B, D), not normalised.
        text: (B, D), not normalised.
        logit_scale: multiplier of the cosines, 1 / temperature.
        groups: (B, G) equal rows mark samples that share a report, e.g. `batch["study"]`.
        same_group: "positive" spreads a row's target evenly over its group; "ignore" takes the other
            members of the group out of the softmax.
        valid: (B,) False on rows of padding, which then count nowhere.

    Returns:
        Mean over valid rows and both directions.

    Raises:
        ValueError: unknown `same_group`.

    References:
        Radford et al. 2021, figure 3; Khosla et al. 2020, equation 2, for several positives.
    """
    positive, part = _pairs(volume.shape[0], groups, same_group, valid)
    targets = positive / jnp.maximum(positive.sum(axis=1, keepdims=True), 1.0)
    return _symmetric(logit_scale * cosine(volume, text), targets, targets, part, valid)


def sigmoid_pairs(
    volume: Float[Array, "batch features"],
    text: Float[Array, "batch features"],
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float,
    *,
    groups: Int[Array, "batch words"] | None = None,
    same_group: str = "positive",
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Each pair of the batch is a binary question: sum of -log sigmoid over all pairs, divided by B.

    Args:
        volume: (B, D), not normalised.
        text: (B, D), not normalised.
        logit_scale: multiplier of the cosines.
        logit_bias: added to the logits; -10 at the start in the paper.
        groups: (B, G) equal rows mark samples that share a report.
        same_group: "positive" counts such a pair as matching; "ignore" leaves it out.
        valid: (B,) False on rows of padding, which then count nowhere.

    Returns:
        Sum over pairs / valid rows.

    Raises:
        ValueError: unknown `same_group`.

    References:
        Zhai et al. 2023, equation 2.
    """
    positive, part = _pairs(volume.shape[0], groups, same_group, valid)
    logits = logit_scale * cosine(volume, text) + logit_bias
    losses = jnp.where(part, -jax.nn.log_sigmoid((2.0 * positive - 1.0) * logits), 0.0)
    return losses.sum() / _rows(volume.shape[0], valid)


def soft_target(
    volume: Float[Array, "batch features"],
    text: Float[Array, "batch features"],
    findings: Num[Array, "batch findings"],
    logit_scale: Float[Array, ""] | float,
    *,
    soft_target: str = "softmax",
    target_temperature: float = 1.0,
    text_targets: str = "renormalized",
    valid: Bool[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Softmax contrast whose targets follow how alike two patients' findings are.

    With A_ij the cosine of finding vectors i and j, the targets Q of row i are, by `soft_target`:
    "softmax": softmax_j(A_ij / target_temperature); "clip": max(A_ij, 0), renormalised; "onehot": the
    pair itself, which is plain InfoNCE. A itself has negative entries and is never a target.

    Args:
        volume: (B, D), not normalised.
        text: (B, D), not normalised.
        findings: (B, F) in {-1, +1}.
        logit_scale: multiplier of the cosines, 1 / temperature.
        soft_target: "softmax", "clip" or "onehot".
        target_temperature: of the softmax over A; 1 is the released code's, lower is sharper.
        text_targets: "renormalized" makes each text's row from A^T the same way; "transposed" takes Q^T
            as the released code does, whose rows do not sum to 1.
        valid: (B,) False on rows of padding, which then count nowhere.

    Returns:
        Mean over valid rows and both directions.

    Raises:
        ValueError: unknown `soft_target` or `text_targets`.

    References:
        Cardiac-CLIP, the soft-label contrast.
    """
    if text_targets not in ("renormalized", "transposed"):
        raise ValueError(f"text_targets={text_targets!r} is unknown: use 'renormalized' or 'transposed'")
    _, part = _pairs(volume.shape[0], None, "positive", valid)
    affinity = cosine(findings, findings)
    targets = _target_rows(affinity, part, soft_target, target_temperature)
    if text_targets == "transposed":
        back = targets.T
    else:
        back = _target_rows(affinity.T, part.T, soft_target, target_temperature)
    return _symmetric(logit_scale * cosine(volume, text), targets, back, part, valid)


def _target_rows(affinity, part, kind, temperature):
    if kind == "onehot":
        return jnp.eye(affinity.shape[0], dtype=jnp.float32)
    if kind == "softmax":
        return jax.nn.softmax(jnp.where(part, affinity / temperature, EXCLUDED), axis=1)
    if kind == "clip":
        positive = jnp.where(part, jnp.maximum(affinity, 0.0), 0.0)
        # A sample without findings (a zero vector) is like nobody, but still itself.
        alone = positive.sum(axis=1, keepdims=True) <= 0
        positive = jnp.where(alone, jnp.eye(affinity.shape[0]), positive)
        return positive / positive.sum(axis=1, keepdims=True)
    raise ValueError(f"soft_target={kind!r} is unknown: use 'softmax', 'clip' or 'onehot'")


def _pairs(batch, groups, same_group, valid):
    """Which pairs match (float) and which take part at all (bool), both (B, B)."""
    if same_group not in ("positive", "ignore"):
        raise ValueError(f"same_group={same_group!r} is unknown: use 'positive' or 'ignore'")
    positive = jnp.eye(batch, dtype=bool)
    part = jnp.ones((batch, batch), bool)
    if valid is not None:
        valid = valid.astype(bool)
        part = valid[:, None] & valid[None, :]
    if groups is not None:
        same = jnp.all(groups[:, None] == groups[None, :], axis=-1)
        if same_group == "positive":
            positive = positive | same
        else:
            part = part & (positive | ~same)
    return (positive & part).astype(jnp.float32), part


def _rows(batch, valid):
    return batch if valid is None else jnp.maximum(valid.sum().astype(jnp.float32), 1.0)


def _symmetric(logits, targets, back_targets, part, valid):
    """Half the cross-entropy of the rows plus half that of the columns."""
    rows = jax.nn.log_softmax(jnp.where(part, logits, EXCLUDED), axis=1)
    columns = jax.nn.log_softmax(jnp.where(part, logits, EXCLUDED).T, axis=1)
    # A target of 0 must silence an excluded pair, whose log-probability is huge.
    losses = -jnp.where(part, targets * rows, 0.0).sum(axis=1)
    losses = losses - jnp.where(part.T, back_targets * columns, 0.0).sum(axis=1)
    return 0.5 * losses.sum() / _rows(logits.shape[0], valid)
