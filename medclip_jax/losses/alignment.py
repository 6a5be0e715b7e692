"""Sentences of a report against the patches of its own volume, and against where their organs lie."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medclip_jax.vectors import normalize

EXCLUDED = -1e30
"""Logit of a sentence that takes no part: its probability is exactly 0 and no NaN can come of it."""

PADDED = ("ignored", "negatives")


def similarity_ranks(
    tokens: Float[Array, "batch tokens features"], sentences: Float[Array, "batch sentences features"]
) -> Int[Array, "batch sentences tokens"]:
    """Rank of each patch by its cosine with each sentence: 0 the most similar; of equal ones the earlier.

    Args:
        tokens: (B, N, D).
        sentences: (B, S, D).

    Returns:
        (B, S, N). No gradient passes: ranks do not change smoothly.
    """
    similarity = jnp.einsum("bsd,bnd->bsn", normalize(sentences), normalize(tokens))
    order = jnp.argsort(-jax.lax.stop_gradient(similarity), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1)


def most_similar(
    tokens: Float[Array, "batch tokens features"],
    sentences: Float[Array, "batch sentences features"],
    k: Int[Array, "batch sentences"],
) -> Bool[Array, "batch sentences tokens"]:
    """Mark the K patches that are most similar to each sentence, see `similarity_ranks`.

    Args:
        tokens: (B, N, D).
        sentences: (B, S, D).
        k: (B, S) patches of each sentence, taken as 1 where lower and as N where higher.

    Returns:
        (B, S, N).
    """
    return similarity_ranks(tokens, sentences) < jnp.clip(k, 1, tokens.shape[1])[..., None]


def mean_of_selected(
    tokens: Float[Array, "batch tokens features"], selected: Bool[Array, "batch sentences tokens"]
) -> Float[Array, "batch sentences features"]:
    """Mean of the tokens that each sentence selects, (B, S, D) float32; 0 where it selects none."""
    weights = selected.astype(jnp.float32)
    weights = weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1.0)
    # A product with the selection, so that the selected tokens (B, S, N, D) never lie in memory.
    return jnp.einsum("bsn,bnd->bsd", weights, tokens.astype(jnp.float32))


def sentence_contrast(
    aligned: Float[Array, "batch sentences features"],
    sentences: Float[Array, "batch sentences features"],
    valid: Bool[Array, "batch sentences"],
    *,
    temperature: float = 0.07,
    padded: str = "ignored",
) -> Float[Array, "batch sentences"]:
    """InfoNCE inside each report: a sentence belongs to what it is aligned with, and to no other's.

    Args:
        aligned: (B, S, D) vectors of the volume, one a sentence; not normalized.
        sentences: (B, S, D), not normalized.
        valid: (B, S), False on padding.
        temperature: divides the cosines.
        padded: what padding is to the valid sentences: "ignored", or "negatives" as in the released code.

    Returns:
        (B, S) float32: the sum of both directions, sentence to volume and back; 0 on padding.

    Raises:
        ValueError: unknown `padded`.
    """
    if padded not in PADDED:
        raise ValueError(f"padded={padded!r} is unknown: use 'ignored' or 'negatives'")
    logits = jnp.einsum("bsd,btd->bst", normalize(sentences), normalize(aligned)) / temperature
    if padded == "ignored":
        both = valid[:, :, None] & valid[:, None, :]
        # The diagonal stays, so that a row of padding is finite.
        logits = jnp.where(both | jnp.eye(valid.shape[1], dtype=bool), logits, EXCLUDED)
    own = jnp.diagonal(logits, axis1=1, axis2=2)
    loss = jax.nn.logsumexp(logits, axis=2) + jax.nn.logsumexp(logits, axis=1) - 2.0 * own
    return jnp.where(valid, loss, 0.0)


def sentence_places(
    tokens: Float[Array, "batch tokens features"],
    sentences: Float[Array, "batch sentences features"],
    shares: Float[Array, "batch sentences tokens"],
    *,
    temperature: float = 0.07,
) -> tuple[Float[Array, "batch sentences"], Bool[Array, "batch sentences"]]:
    """Cross-entropy of a sentence's choice among patches with where the organs lie that it names.

    With s_n the share of patch n that these organs fill, q = s / sum(s), and p the softmax over the patches
    of cosine / temperature: -sum over n of q_n ln p_n. It is least, the entropy of q, where p = q.

    Args:
        tokens: (B, N, D) patch tokens that were seen; not normalized.
        sentences: (B, S, D), not normalized.
        shares: (B, S, N) within 0 and 1; all 0 for a sentence that names nothing that was seen.
        temperature: divides the cosines.

    Returns:
        (B, S) float32, 0 for a sentence that names nothing; and (B, S) whether it names something.

    References:
        Ours: the paper ties sentences to no place.
    """
    shares = shares.astype(jnp.float32)
    total = shares.sum(axis=-1, keepdims=True)
    wanted = shares / jnp.where(total > 0, total, 1.0)
    logits = jnp.einsum("bsd,bnd->bsn", normalize(sentences), normalize(tokens)) / temperature
    loss = -(wanted * jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)).sum(axis=-1)
    return loss, total[..., 0] > 0


def place_overlap(
    selected: Bool[Array, "batch sentences tokens"], shares: Float[Array, "batch sentences tokens"]
) -> Float[Array, "batch sentences"]:
    """Dice coefficient of the patches that a sentence selects and where the organs lie that it names.

    Twice the share of the selected patches over their number plus the share of all: 1 where the selected
    patches are filled and no other has a part.

    Args:
        selected: (B, S, N).
        shares: (B, S, N) of each patch, within 0 and 1.

    Returns:
        (B, S) float32; 0 where nothing is selected and no patch has a part.

    References:
        Milletari et al. 2016, "V-Net", equation 3, with sums instead of sums of squares below.
    """
    selected, shares = selected.astype(jnp.float32), shares.astype(jnp.float32)
    both = (selected * shares).sum(axis=-1)
    return 2.0 * both / jnp.maximum(selected.sum(axis=-1) + shares.sum(axis=-1), 1e-6)


def sentence_alignment(
    tokens: Float[Array, "batch tokens features"],
    sentences: Float[Array, "batch sentences features"],
    valid: Bool[Array, "batch sentences"],
    k: Int[Array, "batch sentences"],
    *,
    temperature: float = 0.07,
    padded: str = "ignored",
) -> tuple[Float[Array, ""], Float[Array, "batch sentences features"]]:
    """Align each sentence with the mean of its K most similar patches, and contrast inside the report.

    Args:
        tokens: (B, N, D) patch tokens that were seen.
        sentences: (B, S, D).
        valid: (B, S), False on padding. A report may have no sentence.
        k: (B, S) patches of each sentence.
        temperature: divides the cosines.
        padded: see `sentence_contrast`.

    Returns:
        loss: scalar, the mean over all valid sentences of the batch of the sum of both directions; 0 where
        there is none. aligned (B, S, D): float32 means of the selected tokens, 0 on padding.

    Raises:
        ValueError: unknown `padded`.

    References:
        ASAP, section "Sentence-level semantic alignment".
    """
    aligned = mean_of_selected(tokens, most_similar(tokens, sentences, k))
    loss = sentence_contrast(aligned, sentences, valid, temperature=temperature, padded=padded)
    return loss.sum() / jnp.maximum(valid.sum(), 1), jnp.where(valid[..., None], aligned, 0.0)
