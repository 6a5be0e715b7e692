"""The same architecture without training: what a probe of a trained model must beat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.fields import Layout, held_arrays
from medclip_jax.objectives import create
from medclip_jax.objectives.base import Objective

if TYPE_CHECKING:
    from medclip_jax.shards.read import PreparedInfo

SEED = 0
"""Of all random weights: models are compared with the same ones."""


def draw_anew(embedder: Embedder, shards: str | Path | PreparedInfo, split: str) -> Objective:
    """An objective as a run begins with, without published weights, and where the embedder's one lies.

    Args:
        embedder: of the trained model.
        shards: folder of prepared shards, or what `shards.read.open_shards` returned.
        split: whose first volumes, a batch of the embedder, set the initial values that depend on data.

    Returns:
        It, to be handed to `Embedder.update`.

    Raises:
        NotEvaluable: the embedder does not know the objective's config.
        ValueError: the shards lack what the initial values depend on.
    """
    from medclip_jax.shards.read import open_shards, open_split

    config = embedder.objective_config
    if config is None:
        raise NotEvaluable("the config of this objective is not known: set baseline='none'")
    objective = create(config, embedder.layout.spec, rngs=nnx.Rngs(SEED))
    if type(objective).calibrate is not Objective.calibrate:
        info = open_shards(shards)
        layout = Layout(
            objective.batch_fields(config),
            embedder.layout.spec,
            embedder.layout.config,
            embedder.tokenizer,
            arrays=held_arrays(info),
        )
        records = open_split(info, split, fields=layout.reads)
        count = min(embedder.batch_size, len(records))
        samples = [layout.sample(records[index], index) for index in range(count)]
        batch = jax.device_put({name: np.stack([x[name] for x in samples]) for name in samples[0]})
        objective = _calibrated(objective, batch)
    return _where(objective, embedder.objective)


def _calibrated(objective: Objective, batch: dict[str, jax.Array]) -> Objective:
    graph, state = nnx.split(objective)

    def calibrate(state: nnx.State, batch: dict[str, jax.Array]) -> nnx.State:
        drawn = nnx.merge(graph, state)
        drawn.calibrate(batch, jax.random.key(SEED))
        return nnx.split(drawn)[1]

    return nnx.merge(graph, jax.jit(calibrate)(state, batch))


def _where(objective: Objective, other: Objective) -> Objective:
    """The objective with each array on the devices where the other's lies."""
    graph, state = nnx.split(objective)
    leaves, tree = jax.tree.flatten(state)
    places = [leaf.sharding for leaf in jax.tree.leaves(nnx.split(other)[1])]
    if jax.process_count() == 1:
        leaves = jax.device_put(leaves, places)
    else:
        # Every process drew the same values, and puts its part of them.
        values = map(np.asarray, leaves)
        leaves = [
            jax.make_array_from_callback(value.shape, place, lambda index, value=value: value[index])
            for value, place in zip(values, places, strict=True)
        ]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))
