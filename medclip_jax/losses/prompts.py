"""Volumes against prompts: is a finding there or not, asked as zero-shot classification asks it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medclip_jax.losses.contrastive import cosine


def finding_prompts(
    volume: Float[Array, "batch features"],
    positive: Float[Array, "findings features"],
    negative: Float[Array, "findings features"],
    status: Int[Array, "batch findings"],
    logit_scale: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "batch findings"]]:
    """Binary cross-entropy of "There is X." against "There is no X.", over the findings that are known.

    The logit of a finding is ``scale (cos(volume, positive) - cos(volume, negative))``; its sigmoid is the
    softmax over the two prompts, which is what zero-shot classification reports. Computed in float32.

    Args:
        volume: (B, D), not normalized.
        positive: (F, D) vectors of the prompts for presence, not normalized.
        negative: (F, D) of those for absence.
        status: (B, F): above 0 present, below 0 absent, 0 unknown, which takes no part.
        logit_scale: multiplier of the cosines.

    Returns:
        Sum over what is known, the number of known, and all logits (B, F). The mean is sum / number; where
        nothing is known both are 0.

    References:
        Radford et al. 2021, "Learning transferable visual models from natural language supervision",
        section 3.1 (pairs of prompts); the loss is the cross-entropy of that classifier.
    """
    logits = jnp.asarray(logit_scale, jnp.float32) * (cosine(volume, positive) - cosine(volume, negative))
    known = status != 0
    losses = -jax.nn.log_sigmoid(jnp.where(status > 0, logits, -logits))
    return jnp.where(known, losses, 0.0).sum(), known.sum().astype(jnp.float32), logits
