"""Overlap and cross entropy of predicted classes of voxels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from medclip_jax.corpora.study import OUTSIDE_LABEL


class OverlapSums(NamedTuple):
    """Sums over the voxels of an image that are labeled; they add up over images.

    Attributes:
        shared: (..., K) probability of each class where it is the true one.
        predicted: (..., K) probability of each class.
        true: (..., K) voxels of each class.
        cross_entropy: (...) summed over voxels, in nats.
        voxels: (...) that are labeled.
    """

    shared: Float[Array, "*images classes"]
    predicted: Float[Array, "*images classes"]
    true: Float[Array, "*images classes"]
    cross_entropy: Float[Array, "*images"]
    voxels: Float[Array, "*images"]


def overlap_sums(
    logits: Float[Array, "images ... classes"], labels: UInt8[Array, "images ..."]
) -> OverlapSums:
    """What Dice's coefficient and the mean cross entropy are made of, for each image, in float32.

    Args:
        logits: (N, ..., K), class 0 the background.
        labels: (N, ...) classes below K; `OUTSIDE_LABEL` where a voxel counts for nothing.
    """
    images, classes = logits.shape[0], logits.shape[-1]
    logits = logits.reshape(images, -1, classes).astype(jnp.float32)
    labels = labels.reshape(images, -1)
    valid = (labels != OUTSIDE_LABEL).astype(jnp.float32)
    # A label that the model does not know has no column, and is all 0 here.
    truth = jax.nn.one_hot(labels, classes)
    logs = jax.nn.log_softmax(logits)
    probability = jnp.exp(logs) * valid[..., None]
    return OverlapSums(
        shared=(probability * truth).sum(axis=1),
        predicted=probability.sum(axis=1),
        true=truth.sum(axis=1),
        cross_entropy=-(logs * truth).sum(axis=(1, 2)),
        voxels=valid.sum(axis=1),
    )


def soft_dice(
    shared: Float[Array, "*images classes"],
    predicted: Float[Array, "*images classes"],
    true: Float[Array, "*images classes"],
    *,
    smooth: float = 1e-5,
) -> Float[Array, "*images classes"]:
    """Dice's coefficient of probabilities: (2 shared + smooth) / (predicted + true + smooth).

    1 for a class that is neither there nor predicted.

    Args:
        shared, predicted, true: from `overlap_sums`, of each image or summed over images.
        smooth: keeps classes of no voxels defined.

    References:
        Milletari et al. 2016, "V-Net", equation 3, with sums instead of sums of squares below.
    """
    return (2.0 * shared + smooth) / (predicted + true + smooth)
