"""An objective of points, linear in voxels and token ids, and records for it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.objectives.base import DataSpec, Embedding, Objective

FINDINGS = ("cardiomegaly", "pericardial_effusion", "atherosclerosis")


def unit(vectors):
    vectors = np.asarray(vectors, np.float64)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


class Toy(Objective):
    """Linear in the first voxels and in the token ids."""

    has_text = True

    def __init__(self):
        self.weight = nnx.Param(jax.random.normal(jax.random.key(0), (8, 6)))

    def embed_volumes(self, inputs):
        volumes = inputs["volume"]
        vectors = volumes.reshape(volumes.shape[0], -1).astype(jnp.float32) @ self.weight[...]
        return Embedding(vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True))

    def embed_texts(self, tokens):
        vectors = tokens.astype(jnp.float32) - 20.0
        return Embedding(vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True))


class Mute(Objective):
    """A masked autoencoder has no text tower."""

    def embed_volumes(self, inputs):
        raise AssertionError("volumes must not be embedded for nothing")


def tokenize(texts, length):
    return np.stack([np.random.default_rng(list(t.encode())).integers(0, 40, length) for t in texts]).astype(
        np.int32
    )


def records(n=11):
    generator = np.random.default_rng(0)
    return [
        {
            "volume": generator.integers(-1000, 1000, (2, 2, 2)).astype(np.int16),
            "study": np.int64(i // 2),
            "patient": np.int64(i // 2),
            "findings": np.array([1, -1, 0], np.int8),
            "labels": generator.choice([-1, 1], 3).astype(np.int8),
            "measurements": np.array([i % 5], np.float32),
            "report": f"report {i // 2}",
        }
        for i in range(n)
    ]


def expected_vectors(objective, rows):
    volumes = np.stack([row["volume"].reshape(-1) for row in rows]).astype(np.float64)
    return unit(volumes @ np.asarray(objective.weight[...], np.float64))


def embedder_of(objective, tokenizer=tokenize, batch_size=4):
    spec, data = DataSpec((2, 2, 2), (1.0, 1.0, 1.0)), SimpleNamespace(text_length=6)
    return Embedder(objective, spec, data, tokenizer, batch_size=batch_size, progress=False)
