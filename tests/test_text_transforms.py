"""Texts that are cut, and words that are hidden."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from medclip_jax import text_transforms


def test_cut_texts_lose_their_end_and_stay_closed():
    """Texts [1, 2, ..., 99]: what is left is a start of them and the closing 99; all lengths occur."""
    whole = np.zeros((400, 12), np.int32)
    length = np.arange(400) % 11
    for row, n in zip(whole, length, strict=True):
        row[:n] = [*range(1, n), 99][:n]
    keys = jax.random.split(jax.random.key(0), 400)
    found = np.asarray(text_transforms.cut_texts(jnp.asarray(whole), keys, share=0.6, pad_token=0))
    kept = (found != 0).sum(axis=1)
    for row, n in zip(found, kept, strict=True):
        np.testing.assert_array_equal(row[:n], [*range(1, n), 99][:n])
        assert not row[n:].any()
    assert (kept >= np.ceil(0.4 * length - 1e-6)).all()
    assert (kept <= length).all()
    # What is left is rounded up: (4, 10] tokens of 10.
    assert set(kept[length == 10]) == set(range(5, 11))
    # A text's cut is that of its key, wherever it lies in the batch.
    np.testing.assert_array_equal(
        text_transforms.cut_texts(jnp.asarray(whole[5:9]), keys[5:9], share=0.6, pad_token=0), found[5:9]
    )


def test_nothing_to_cut_leaves_texts_as_they_are():
    texts = jnp.asarray([[4, 5, 6, 0], [0, 0, 0, 0]])
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(text_transforms.cut_texts(texts, keys, share=0.0, pad_token=0), texts)


def test_words_are_hidden_by_their_share_and_nothing_else_is():
    tokens = np.zeros((5, 12), np.int32)
    for row, words in enumerate((0, 1, 4, 10)):
        tokens[row, : words + 2] = [2, *range(10, 10 + words), 3]
    keys = jax.random.split(jax.random.key(0), 5)  # the last text is padding alone
    masked, hidden = text_transforms.mask_tokens(
        jnp.asarray(tokens), keys, share=0.75, mask_token=4, pad_token=0
    )
    masked, hidden = np.asarray(masked), np.asarray(hidden)
    assert hidden.sum(axis=1).tolist() == [0, 1, 3, 8, 0]  # 0.75 x 10 rounds to the even 8
    np.testing.assert_array_equal(masked, np.where(hidden, 4, tokens))
    assert not hidden[tokens < 10].any()


def test_which_words_are_hidden_is_uniform_and_follows_the_key():
    tokens = jnp.broadcast_to(jnp.array([2, 10, 11, 12, 13, 3, 0, 0]), (2000, 8))
    keys = jax.random.split(jax.random.key(1), 2000)
    hide = partial(text_transforms.mask_tokens, share=0.5, mask_token=4, pad_token=0)
    _, hidden = hide(tokens, keys)
    assert (np.asarray(hidden).sum(axis=1) == 2).all()
    assert np.abs(np.asarray(hidden).mean(axis=0)[1:5] - 0.5).max() < 4 * 0.5 / np.sqrt(2000)
    np.testing.assert_array_equal(hide(tokens[:3], keys[:3])[1], hidden[:3])
