"""A tiny two-tower objective and in-memory records, for tests of the loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec, Embedding, Objective, Term, sample_keys
from medclip_jax.training.config import base_config
from medclip_jax.training.loop import Data

SHAPE = (2, 3, 4)
SPEC = DataSpec(shape=SHAPE, spacing=(1.0, 1.0, 1.0), findings=("a", "b"), vocabulary_size=50)
TEXTS = ("report", "statements", "findings_text", "impression")


class Tower(nnx.Module):
    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jnp.tanh(self.hidden(x)))


class Toy(Objective):
    """Contrast of volumes and bags of tokens, with per-sample noise and a running mean."""

    has_text = True

    @classmethod
    def batch_fields(cls, config):
        return ("volume", "tokens")

    def __init__(self, config, spec: DataSpec, *, rngs: nnx.Rngs):
        self.vision = Tower(int(np.prod(spec.shape)), config.width, rngs=rngs)
        self.text = Tower(spec.vocabulary_size, config.width, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(10.0)))
        self.seen = nnx.BatchStat(jnp.zeros(()))
        self.vocabulary = spec.vocabulary_size
        self.noise = config.noise
        self.poison = config.poison

    def _volumes(self, volumes: jax.Array) -> jax.Array:
        return volumes.reshape(volumes.shape[0], -1).astype(jnp.float32) / 1000.0

    def _texts(self, tokens: jax.Array) -> jax.Array:
        return jax.nn.one_hot(tokens, self.vocabulary).sum(axis=1)

    def encode(self, batch, key, *, train):
        x = self._volumes(batch["volume"])
        if train:
            keys = sample_keys(key, batch["sample"])
            x = x + self.noise * jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
        self.seen.value = self.seen.value + x.mean()
        if self.poison >= 0:
            x = jnp.where((batch["sample"] == self.poison)[:, None], jnp.nan, x)
        return {"volume": self.vision(x), "text": self.text(self._texts(batch["tokens"]))}

    def couple(self, features, batch):
        volume, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in features.values())
        scores = jnp.exp(self.logit_scale.value) * volume @ text.T
        count = jnp.asarray(len(scores), jnp.float32)
        return {
            "contrast": Term(-jnp.trace(jax.nn.log_softmax(scores)), count),
            "sample_sum": Term(batch["sample"].sum().astype(jnp.float32), jnp.ones(()), 0.0),
            "token_sum": Term(batch["tokens"].sum().astype(jnp.float32), jnp.ones(()), 0.0),
        }

    def embed_volumes(self, inputs):
        return Embedding(self.vision(self._volumes(inputs["volume"])))

    def embed_texts(self, tokens):
        return Embedding(self.text(self._texts(tokens)))


class Words:
    """Each word is its number modulo the vocabulary."""

    vocabulary_size, pad, mask = 50, 0, 1

    def __call__(self, texts, length):
        rows = [[1 + sum(map(ord, word)) % 49 for word in text.split()][:length] for text in texts]
        return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


def make_records(count: int) -> list[dict]:
    """`count` records with a study shared by every two of them."""
    rng = np.random.default_rng(0)
    return [
        {
            "volume": rng.integers(-1000, 1000, SHAPE, dtype=np.int16),
            "findings": rng.integers(-1, 2, 2).astype(np.int8),
            "labels": rng.integers(-1, 2, 2).astype(np.int8),
            "study": np.int64(-(2**62) + 5 * (index // 2)),
            **{name: f"{name} of record {index}" for name in TEXTS},
        }
        for index in range(count)
    ]


def make_layout(config) -> Layout:
    return Layout(Toy.batch_fields(config.objective), SPEC, config.data, Words())


def make_data(count: int = 24) -> Data:
    return Data(make_records(count), SPEC, Words())


def make_config(**changes) -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.objective = ConfigDict({"name": "toy", "width": 8, "noise": 0.1, "poison": -1})
        config.data.text_length = 6
        config.batch_size, config.steps = 8, 12
        config.optimizer.learning_rate = 1e-2
        config.checkpoint.every_steps = 5
        config.log.every_steps, config.log.progress, config.log.tensorboard = 1, False, False
    for name, value in changes.items():
        section = config
        *parents, last = name.split("__")
        for parent in parents:
            section = section[parent]
        section[last] = value
    config.lock()
    return config
