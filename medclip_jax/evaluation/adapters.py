"""Two projections that are trained on frozen encoders: of volumes, and of texts, into a space of their own.

Vectors are compared by the cosine of their projections. Nothing else is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int8

from medclip_jax.vectors import normalize

WIDTH = 768
"""Of the space of the projections."""


class Adapters(NamedTuple):
    """Weights and shifts of both projections.

    Attributes:
        volume: (P, W) and (W,).
        text: (E, W) and (W,).
    """

    volume: tuple[Float[Array, "P W"], Float[Array, " W"]]
    text: tuple[Float[Array, "E W"], Float[Array, " W"]]


class Schedule(NamedTuple):
    """How projections are trained: by AdamW at one rate, in batches whose order the seed draws.

    Attributes:
        epochs: passes over the volumes.
        batch: volumes at a time; the last batch of an epoch has those that are left.
        learning_rate: of AdamW.
        weight_decay: likewise.
        seed: of the initial weights and of the order.
    """

    epochs: int
    batch: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0


def project(
    vectors: Float[Array, "*N E"], projection: tuple[Float[Array, "E W"], Float[Array, " W"]]
) -> Float[Array, "*N W"]:
    """Into the space of the projections, of length 1."""
    weight, shift = projection
    return normalize(vectors @ weight + shift)


def projected(
    vectors: Float[np.ndarray, "*N E"], projection: tuple[np.ndarray, np.ndarray]
) -> Float[np.ndarray, "*N W"]:
    """`project` of arrays on the host.

    Args:
        vectors: features of volumes, or vectors of texts.
        projection: of `Adapters`.
    """
    given = jax.device_put((np.asarray(vectors, np.float32), projection))
    return np.asarray(jax.device_get(_project(*given)))


def vocabulary_loss(
    adapters: Adapters,
    volumes: Float[Array, "B P"],
    prompts: Float[Array, "F 2 E"],
    labels: Int8[Array, "B F"],
) -> Float[Array, ""]:
    """Mean squared error of the softmax over a pair of prompts, over all known labels of the batch.

    With a and b the cosines to the prompt of absence and to that of presence, p = softmax((a, b)), and y the
    true one of (1, 0) and (0, 1), it is the mean of ``|p - y|^2 / 2``.

    Args:
        adapters: both projections.
        volumes: features of a batch.
        prompts: of each finding, that of absence first.
        labels: 1 present, -1 absent, 0 unknown.
    """
    seen, told = project(volumes, adapters.volume), project(prompts, adapters.text)
    chances = jax.nn.softmax(jnp.einsum("bw,fcw->bfc", seen, told), axis=-1)
    truth = jnp.stack([labels == -1, labels == 1], axis=-1)
    errors = ((chances - truth) ** 2).mean(axis=-1)
    known = labels != 0
    return jnp.where(known, errors, 0.0).sum() / jnp.maximum(known.sum(), 1)


def pair_loss(
    adapters: Adapters,
    volumes: Float[Array, "B P"],
    texts: Float[Array, "B E"],
    there: Int8[Array, " B"],
) -> Float[Array, ""]:
    """InfoNCE without temperature: each volume finds its text among the batch's, and the reverse.

    Args:
        adapters: both projections.
        volumes: features of a batch.
        texts: vectors of their texts.
        there: 1 for rows that count, 0 for those that only fill the batch up.
    """
    scores = project(volumes, adapters.volume) @ project(texts, adapters.text).T
    counted = there == 1
    scores = jnp.where(counted[:, None] & counted[None], scores, -jnp.inf)
    scores = jnp.where(jnp.eye(len(scores), dtype=bool) & ~counted[:, None], 0.0, scores)
    diagonal = jnp.diagonal(scores)
    losses = sum(jax.nn.logsumexp(scores, axis=axis) - diagonal for axis in (0, 1)) / 2
    return jnp.where(counted, losses, 0.0).sum() / jnp.maximum(counted.sum(), 1)


_project = jax.jit(project)


def train(
    loss: Callable[[Adapters, Mapping[str, Array]], Float[Array, ""]],
    data: Mapping[str, np.ndarray],
    widths: tuple[int, int],
    schedule: Schedule,
) -> Adapters:
    """Train both projections.

    Args:
        loss: of a batch: of the adapters and of rows of `data`.
        data: arrays with a row for each volume; rows that fill up the last batch of an epoch are 0.
        widths: of the features of volumes, and of the vectors of texts.
        schedule: of the training.
    """
    count = len(next(iter(data.values())))
    adapters = _fresh(schedule.seed, widths)
    optimizer = optax.adamw(schedule.learning_rate, weight_decay=schedule.weight_decay)
    state = jax.jit(optimizer.init)(adapters)
    epoch = jax.jit(partial(_epoch, loss, optimizer))
    padded = {name: np.concatenate([rows, np.zeros_like(rows[:1])]) for name, rows in data.items()}
    padded = jax.device_put(padded)  # explicitly: the training loop forbids implicit transfers
    for order in _orders(count, schedule):
        adapters, state = epoch(adapters, state, padded, jax.device_put(order))
    return jax.device_get(adapters)


def _orders(count: int, schedule: Schedule) -> Iterator[np.ndarray]:
    """Rows of each epoch, a line for each batch; `count` stands for a row of zeros."""
    generator = np.random.default_rng(schedule.seed)
    batches = -(-count // schedule.batch)
    for _ in range(schedule.epochs):
        order = np.full(batches * schedule.batch, count, np.int32)
        order[:count] = generator.permutation(count)
        yield order.reshape(batches, schedule.batch)


def _epoch(loss, optimizer, adapters, state, data, order):
    def step(carry, rows):
        adapters, state = carry
        slope = jax.grad(loss)(adapters, {name: values[rows] for name, values in data.items()})
        updates, state = optimizer.update(slope, state, adapters)
        return (optax.apply_updates(adapters, updates), state), None

    return jax.lax.scan(step, (adapters, state), order)[0]


@partial(jax.jit, static_argnums=(0, 1))
def _fresh(seed: int, widths: tuple[int, int]) -> Adapters:
    keys = jax.random.split(jax.random.key(seed))
    return Adapters(
        *(
            (jax.random.normal(one, (width, WIDTH)) / width**0.5, jnp.zeros(WIDTH))
            for one, width in zip(keys, widths, strict=True)
        )
    )
