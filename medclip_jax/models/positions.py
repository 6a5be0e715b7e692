"""Fixed positions of patches in three dimensions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TEMPERATURE = 10_000.0
"""Ratio of the longest to the shortest wavelength, as in the original Transformer."""


def sincos_3d(grid: tuple[int, int, int], width: int, order: str = "dhw") -> Float[Array, "tokens {width}"]:
    """Sine-cosine positions of a 3D grid of patches.

    Each axis gets ``m = width // 6`` frequencies ``10000 ** (-k / m)``, ``k = 0 .. m - 1``, and a block
    of ``2 m`` channels: the m sines of (index x frequency), then the m cosines. Tokens always run in the
    order of `medclip_jax.models.patches.patchify` (depth slowest, width fastest); this is 'ij' indexing,
    so a non-cubic grid is not scrambled.

    Args:
        grid: patches along depth, height, width.
        width: channels. What 6 does not divide (``width - 6 m`` channels) is zero, at the end.
        order: which axis owns the first, second and third block of channels: a permutation of
            ``"dhw"``. MONAI's 3D embedding on a (D, H, W) volume is ``"hdw"``.

    Returns:
        (d * h * w, width) float32.

    Raises:
        ValueError: `order` is no permutation of "dhw", or `width` is below 6.

    References:
        Vaswani et al. 2017, section 3.5, one axis at a time.
    """
    if sorted(order) != ["d", "h", "w"]:
        raise ValueError(f"order={order!r} must hold each of 'd', 'h', 'w' once, e.g. 'dhw'")
    if width < 6:
        raise ValueError(f"width={width} leaves no frequency for three axes: use at least 6 channels")
    frequencies = width // 6
    omega = TEMPERATURE ** (-np.arange(frequencies, dtype=np.float64) / frequencies)
    blocks = []
    for name in order:
        axis = "dhw".index(name)
        angle = np.arange(grid[axis], dtype=np.float64)[:, None] * omega
        table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
        # Only the small table of one axis becomes a constant of the compiled program.
        shape = [1, 1, 1, 2 * frequencies]
        shape[axis] = grid[axis]
        blocks.append(jnp.broadcast_to(table.reshape(shape), (*grid, 2 * frequencies)))
    positions = jnp.concatenate(blocks, axis=-1).reshape(-1, 6 * frequencies)
    return jnp.pad(positions, ((0, 0), (0, width - 6 * frequencies)))


def learned(key: jax.Array, tokens: int, width: int) -> Float[Array, "tokens {width}"]:
    """Initial value of trainable positions: normal, standard deviation 0.02."""
    return 0.02 * jax.random.normal(key, (tokens, width), jnp.float32)
