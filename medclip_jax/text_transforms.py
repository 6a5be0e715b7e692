"""On the device, inside the step: tokens that are cut off or hidden, for a model to fill in or do without."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def cut_texts(
    tokens: Int[Array, "batch length"], keys: jax.Array, *, share: float, pad_token: int
) -> Int[Array, "batch length"]:
    """Cut off a random part of each text's end; its last token, which closes it, closes what is left.

    Args:
        tokens: (B, L), padded at the end.
        keys: (B,) one random key a text.
        share: largest share of a text's tokens that is cut; each text draws its own below it.
        pad_token: id of the padding.

    Returns:
        (B, L). Of a text with any token at least one stays.
    """
    length = (tokens != pad_token).sum(axis=1)
    drawn = jax.vmap(jax.random.uniform)(keys)
    kept = jnp.ceil((1.0 - share * drawn) * length).astype(jnp.int32)[:, None]
    closing = jnp.take_along_axis(tokens, jnp.maximum(length - 1, 0)[:, None], axis=1)
    places = jnp.arange(tokens.shape[1])
    return jnp.where(places < kept - 1, tokens, jnp.where(places == kept - 1, closing, pad_token))


def mask_tokens(
    tokens: Int[Array, "batch length"], keys: jax.Array, *, share: float, mask_token: int, pad_token: int
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """Hide a share of each text's words, drawn uniformly.

    Args:
        tokens: (B, L): an opening token, words, a closing token, padding.
        keys: (B,) one random key a text.
        share: of the words that are hidden, rounded to a number of words.
        mask_token: id that stands for a hidden word.
        pad_token: id of the padding.

    Returns:
        The tokens (B, L) with `mask_token` for hidden words, and (B, L) True where one is hidden.
    """
    length = tokens.shape[1]
    places = jnp.arange(length)
    words = (tokens != pad_token).sum(axis=1, keepdims=True) - 2
    is_word = (places >= 1) & (places <= words)
    noise = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
    rank = jnp.argsort(jnp.argsort(jnp.where(is_word, noise, 2.0), axis=1), axis=1)
    hidden = rank < jnp.round(share * words)  # what is no word ranks behind all words
    return jnp.where(hidden, mask_token, tokens), hidden
