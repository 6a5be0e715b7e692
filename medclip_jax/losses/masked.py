"""Reconstruction of masked patches and masked words."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num


def normalize_target(
    target: Num[Array, "batch tokens voxels"], epsilon: float = 1e-6
) -> Float[Array, "batch tokens voxels"]:
    """Give every patch mean 0 and (population) variance 1; a patch of one value becomes 0."""
    target = target.astype(jnp.float32)
    centered = target - target.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return centered / jnp.sqrt(variance + epsilon)


def reconstruction_sums(
    prediction: Float[Array, "batch tokens voxels"],
    target: Num[Array, "batch tokens voxels"],
    mask: Num[Array, "batch tokens"],
    *,
    normalize_patches: bool = True,
    epsilon: float = 1e-6,
    denominator: str = "masked",
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Per-sample sums behind `reconstruction`, with the same arguments.

    Returns:
        sum (B,): squared error of the masked patches, each averaged over its voxels; count (B,): masked
        patches, or all patches with ``denominator="all"``.

    Raises:
        ValueError: unknown `denominator`.
    """
    if denominator not in ("masked", "all"):
        raise ValueError(f"denominator={denominator!r} is unknown: use 'masked' or 'all'")
    target = normalize_target(target, epsilon) if normalize_patches else target.astype(jnp.float32)
    error = jnp.mean((prediction.astype(jnp.float32) - target) ** 2, axis=-1)
    mask = mask.astype(jnp.float32)
    count = mask if denominator == "masked" else jnp.ones_like(mask)
    return (error * mask).sum(axis=1), count.sum(axis=1)


def reconstruction(
    prediction: Float[Array, "batch tokens voxels"],
    target: Num[Array, "batch tokens voxels"],
    mask: Num[Array, "batch tokens"],
    *,
    normalize_patches: bool = True,
    epsilon: float = 1e-6,
    denominator: str = "masked",
) -> Float[Array, ""]:
    """Mean squared error over the masked patches, in float32.

    Args:
        prediction: (B, N, P) voxels predicted by the decoder.
        target: (B, N, P) voxels of the volume, `medclip_jax.models.patches.patchify`.
        mask: (B, N), 1 where masked, 0 where visible.
        normalize_patches: compare with each patch's own mean 0, variance 1.
        epsilon: added to the variance of a patch.
        denominator: "masked" divides by the masked patches, "all" by all (ASAP's released code).

    Returns:
        Scalar; 0 where nothing is masked.

    Raises:
        ValueError: unknown `denominator`.

    References:
        He et al. 2022, section 3, "Reconstruction target".
    """
    sums, counts = reconstruction_sums(
        prediction,
        target,
        mask,
        normalize_patches=normalize_patches,
        epsilon=epsilon,
        denominator=denominator,
    )
    return sums.sum() / jnp.maximum(counts.sum(), 1.0)


def language_sums(
    logits: Float[Array, "batch length vocabulary"],
    targets: Int[Array, "batch length"],
    mask: Num[Array, "batch length"],
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Per-sample sums behind `language`: cross-entropy of the masked words (B,), and their number (B,)."""
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    mask = mask.astype(jnp.float32)
    return (entropy * mask).sum(axis=1), mask.sum(axis=1)


def language(
    logits: Float[Array, "batch length vocabulary"],
    targets: Int[Array, "batch length"],
    mask: Num[Array, "batch length"],
) -> Float[Array, ""]:
    """Cross-entropy of the masked words, in float32.

    Args:
        logits: (B, L, V).
        targets: (B, L) ids of the true words; any id in [0, V) where not masked.
        mask: (B, L), 1 where masked, 0 elsewhere.

    Returns:
        Scalar, the mean over the masked words of the batch; 0 where nothing is masked.

    References:
        Devlin et al. 2019, "BERT", section 3.1, task 1.
    """
    sums, counts = language_sums(logits, targets, mask)
    return sums.sum() / jnp.maximum(counts.sum(), 1.0)
