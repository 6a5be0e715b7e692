"""Local views of volumes, each to be told which volume of the batch it was cut from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medclip_jax.losses.contrastive import one_way


def prototype_assignment(
    views: Float[Array, "batch views features"],
    volumes: Float[Array, "batch features"],
    *,
    temperature: float = 0.07,
    groups: Int[Array, "batch words"] | None = None,
    same_group: str = "positive",
    chunk_rows: int = 0,
) -> Float[Array, "batch views"]:
    """Cross-entropy of each view over the volumes of the batch, whose vectors are the classes' prototypes.

    The logit of view m of sample i for volume j is the cosine of their vectors / `temperature`. Unlike a
    linear layer over places in the batch, it means the same in every step, on any number of devices.

    Args:
        views: (B, M, D), not normalized.
        volumes: (B, D), not normalized; they get a gradient, too.
        temperature: of the softmax.
        groups: (B, G) equal rows mark samples that share a report, e.g. `batch["study"]`.
        same_group: what a view makes of the other members of its group, see `contrastive.info_nce`.
        chunk_rows: rows of a device at a time, see `contrastive`; 0 = the full matrix.

    Returns:
        (B, M) loss of each view.

    Raises:
        ValueError: unknown `same_group`.

    References:
        T3D, the loss of text-informed multi-view alignment, with the volumes as class weights.
    """
    batch, count, width = views.shape
    loss = one_way(
        views.reshape(batch * count, width),
        volumes,
        1.0 / temperature,
        groups=groups,
        same_group=same_group,
        chunk_rows=chunk_rows,
    )
    return loss.reshape(batch, count)


def slot_assignment(
    logits: Float[Array, "batch views batch"], *, temperature: float = 0.07
) -> Float[Array, "batch views"]:
    """Cross-entropy of each view over the places of the batch, its own being right.

    As the paper words it. The place of a sample is drawn anew in every step, so there is nothing to learn
    that holds in the next one: the best is log B.

    Args:
        logits: (B, M, B) of a linear layer.
        temperature: of the softmax.

    Returns:
        (B, M) loss of each view.

    References:
        T3D, the loss of text-informed multi-view alignment.
    """
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    return -jnp.einsum("imi->im", log_probability)
