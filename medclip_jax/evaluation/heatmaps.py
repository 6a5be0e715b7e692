"""Where in a volume does the agreement with a prompt come from?

Transformers: relevance propagation through self-attention. With A the attention map of a block and G the
gradient of the score with respect to it, each head contributes what raises the score,
``C = mean over heads of max(G * A, 0)``, and the relevance of tokens for tokens grows from block to block
as ``R <- R + C R``, starting from the identity. Only the rows that the pooling reads are wanted, so it is
computed as a row vector from the last block backwards: ``r <- r + r C``. Pooling on the grid reads every
patch on its own, so its row starts from how much each final token adds to the score (gradient x token).

Convolutional networks: Grad-CAM. Each feature of the last map is weighted by the mean over all places of the
score's gradient with respect to it; what a place sums to, where above 0, is its relevance.

References:
    Chefer, Gur and Wolf 2021, "Generic attention-model explainability for interpreting bi-modal and
    encoder-decoder transformers", equations 5 and 6. Selvaraju et al. 2017, "Grad-CAM: visual explanations
    from deep networks via gradient-based localization", equations 1 and 2.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.similarity import Embeddings, means
from medclip_jax.models.encoder import Encoded
from medclip_jax.objectives.base import Objective
from medclip_jax.volumes.grid import Grid, check_map_path, transfer, write_map

MAP_BYTES = 2 * 1024**3
"""Attention maps and gradients that one backward pass may hold; more blocks take more passes."""


class Saveable:
    """A map of a scan that can be written: of `voxels`, on `grid`, for the scan on the grid `source`."""

    voxels: Float[np.ndarray, "D H W"]
    grid: Grid | None
    source: Grid | None

    def save(self, path: str | os.PathLike) -> None:
        """Write the map on the scan's own grid, to be laid over the scan in a viewer.

        Orientation, spacing and shape are those of the file or image that was read (of a DICOM series, of its
        stack of slices); 0 outside of what the model saw.

        Args:
            path: of a .nii.gz, .nii, .nrrd or .mha file.

        Raises:
            ValueError: another ending; the map of a prepared array, which does not say where it lies; or
                tilted slices in a format that cannot hold them.
            FileNotFoundError: there is no such folder.
        """
        path = check_map_path(path)
        if self.grid is None or self.source is None:
            raise ValueError(
                "a prepared array does not say where it lies: explain the scan's file, its image or "
                "(array, affine) instead"
            )
        write_map(path, transfer(self.voxels, self.grid, self.source), self.source)


@dataclass(frozen=True)
class HeatMap(Saveable):
    """Relevance of one volume's patches for one prompt.

    Attributes:
        patches: (d, h, w) relevance of each patch, or place of the last feature map, 0 or more. Only ratios
            within one map mean something.
        voxels: (D, H, W) the same, interpolated linearly between their centers.
        score: what was explained: a cosine, or a difference of two.
        first_layer: first block that was followed, counted from 1; None for Grad-CAM.
        grid: where `voxels` lie; None where the volume was a prepared array, which does not say.
        source: the grid of the scan that the volume was prepared from, in its own orientation; None likewise.
    """

    patches: Float[np.ndarray, "d h w"]
    voxels: Float[np.ndarray, "D H W"]
    score: float
    first_layer: int | None = None
    grid: Grid | None = None
    source: Grid | None = None


def heat_map(
    objective: Objective,
    volume: Int[np.ndarray, "D H W"],
    positive: Embeddings,
    negative: Embeddings | None = None,
    *,
    first_layer: int | None = None,
) -> HeatMap:
    """Relevance of each patch for the cosine between a volume and a prompt; of Gaussians, of their means.

    By attention relevance or Grad-CAM, as the tower's `explanation` says. One block's attention maps hold
    ``12 heads tokens^2`` bytes (probabilities, offsets, gradients in float32): 17 MB for 12 heads and 344
    tokens, 3.9 GB for 5185 tokens.

    Args:
        objective: a model with an `explained_tower`: `clip`, `cardiac_clip`, `hipro_ct`.
        volume: (D, H, W) prepared volume, HU.
        positive: a single point or Gaussian, (E,), of the prompt.
        negative: that of the opposite prompt; then the difference of the cosines is explained.
        first_layer: of attention relevance, the first block to follow, counted from 1; None for the one past
            the middle, block 7 of 12 as in Cardiac-CLIP.

    Returns:
        The map.

    Raises:
        NotEvaluable: the objective has no such tower, or the tower cannot be explained.
        ValueError: `first_layer` is out of range, or the tower has no such layers.
    """
    tower = objective.explained_tower()
    if tower is None:
        raise NotEvaluable(
            f"{type(objective).__name__} has no volume tower with a projection into the space of texts: "
            "heat maps need a contrastive model"
        )
    if tower.explanation not in EXPLANATIONS:
        raise NotEvaluable(
            f"a volume tower of kind {tower.kind!r} has no explanation: there are heat maps for towers that "
            f"declare one of {', '.join(EXPLANATIONS)}"
        )
    direction = np.asarray(means(positive), np.float32)
    direction = direction if negative is None else direction - np.asarray(means(negative), np.float32)
    explain = EXPLANATIONS[tower.explanation]
    patches, score, first = explain(objective, volume, direction, first_layer)
    patches = patches.reshape(tower.grid)
    return HeatMap(patches, upsample(patches, tower.token_centers(), volume.shape), score, first)


def upsample(
    patches: Float[np.ndarray, "d h w"],
    centers: Sequence[Float[np.ndarray, " tokens"]],
    shape: Sequence[int],
) -> Float[np.ndarray, "D H W"]:
    """Interpolate linearly between patch centers; beyond the outermost centers the edge value repeats.

    Args:
        patches: (d, h, w).
        centers: coordinate of each patch along each axis, in voxels from the first.
        shape: (D, H, W).

    Returns:
        (D, H, W).
    """
    for axis, (places, size) in enumerate(zip(centers, shape, strict=True)):
        # The share of each patch in each voxel along this axis.
        shares = [np.interp(np.arange(size), places, one) for one in np.eye(len(places))]
        patches = np.moveaxis(np.tensordot(patches, np.stack(shares), axes=(axis, 0)), -1, axis)
    return patches


def _attention_relevance(
    objective: Objective,
    volume: Int[np.ndarray, "D H W"],
    direction: Float[np.ndarray, " E"],
    first_layer: int | None,
) -> tuple[Float[np.ndarray, " patches"], float, int]:
    tower = objective.explained_tower()
    depth, heads = len(tower.encoder.blocks), tower.encoder.blocks["0"].attention.heads
    first = depth // 2 + 1 if first_layer is None else first_layer
    if not 1 <= first <= depth:
        raise ValueError(f"first_layer {first}: the model has blocks 1 to {depth}")
    tokens = 1 + int(np.prod(tower.grid))
    together = max(1, MAP_BYTES // (12 * heads * tokens**2))
    graph, state = nnx.split(objective)

    row = start = None
    score = 0.0
    layers = list(range(depth, first - 1, -1))
    for begin in range(0, len(layers), together):
        chosen = tuple(layers[begin : begin + together])
        score, contributions, share = _contributions(
            graph, chosen, state, jax.device_put(volume[None]), jax.device_put(direction)
        )
        if row is None:
            row = start = _rows_read(tower.pooling, np.asarray(share, np.float64))
        for contribution in contributions:
            row = row + row @ np.asarray(contribution, np.float64)
    # Less the identity: what attention brought, without each token's relevance for itself. Pooling on the
    # grid reads every patch for its own content, so there that content counts.
    return (row if tower.pooling == "grid" else row - start)[1:], float(score), first


def _class_activation(
    objective: Objective,
    volume: Int[np.ndarray, "D H W"],
    direction: Float[np.ndarray, " E"],
    first_layer: int | None,
) -> tuple[Float[np.ndarray, " patches"], float, None]:
    if first_layer is not None:
        raise ValueError(
            f"first_layer={first_layer} is of models with attention: this one is explained by Grad-CAM, from "
            "its last feature map; leave first_layer out"
        )
    graph, state = nnx.split(objective)
    score, relevance = _grad_cam(graph, state, jax.device_put(volume[None]), jax.device_put(direction))
    relevance = np.asarray(relevance, np.float64)
    return relevance / max(relevance.max(), 1e-12), float(score), None


EXPLANATIONS = {"attention": _attention_relevance, "gradcam": _class_activation}
"""By a tower's `explanation`: from objective, volume, direction and first_layer to relevance of the patches,
score and first layer."""


def _rows_read(pooling: str, share: Float[np.ndarray, " tokens"]) -> Float[np.ndarray, " tokens"]:
    """How much the pooling takes from each token: the class token, all patches alike, both, or its share."""
    first = np.eye(1, len(share))[0]
    if pooling == "cls":
        return first
    row = np.maximum(share, 0.0) if pooling == "grid" else np.ones(len(share))
    row[0] = 0.0
    row /= max(row.sum(), 1e-12)
    return (first + row) / 2 if pooling == "cls_mean" else row


def _cosine(objective: Objective, pooled: Float[Array, "1 pooled"], direction: Float[Array, " E"]) -> Array:
    """Of what a tower pooled with a direction of the joint space: the score that is explained."""
    embedding = objective.to_joint_space(pooled)[0].astype(jnp.float32)
    return embedding @ direction / jnp.maximum(jnp.linalg.norm(embedding), 1e-6)


@partial(jax.jit, static_argnums=(0, 1))
def _contributions(
    graph: nnx.GraphDef,
    layers: tuple[int, ...],
    state: Any,
    volume: Int[Array, "1 D H W"],
    direction: Float[Array, " E"],
) -> tuple[Float[Array, ""], list[Float[Array, "tokens tokens"]], Float[Array, " tokens"]]:
    """Score, the matrix C of each of the `layers` (counted from 1) in their order, and each token's share.

    The share of a final token is its inner product with the score's gradient: to first order, how much
    higher the score is for it.
    """
    objective = nnx.merge(graph, state)
    tower = objective.explained_tower()
    encoder, blocks = tower.encoder, tower.encoder.blocks
    voxels = tower.to_voxels(volume)
    tokens = 1 + int(np.prod(tower.grid))
    shape = (1, blocks["0"].attention.heads, tokens, tokens)

    def score_of(
        offsets: dict[int, Array], change: Float[Array, "1 tokens width"]
    ) -> tuple[Array, tuple[dict[int, Array], Array]]:
        every = [offsets.get(layer) for layer in range(1, len(blocks) + 1)]
        encoded, maps = encoder.encode_with_maps(voxels, every)
        sequence = encoded.sequence.astype(jnp.float32) + change
        pooled = tower.pool(Encoded(sequence, has_summary=True))
        return _cosine(objective, pooled, direction), ({layer: maps[layer - 1] for layer in layers}, sequence)

    zeros = {layer: jnp.zeros(shape, jnp.float32) for layer in layers}
    unchanged = jnp.zeros((1, tokens, tower.width), jnp.float32)
    (score, (maps, sequence)), (gradients, slope) = jax.value_and_grad(
        score_of, argnums=(0, 1), has_aux=True
    )(zeros, unchanged)
    contributions = [
        jnp.maximum(gradients[layer] * maps[layer].astype(jnp.float32), 0.0)[0].mean(axis=0)
        for layer in layers
    ]
    return score, contributions, jnp.sum(slope * sequence, axis=-1)[0]


@partial(jax.jit, static_argnums=0)
def _grad_cam(
    graph: nnx.GraphDef, state: Any, volume: Int[Array, "1 D H W"], direction: Float[Array, " E"]
) -> tuple[Float[Array, ""], Float[Array, " tokens"]]:
    """Score, and the relevance of each token."""
    objective = nnx.merge(graph, state)
    tower = objective.explained_tower()
    encoded = tower.encode(tower.to_voxels(volume))
    tokens = encoded.tokens.astype(jnp.float32)

    def score_of(tokens: Float[Array, "1 tokens width"]) -> Array:
        return _cosine(objective, tower.pool(Encoded.of(tokens, encoded.summary)), direction)

    score, gradient = jax.value_and_grad(score_of)(tokens)
    return score, jnp.maximum(tokens[0] @ gradient[0].mean(axis=0), 0.0)
