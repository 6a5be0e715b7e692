"""An objective whose variance is known: it grows with what is wrong with its input."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.models.heads import LogitScale
from medclip_jax.objectives.base import DataSpec, Embedding, Objective, OrganEmbedding

SHAPE = (8, 4, 4)
FINDINGS = ("cardiomegaly", "pericardial_effusion")
WIDTH = 6
SPEC = DataSpec(SHAPE, (1.0, 1.0, 1.0), findings=FINDINGS)
DATA = SimpleNamespace(text_length=32)


def unit(vectors):
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


class ToyGaussian(Objective):
    """Every dimension of a volume has the variance of its voxels (in 100 HU); of a text, 1 / its words."""

    has_text = True
    embeds_organs = True

    def __init__(self, constant: bool = False, organs: tuple[float, float] = (-1.0, 1.0)):
        self.weight = nnx.Param(jax.random.normal(jax.random.key(0), (int(np.prod(SHAPE)), WIDTH)))
        self.logit_scale = LogitScale(20.0)
        self.constant = constant
        self.organs = organs

    def similarity_scale(self):
        return self.logit_scale()

    def embed_volumes(self, inputs):
        volumes = inputs["volume"]
        flat = volumes.reshape(volumes.shape[0], -1).astype(jnp.float32) / 100.0
        spread = jnp.zeros(len(flat)) if self.constant else jnp.log(flat.var(axis=1) + 1e-3)
        return Embedding(unit(flat @ self.weight[...]), jnp.broadcast_to(spread[:, None], (len(flat), WIDTH)))

    def embed_texts(self, tokens):
        words = (tokens > 0).sum(axis=1)
        spread = jnp.zeros(len(tokens)) if self.constant else -jnp.log(words.astype(jnp.float32))
        directions = jax.random.normal(jax.random.key(1), (64, WIDTH))
        found = jnp.where((tokens > 0)[..., None], directions[tokens % 64], 0.0).sum(axis=1)
        return Embedding(unit(found), jnp.broadcast_to(spread[:, None], (len(tokens), WIDTH)))

    def embed_organs(self, inputs, organs):
        """The first organ is narrower than its volume, the second wider; present where occupied."""
        whole = self.embed_volumes(inputs)
        mean = jnp.stack([whole.mean] * organs.shape[1], axis=1)
        steps = jnp.array(self.organs)[None, :, None]
        return OrganEmbedding(mean, whole.log_variance[:, None] + steps, organs.any(axis=(2, 3, 4)))


def tokenize(texts, length):
    """A number above 0 for each word."""
    rows = np.zeros((len(texts), length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        words = text.split()[:length]
        row[: len(words)] = [1 + sum(word.encode()) % 1000 for word in words]
    return rows


def toy_records(n=12, seed=0):
    """Flat volumes with a little texture, each with its own report, two to a patient."""
    generator = np.random.default_rng(seed)
    return [
        {
            "volume": (generator.normal(0, 20, SHAPE) - 400 + 20 * i).astype(np.int16),
            "study": np.int64(i),
            "patient": np.int64(i // 2),
            "findings": np.array([1, -1], np.int8),
            "labels": np.array([1 if i % 2 else -1, 1 if i % 3 else -1], np.int8),
            "measurements": np.zeros(0, np.float32),
            "organs": np.full((2, 2, 1, 1), 255 if i else 0, np.uint8),
            "report": f"Study number {i}. There is mild cardiomegaly. No pericardial effusion. Bones intact.",
        }
        for i in range(n)
    ]


def toy_embedder(objective=None):
    return Embedder(objective or ToyGaussian(), SPEC, DATA, tokenize, batch_size=4, progress=False)
