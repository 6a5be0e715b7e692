"""What is computed of volumes for evaluators, and what it follows from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from medclip_jax.evaluation.similarity import Embeddings, Gaussians
from medclip_jax.objectives.base import Inputs, Objective


def _pooled(objective: Objective, inputs: Inputs) -> Float[Array, "B pooled"]:
    return objective.pool_volumes(inputs)


def _mean_token(objective: Objective, inputs: Inputs) -> Float[Array, "B width"]:
    return objective.volume_tower().mean_token(inputs["volume"])


def _predictions(objective: Objective, inputs: Inputs) -> Float[Array, "B P"]:
    return objective.predict(inputs)


_KINDS = {"pooled": _pooled, "asap": _mean_token, "predictions": _predictions}

KINDS = tuple(_KINDS)
"""Features beside the embedding: "pooled", from `Objective.pool_volumes`; "asap", the mean patch token that
the last block of the volume tower gives, before a final norm, brought to mean 0 and variance 1 (ASAP's
probe); "predictions", from `Objective.predict`."""


@dataclass(frozen=True)
class VolumeFeatures:
    """What is kept of volumes, as a function that an `Embedder` compiles once for equal kinds.

    Attributes:
        kinds: of `KINDS`.
    """

    kinds: tuple[str, ...] = ()

    def __call__(self, objective: Objective, inputs: Inputs) -> dict[str, Float[Array, "B width"]]:
        """Of volumes "mean", "log_variance" where the objective gives variances, and each of the kinds."""
        # The compiler sees that all take the same way through the tower, and goes it once.
        embedding = objective.embed_volumes(inputs)
        found = {"mean": embedding.mean}
        if embedding.log_variance is not None:
            found["log_variance"] = embedding.log_variance
        for kind in self.kinds:
            found[kind] = _KINDS[kind](objective, inputs)
        return found


def as_embeddings(features: Mapping[str, Float[np.ndarray, "N width"]]) -> Embeddings:
    """The points or the Gaussians among what `VolumeFeatures` gave.

    Args:
        features: on the host.
    """
    mean = np.asarray(features["mean"])
    if "log_variance" not in features:
        return mean
    return Gaussians(mean, np.asarray(features["log_variance"]))


def hash_of(state: nnx.State) -> str:
    """A hash of a model's arrays: their names, types and values.

    Args:
        state: from `nnx.split`.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(nnx.to_flat_state(state), key=lambda entry: tuple(map(str, entry[0]))):
        value = leaf[...] if isinstance(leaf, nnx.Variable) else leaf
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            continue  # draws nothing where volumes are embedded
        value = np.ascontiguousarray(jax.device_get(value))
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(value.view(np.uint8).data if value.size else b"")
    return digest.hexdigest()
