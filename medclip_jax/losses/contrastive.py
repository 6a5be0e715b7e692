"""Contrast of volumes with texts over a full batch.

All take raw embeddings, normalize them here, compute in float32 and return the mean over the batch. With
`chunk_rows` a device computes that many rows of the pair matrix at a time and again in the backward pass:
what is kept for it grows linearly with the batch, at about a third more arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from medclip_jax.losses.chunked import map_rows
from medclip_jax.vectors import normalize

EXCLUDED = -1e30
"""Logit of a pair that takes no part: its probability is exactly 0 and no NaN can come of it."""


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
    chunk_rows: int = 0,
) -> Float[Array, ""]:
    """Symmetric softmax contrast; row i of `volume` belongs to row i of `text`.

    Args:
        volume: (B, D), not normalized.
        text: (B, D), not normalized.
        logit_scale: multiplier of the cosines, 1 / temperature.
        groups: (B, G) equal rows mark samples that share a report, e.g. `batch["study"]`.
        same_group: "positive" spreads a row's target evenly over its group; "ignore" takes the other
            members of the group out of the softmax.
        valid: (B,) False on rows of padding, which then count nowhere.
        chunk_rows: rows of a device at a time, see above; 0 = the full matrix.

    Returns:
        Mean over valid rows and both directions.

    Raises:
        ValueError: unknown `same_group`.

    References:
        Radford et al. 2021, figure 3; Khosla et al. 2020, equation 2, for several positives.
    """
    _check_same_group(same_group)

    def own_pair(rows, columns):
        return _own_pair(rows, columns, same_group)

    samples = _samples(volume.shape[0], groups=groups, valid=valid)
    return _both_ways(own_pair, own_pair, volume, text, logit_scale, samples, {}, chunk_rows)


def one_way(
    rows: Float[Array, "rows features"],
    columns: Float[Array, "columns features"],
    logit_scale: Float[Array, ""] | float,
    *,
    groups: Int[Array, "columns words"] | None = None,
    same_group: str = "positive",
    normalized: bool = True,
    chunk_rows: int = 0,
) -> Float[Array, " rows"]:
    """Softmax contrast of rows with columns, in this direction alone; several rows may belong to a column.

    Args:
        rows: (B * M, D); rows i * M ... i * M + M - 1 belong to column i.
        columns: (B, D).
        logit_scale: multiplier of the similarities, 1 / temperature.
        groups: (B, G) equal rows mark columns that share a report.
        same_group: as of `info_nce`.
        normalized: compare by cosines; else by dot products.
        chunk_rows: rows of a device at a time, see above; 0 = the full matrix.

    Returns:
        (B * M,) loss of each row.

    Raises:
        ValueError: unknown `same_group`.
    """
    _check_same_group(same_group)
    if normalized:
        rows, columns = normalize(rows), normalize(columns)

    batch, count = columns.shape[0], rows.shape[0] // columns.shape[0]
    samples = _samples(batch, groups=groups)
    each = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), samples)
    scale = jnp.asarray(logit_scale, jnp.float32)
    return map_rows(
        lambda rows, columns: _own_pair(rows, columns, same_group),
        {"vector": rows.astype(jnp.float32), **each},
        {"vector": columns.astype(jnp.float32), "scale": scale, **samples},
        chunk_rows,
    )


def sigmoid_pairs(
    volume: Float[Array, "batch features"],
    text: Float[Array, "batch features"],
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float,
    *,
    groups: Int[Array, "batch words"] | None = None,
    same_group: str = "positive",
    valid: Bool[Array, " batch"] | None = None,
    chunk_rows: int = 0,
) -> Float[Array, ""]:
    """Each pair of the batch is a binary question: sum of -log sigmoid over all pairs, divided by B.

    Args:
        volume: (B, D), not normalized.
        text: (B, D), not normalized.
        logit_scale: multiplier of the cosines.
        logit_bias: added to the logits; -10 at the start in the paper.
        groups: (B, G) equal rows mark samples that share a report.
        same_group: "positive" counts such a pair as matching; "ignore" leaves it out.
        valid: (B,) False on rows of padding, which then count nowhere.
        chunk_rows: rows of a device at a time, see above; 0 = the full matrix.

    Returns:
        Sum over pairs / valid rows.

    Raises:
        ValueError: unknown `same_group`.

    References:
        Zhai et al. 2023, equation 2.
    """
    _check_same_group(same_group)

    def questions(rows, columns):
        positive, part = matching_pairs(rows, columns, same_group)
        logits = columns["scale"] * _products(rows, columns) + columns["bias"]
        return jnp.where(part, -jax.nn.log_sigmoid((2.0 * positive - 1.0) * logits), 0.0).sum(axis=1)

    samples = _samples(volume.shape[0], groups=groups, valid=valid)
    numbers = {"scale": jnp.asarray(logit_scale, jnp.float32), "bias": jnp.asarray(logit_bias, jnp.float32)}
    columns = {"vector": normalize(text), **numbers, **samples}
    losses = map_rows(questions, {"vector": normalize(volume), **samples}, columns, chunk_rows)
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
    chunk_rows: int = 0,
) -> Float[Array, ""]:
    """Softmax contrast whose targets follow how alike two patients' findings are.

    With A_ij the cosine of finding vectors i and j, the targets Q of row i are, by `soft_target`:
    "softmax": softmax_j(A_ij / target_temperature); "clip": max(A_ij, 0), renormalized; "onehot": the
    pair itself, which is plain InfoNCE. A itself has negative entries and is never a target.

    Args:
        volume: (B, D), not normalized.
        text: (B, D), not normalized.
        findings: (B, F) in {-1, +1}.
        logit_scale: multiplier of the cosines, 1 / temperature.
        soft_target: "softmax", "clip" or "onehot".
        target_temperature: of the softmax over A; 1 is the released code's, lower is sharper.
        text_targets: "renormalized" makes each text's row from A^T the same way; "transposed" takes Q^T
            as the released code does, whose rows do not sum to 1.
        valid: (B,) False on rows of padding, which then count nowhere.
        chunk_rows: rows of a device at a time, see above; 0 = the full matrix.

    Returns:
        Mean over valid rows and both directions.

    Raises:
        ValueError: unknown `soft_target` or `text_targets`.

    References:
        Cardiac-CLIP, the soft-label contrast.
    """
    if text_targets not in ("renormalized", "transposed"):
        raise ValueError(f"text_targets={text_targets!r} is unknown: use 'renormalized' or 'transposed'")
    if soft_target not in ("softmax", "clip", "onehot"):
        raise ValueError(f"soft_target={soft_target!r} is unknown: use 'softmax', 'clip' or 'onehot'")

    def affinity(rows, columns):
        own, part = matching_pairs(rows, columns, "positive")
        alike = _products(rows, columns, "findings")
        if soft_target == "softmax":
            return jnp.where(part, alike / target_temperature, EXCLUDED), own, part
        return jnp.where(part, jnp.maximum(alike, 0.0), 0.0), own, part

    def normalizer(rows, columns):
        # Peak and sum apart: their logarithm in one number would cost digits at low temperatures.
        alike, _, _ = affinity(rows, columns)
        peak = jax.lax.stop_gradient(alike.max(axis=1))
        weights = jnp.exp(alike - peak[:, None]) if soft_target == "softmax" else alike
        return {"peak": peak, "sum": weights.sum(axis=1)}

    def targets(rows, columns, peak, divisor):
        alike, own, part = affinity(rows, columns)
        if soft_target == "onehot":
            return own, part
        if soft_target == "softmax":
            return jnp.where(part, jnp.exp(alike - peak), 0.0) / divisor, part
        # A sample without findings (a zero vector) is like nobody, but still itself.
        alone = divisor <= 0
        return jnp.where(alone, own, alike / jnp.where(alone, 1.0, divisor)), part

    def of_its_own(rows, columns):
        known = normalizer(rows, columns)
        target, part = targets(rows, columns, known["peak"][:, None], known["sum"][:, None])
        return _cross_entropy(columns["scale"] * _products(rows, columns), target, part)

    def of_the_volumes(rows, columns):
        target, part = targets(rows, columns, columns["peak"][None, :], columns["sum"][None, :])
        return _cross_entropy(columns["scale"] * _products(rows, columns), target, part)

    samples = _samples(volume.shape[0], findings=normalize(findings), valid=valid)
    more, backward = {}, of_its_own
    if text_targets == "transposed":
        more, backward = map_rows(normalizer, samples, samples, chunk_rows), of_the_volumes
    return _both_ways(of_its_own, backward, volume, text, logit_scale, samples, more, chunk_rows)


def _check_same_group(same_group):
    if same_group not in ("positive", "ignore"):
        raise ValueError(f"same_group={same_group!r} is unknown: use 'positive' or 'ignore'")


def _samples(batch, **known):
    """What is known of each sample beside its two vectors."""
    given = {name: x for name, x in known.items() if x is not None}
    return {"index": jnp.arange(batch), **given}


def _products(rows, columns, name="vector"):
    return jnp.matmul(rows[name], columns[name].T, precision=jax.lax.Precision.HIGHEST)


def matching_pairs(
    rows: Mapping[str, Array], columns: Mapping[str, Array], same_group: str
) -> tuple[Float[Array, "rows columns"], Bool[Array, "rows columns"]]:
    """Which pairs match (1 or 0) and which take part at all.

    Args:
        rows: what is known of each sample of the rows: "index", "groups" and "valid" where there are any.
        columns: the same of the columns.
        same_group: see `sigmoid_pairs`.

    Raises:
        ValueError: unknown `same_group`.
    """
    _check_same_group(same_group)
    positive = rows["index"][:, None] == columns["index"][None, :]
    part = jnp.ones(positive.shape, bool)
    if "valid" in rows:
        part = rows["valid"].astype(bool)[:, None] & columns["valid"].astype(bool)[None, :]
    if "groups" in rows:
        same = jnp.all(rows["groups"][:, None] == columns["groups"][None, :], axis=-1)
        if same_group == "positive":
            positive = positive | same
        else:
            part = part & (positive | ~same)
    return (positive & part).astype(jnp.float32), part


def _rows(batch, valid):
    return batch if valid is None else jnp.maximum(valid.sum().astype(jnp.float32), 1.0)


def _own_pair(rows, columns, same_group):
    """(rows,) cross-entropy against the matching columns, which share the target evenly."""
    positive, part = matching_pairs(rows, columns, same_group)
    targets = positive / jnp.maximum(positive.sum(axis=1, keepdims=True), 1.0)
    return _cross_entropy(columns["scale"] * _products(rows, columns), targets, part)


def _cross_entropy(logits, targets, part):
    """(rows,) -sum_j targets_ij log softmax_j(logits_ij) over the pairs that take part."""
    log_probability = jax.nn.log_softmax(jnp.where(part, logits, EXCLUDED), axis=1)
    # A target of 0 must silence an excluded pair, whose log-probability is huge.
    return -jnp.where(part, targets * log_probability, 0.0).sum(axis=1)


def _both_ways(forward, backward, volume, text, scale, samples, more, chunk_rows):
    """Half of `forward` on volumes against texts plus half of `backward` on texts against volumes."""
    volume, text = normalize(volume), normalize(text)
    shared = {"scale": jnp.asarray(scale, jnp.float32), **samples}
    losses = map_rows(forward, {"vector": volume, **samples}, {"vector": text, **shared}, chunk_rows)
    back = map_rows(backward, {"vector": text, **samples}, {"vector": volume, **shared, **more}, chunk_rows)
    return 0.5 * (losses + back).sum() / _rows(volume.shape[0], samples.get("valid"))
