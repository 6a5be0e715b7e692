"""Which organs fill a patch, predicted from its token."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num

REDUCTIONS = ("sum", "mean")


def organ_occupancy_sums(
    logits: Float[Array, "batch tokens organs"],
    fractions: Num[Array, "batch tokens organs"],
    *,
    organ_reduction: str = "sum",
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Per-sample sums behind `organ_occupancy`, with the same arguments.

    Returns:
        sum (B,): cross-entropy of the patches; count (B,): their number.

    Raises:
        ValueError: unknown `organ_reduction`.
    """
    if organ_reduction not in REDUCTIONS:
        raise ValueError(f"organ_reduction={organ_reduction!r} is unknown: use 'sum' or 'mean'")
    entropy = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), fractions.astype(jnp.float32))
    patches = entropy.sum(axis=-1) if organ_reduction == "sum" else entropy.mean(axis=-1)
    return patches.sum(axis=1), jnp.full(patches.shape[0], patches.shape[1], jnp.float32)


def organ_occupancy(
    logits: Float[Array, "batch tokens organs"],
    fractions: Num[Array, "batch tokens organs"],
    *,
    organ_reduction: str = "sum",
) -> Float[Array, ""]:
    """Cross-entropy between predicted and true shares of organs in patches, in float32.

    Args:
        logits: (B, N, O); their sigmoid is the predicted share.
        fractions: (B, N, O) share of the patch's voxels that belong to the organ, 0 to 1. Organs may overlap,
            and a patch may hold none.
        organ_reduction: "sum" adds the organs of a patch (the paper), "mean" averages them (its released
            code; exactly O times smaller).

    Returns:
        Scalar, the mean over all patches of the batch.

    Raises:
        ValueError: unknown `organ_reduction`.

    References:
        ASAP, section "Anatomical knowledge injection".
    """
    sums, counts = organ_occupancy_sums(logits, fractions, organ_reduction=organ_reduction)
    return sums.sum() / jnp.maximum(counts.sum(), 1.0)
