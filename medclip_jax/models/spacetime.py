"""Vision transformer for frames: attention divided into time and space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from medclip_jax.models import attention as kernels
from medclip_jax.models import blocks, positions
from medclip_jax.models.attention import SelfAttention, attend_plain, attention_weights
from medclip_jax.models.encoder import Encoded
from medclip_jax.models.norms import LayerNorm
from medclip_jax.models.patches import PatchEmbedding, grid_of
from medclip_jax.sharding import batch_sharded

TIME_INIT = ("zero_output", "released")
"""Initial values of time attention, see `SpaceTimeBlock`."""


def attend_divided(
    attention: SelfAttention,
    tokens: Float[Array, "batch tokens features"],
    valid: Bool[Array, "batch frames"] | None,
    places: int,
    *,
    over_time: bool,
) -> Float[Array, "batch tokens features"]:
    """Self-attention in which a patch attends to the class token and to one line of patches alone.

    The class token attends to all tokens: one row of scores. The maps of the patches have T x (1 + T) scores
    for each place, or N x (1 + N) for each frame; none has (T x N) x (T x N).

    Args:
        attention: the projections.
        tokens: (B, 1 + T * N, W): the class token, then the patches of each frame.
        valid: (B, T), False for frames that nothing may attend to; None: all are valid. Patches of such a
            frame get values, too, which mean nothing.
        places: N, patches of a frame.
        over_time: a patch attends to its own place in all frames; else to all places of its own frame.

    Returns:
        (B, 1 + T * N, W).
    """
    query, key, value = attention.queries_keys_values(tokens)
    batch, _, heads, features = query.shape
    summary = attend_plain(query[:, :1], key, value, _seen(valid, places))

    def lines(x):
        """(B, T * N, H, K) to (B, lines, patches of a line, H, K)."""
        x = x.reshape(batch, -1, places, heads, features)
        return x.swapaxes(1, 2) if over_time else x

    query = lines(query[:, 1:])
    count, length = query.shape[1:3]

    def with_summary(x):
        """The class token before each line: (B * lines, 1 + patches, H, K)."""
        first = jnp.broadcast_to(x[:, None, :1], (batch, count, 1, heads, features))
        return jnp.concatenate([first, lines(x[:, 1:])], axis=2).reshape(batch * count, -1, heads, features)

    # In its own frame a patch may see every place: an invalid frame is seen by its own patches alone.
    mask = None if valid is None or not over_time else jnp.repeat(_seen(valid, 1), count, axis=0)
    query = query.reshape(batch * count, length, heads, features)
    mixed = kernels.attend(
        batch_sharded(query), *(batch_sharded(with_summary(x)) for x in (key, value)), mask
    )
    mixed = mixed.reshape(batch, count, length, heads, features)
    mixed = (mixed.swapaxes(1, 2) if over_time else mixed).reshape(batch, -1, heads, features)
    return attention.output(batch_sharded(jnp.concatenate([summary, mixed], axis=1).reshape(tokens.shape)))


def _seen(valid: Bool[Array, "batch frames"] | None, places: int) -> Bool[Array, "batch tokens"] | None:
    """Mask of the class token and the patches of all frames."""
    if valid is None:
        return None
    return jnp.pad(jnp.repeat(valid, places, axis=1), ((0, 0), (1, 0)), constant_values=True)


class SpaceTimeBlock(blocks.Block):
    """Attention over time, over space, MLP, each after a LayerNorm; the first sum only feeds the second.

    ``t = x + time(norm(x))``, ``s = x + space(norm(t))``, ``s + mlp(norm(s))``. Space attention and MLP have
    the names that they have in `Block`.

    Args:
        width: features of a token.
        heads: attention heads, of either attention; must divide `width`.
        places: patches of a frame.
        time_init: initial values of time attention. Both let the block begin as `Block` does on each frame.
            "zero_output": random queries, keys and values, and an output map of zeros. "released": queries,
            keys and values of zeros, and an output map of ones, as in the public code. Queries and keys
            then are zero for good, as each has a gradient proportional to the other: what such a block
            learns over time is a plain mean of values.
        mlp_ratio: hidden features of the MLP over `width`.
        activation: one of `blocks.ACTIVATIONS`.
        layer_norm_epsilon: of the three LayerNorms.
        dtype: compute type; parameters are float32.
        rngs: draws the initial parameters.

    Raises:
        ValueError: unknown `time_init` or `activation`.

    References:
        Bain et al. 2021, "Frozen in time", section 3.1, for the sums; Bertasius et al. 2021, "Is space-time
        attention all you need for video understanding?", for the division.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        places: int,
        *,
        time_init: str = "zero_output",
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-6,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if time_init not in TIME_INIT:
            raise ValueError(f"time_init={time_init!r} is unknown: use one of {', '.join(TIME_INIT)}")
        super().__init__(
            width,
            heads,
            mlp_ratio=mlp_ratio,
            activation=activation,
            layer_norm_epsilon=layer_norm_epsilon,
            dtype=dtype,
            rngs=rngs,
        )
        self.places = places
        self.time_norm = LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.time_attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        qkv, output = self.time_attention.qkv.kernel, self.time_attention.output.kernel
        if time_init == "released":
            qkv[...], output[...] = jnp.zeros_like(qkv[...]), jnp.ones_like(output[...])
        else:
            output[...] = jnp.zeros_like(output[...])

    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        valid: Bool[Array, "batch frames"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """(B, 1 + T * N, W) to the same; `valid` is False for frames that nothing may attend to."""
        seen = self.attention_norm(self._over_time(tokens, valid))
        tokens = tokens + attend_divided(self.attention, seen, valid, self.places, over_time=False)
        return tokens + self._mlp(tokens)

    def class_attention(
        self,
        tokens: Float[Array, "batch tokens features"],
        valid: Bool[Array, "batch frames"] | None = None,
    ) -> Float[Array, "batch patches"]:
        """How the class token attends to the patches in space attention, (B, T * N), the mean over heads."""
        seen = self.attention_norm(self._over_time(tokens, valid))
        query, key, _ = self.attention.queries_keys_values(seen)
        weights = attention_weights(query[:, :1], key, _seen(valid, self.places))
        return weights[:, :, 0, 1:].mean(axis=1, dtype=jnp.float32)

    def _over_time(self, tokens, valid):
        normed = self.time_norm(tokens)
        return tokens + attend_divided(self.time_attention, normed, valid, self.places, over_time=True)


class SpaceTimeTransformer(nnx.Module):
    """A ViT for T frames: 2D patches, positions in space and time, a class token, blocks, a final LayerNorm.

    A study of one frame is at the start what a 2D ViT makes of that frame; of several frames, the class
    token, and it alone, attends to the patches of all.

    Args:
        frame_shape: (H, W) pixels of a frame.
        patch: pixels of a patch along height and width; must divide `frame_shape`.
        channels: values of a pixel.
        width: features of a token.
        depth: number of blocks.
        heads: attention heads; must divide `width`.
        frames: rows of the temporal table: most frames that a study may have. They start as zeros.
        views: rows of the view embedding, zeros at first: which series a frame is of. 0 for none.
        time_init: of the blocks, see `SpaceTimeBlock`.
        mlp_ratio: hidden features of the MLP over `width`.
        activation: of the MLPs, one of `blocks.ACTIVATIONS`.
        layer_norm_epsilon: of every LayerNorm.
        dtype: compute type; parameters are float32.
        remat: one of `blocks.REMAT`, see `blocks.run`.
        scan: one compiled block in a loop, see `blocks.run`.
        rngs: draws the initial parameters.

    Attributes:
        part: name of the encoder within its tower.
        remat_policies: values of `remat`: "none", then what holds least first.
        torch_twin: the torch class that computes likewise.
        grid: patches of a frame along height and width.
        pooled_width: features of the class token.

    References:
        Bain et al. 2021, "Frozen in time: a joint video and image encoder for end-to-end retrieval".
    """

    part: ClassVar[str] = "video"
    remat_policies: ClassVar[tuple[str, ...]] = blocks.REMAT

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """ViT-B/16 for 64 frames of the six series of CMR-CLIP."""
        return {
            "patch": (16, 16),  # pixels along height and width
            "width": 768,
            "depth": 12,
            "heads": 12,
            "mlp_ratio": 4.0,
            "frames": 64,  # rows of the temporal table: most frames of a study
            "views": 6,  # rows of the view embedding; 0 = frames do not say of which series they are
            "time_init": "zero_output",  # "zero_output" | "released", whose time attention is a mean for good
            "activation": "gelu",  # "gelu" | "quick_gelu"
            "layer_norm_epsilon": 1e-6,
            "scan": False,  # one compiled block in a loop, see `models.blocks.run`
        }

    @classmethod
    def from_config(
        cls, config: Any, frame_shape: Sequence[int], channels: int, *, rngs: nnx.Rngs
    ) -> SpaceTimeTransformer:
        """Build the encoder.

        Args:
            config: the keys of `defaults`, `dtype` and `remat`.
            frame_shape: (H, W) pixels.
            channels: values of a pixel.
            rngs: draws the initial parameters.
        """
        options = {name: config[name] for name in cls.defaults()}
        options |= {"patch": tuple(config.patch), "dtype": jnp.dtype(config.dtype), "remat": config.remat}
        return cls(frame_shape=tuple(frame_shape), channels=channels, **options, rngs=rngs)

    def __init__(
        self,
        *,
        frame_shape: tuple[int, int],
        patch: tuple[int, int],
        channels: int,
        width: int,
        depth: int,
        heads: int,
        frames: int = 64,
        views: int = 0,
        time_init: str = "zero_output",
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-6,
        dtype=jnp.float32,
        remat: str = "none",
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        self.embed = PatchEmbedding((1, *patch), channels, width, dtype=dtype, rngs=rngs)
        self.grid = self.grid_of(frame_shape)
        self.width = self.pooled_width = width
        self.frames = frames
        self.remat = remat
        self.scan = scan
        places = self.grid[0] * self.grid[1]
        self.class_token = nnx.Param(0.02 * rngs.params.normal((1, 1, width)))
        self.positions = nnx.Param(positions.learned(rngs.params(), places, width))
        self.temporal_positions = nnx.Param(jnp.zeros((frames, width)))
        self.view_embedding = nnx.Param(jnp.zeros((views, width))) if views else None
        self.blocks = blocks.stack(
            depth,
            lambda: SpaceTimeBlock(
                width,
                heads,
                places,
                time_init=time_init,
                mlp_ratio=mlp_ratio,
                activation=activation,
                layer_norm_epsilon=layer_norm_epsilon,
                dtype=dtype,
                rngs=rngs,
            ),
        )
        self.norm = LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs)

    def grid_of(self, frame_shape: Sequence[int]) -> tuple[int, int]:
        """Patches along height and width. Raises ValueError where the patch does not divide the frame."""
        return grid_of((1, *frame_shape), self.embed.patch)[1:]

    def encode(
        self,
        frames: Float[Array, "batch frames height width channels"],
        valid: Bool[Array, "batch frames"] | None = None,
        view: Int[Array, "batch frames"] | None = None,
    ) -> Encoded:
        """Encode the frames of studies.

        Args:
            frames: (B, T, H, W, C) intensities.
            valid: (B, T), False for padding, which changes nothing; None: all frames are valid.
            view: (B, T) index of the series that a frame is of, -1 for none; None: none is known.

        Returns:
            Patch tokens (B, T * N, width), by frame, height and width (fastest), and the class token's state
            (B, width), after the final LayerNorm. The tokens of padding mean nothing.

        Raises:
            ValueError: more frames than the temporal table has.
        """
        tokens = self._tokens(frames, view)
        tokens = blocks.run(self.blocks, tokens, _as_mask(valid), remat=self.remat, scan=self.scan)
        return Encoded(batch_sharded(self.norm(tokens)), has_summary=True)

    def pool(self, encoded: Encoded) -> Float[Array, "batch width"]:
        """One vector a study: the class token's state."""
        return encoded.summary

    def class_attention(
        self,
        frames: Float[Array, "batch frames height width channels"],
        valid: Bool[Array, "batch frames"] | None = None,
        view: Int[Array, "batch frames"] | None = None,
    ) -> Float[Array, "batch frames h w"]:
        """Where the class token looks in the last block's space attention, to be looked at.

        Args:
            frames, valid, view: as of `encode`.

        Returns:
            (B, T, h, w) probabilities, the mean over heads; 0 on padding. With what the class token keeps for
            itself they sum to 1.
        """
        last = len(self.blocks) - 1
        valid = _as_mask(valid)
        tokens = blocks.run(self.blocks, self._tokens(frames, view), valid, scan=self.scan, last=last)
        weights = self.blocks[str(last)].class_attention(tokens, valid)
        return weights.reshape(*frames.shape[:2], *self.grid)

    def describe(self) -> str:
        """What the network is, in words, for tables and cards."""
        size = f"width {self.width}, depth {len(self.blocks)}"
        if len(self.blocks):
            size += f", {self.blocks['0'].attention.heads} heads"
        patch = " × ".join(map(str, self.embed.patch[1:]))
        return f"space-time ViT, {size}, patches of {patch}, at most {self.frames} frames"

    def _tokens(self, frames, view):
        batch, count = frames.shape[:2]
        if count > self.frames:
            raise ValueError(
                f"{count} frames, and the temporal table has {self.frames} rows: set "
                f"config.objective.vision.frames to {count} or more, or sample fewer frames"
            )
        tokens = batch_sharded(self.embed(batch_sharded(frames))).reshape(batch, count, -1, self.width)
        tokens = tokens + self.positions[...].astype(tokens.dtype)
        of_frame = self.temporal_positions[:count][None]
        if self.view_embedding is not None and view is not None:
            of_frame = of_frame + jnp.where(view[..., None] >= 0, self.view_embedding[...][view], 0.0)
        tokens = tokens + of_frame[:, :, None].astype(tokens.dtype)
        first = jnp.broadcast_to(self.class_token[...].astype(tokens.dtype), (batch, 1, self.width))
        return batch_sharded(jnp.concatenate([first, tokens.reshape(batch, -1, self.width)], axis=1))


def _as_mask(valid):
    return None if valid is None else valid.astype(bool)
