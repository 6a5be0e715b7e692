"""Patch tokens of a volume tower, layer by layer, and their colors on scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16

from medclip_jax.evaluation.embedder import Embedder, VolumeInputs
from medclip_jax.evaluation.pca import COMPONENTS, token_colors
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.spacings import Spacing
from medclip_jax.objectives.base import Inputs, Objective

LAST = "last"
"""Stands for the last layer, whatever it is called."""


@dataclass(frozen=True)
class TokenMaps:
    """Scans beside the colors of their tokens, see `evaluation.pca`.

    Attributes:
        layer: whose tokens.
        volumes: (P, D, H, W) HU.
        colors: (P, d, h, w, 3) from 0 to 1, of each token.
        centers: where tokens lie along depth, height, width, in voxels from the first.
        shares: (3,) of the variance that red, green and blue carry.
        spacings: of each volume, mm along depth, height, width.
    """

    layer: str
    volumes: Int16[np.ndarray, "P D H W"]
    colors: Float[np.ndarray, "P d h w 3"]
    centers: tuple[Float[np.ndarray, " tokens"], ...]
    shares: Float[np.ndarray, " 3"]
    spacings: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class LayerTokens:
    """Some tokens of each layer, as a function that an `Embedder` compiles once for equal settings.

    Attributes:
        tokens: of a volume; 0 for all.
        seed: of the draw.
        layer: of this one alone, `LAST` for whichever is the last; "" for all.
    """

    tokens: int
    seed: int
    layer: str = ""

    def __call__(self, objective: Objective, inputs: Inputs) -> dict[str, Float[Array, "B tokens width"]]:
        """Tokens of each layer, first to last: ``0000 patches``, ``0001 block_1``, ...

        Raises:
            ValueError: the tower has no such layer.
        """
        tower = objective.volume_tower()
        states = tower.layer_states(tower.to_voxels(inputs["volume"]))
        name = list(states)[-1] if self.layer == LAST else self.layer
        if name:
            if name not in states:
                raise ValueError(f"the tower has no layer {name!r}; it has {', '.join(states)}")
            states = {name: states[name]}
        # Numbered, because dicts come out of `jax.jit` in the order of their keys.
        found = {f"{index:04} {name}": state for index, (name, state) in enumerate(states.items())}
        return {name: self._some(state).astype(jnp.float32) for name, state in found.items()}

    def _some(self, state: Float[Array, "B N width"]) -> Float[Array, "B tokens width"]:
        count = state.shape[1]
        if not self.tokens or self.tokens >= count:
            return state
        return state[:, np.sort(np.random.default_rng(self.seed).permutation(count)[: self.tokens])]


def map_tokens(
    embedder: Embedder, inputs: Sequence[VolumeInputs], spacings: Sequence[Spacing], *, layer: str = LAST
) -> TokenMaps:
    """Color all tokens of a layer along the directions in which those of these scans differ most.

    Args:
        embedder: of the model.
        inputs: the field `volume` of each scan, at least one.
        spacings: of each, mm along depth, height, width.
        layer: its name, or `LAST`.

    Raises:
        NotEvaluable: the model shows no tower that reads volumes; or the layer's tokens lie on another grid
            than the tower's.
        ValueError: the tower has no such layer.
    """
    if reason := embedder.lacks("volume tower"):
        raise NotEvaluable(reason)
    function = LayerTokens(0, 0, layer)
    parts = list(embedder.each(function, len(inputs), lambda at: (dict(inputs[at]),), label="token maps"))
    (key,) = parts[0]
    tokens, tower = np.concatenate([part[key] for part in parts]), embedder.objective.volume_tower()
    if tokens.shape[1] != np.prod(tower.grid):
        raise NotEvaluable(
            f"layer {layer!r} has {tokens.shape[1]} tokens, on another grid than the tower's: color its last "
            "layer"
        )
    to_colors = token_colors(tokens)
    return TokenMaps(
        layer=key.partition(" ")[2],
        volumes=np.stack([given["volume"] for given in inputs]),
        colors=to_colors(tokens).reshape(len(tokens), *tower.grid, COMPONENTS),
        centers=tower.token_centers(),
        shares=to_colors.shares,
        spacings=list(spacings),
    )
