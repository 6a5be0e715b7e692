"""Alignment of sentences with patches against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses import alignment


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def chosen(tokens, sentence, k):
    """Patches from the most similar on, by a plain sort."""
    similarity = unit(tokens) @ unit(sentence)
    return sorted(range(len(tokens)), key=lambda n: (-similarity[n], n))[: max(1, min(int(k), len(tokens)))]


def reference(tokens, sentences, valid, k, temperature=0.07, padded="ignored", picks=None):
    """Report by report, sentence by sentence; `picks` fixes the patches, for differences."""
    tokens, sentences = (np.asarray(x, np.float64) for x in (tokens, sentences))
    aligned, total = np.zeros_like(sentences), 0.0
    for b in range(len(sentences)):
        for s in range(sentences.shape[1]):
            pick = chosen(tokens[b], sentences[b, s], k[b, s]) if picks is None else picks[b][s]
            aligned[b, s] = tokens[b, pick].mean(axis=0)
        there = np.flatnonzero(valid[b])
        among = there if padded == "ignored" else np.arange(sentences.shape[1])
        logits = unit(sentences[b]) @ unit(aligned[b]).T / temperature
        for s in there:
            for row in (logits[s, among], logits[among, s]):
                total += np.log(np.exp(row - logits[s, s]).sum())
    return total / max(valid.sum(), 1), np.where(valid[..., None], aligned, 0.0)


def slope_along(value, arrays, index, direction, step=1e-5):
    """Central difference in float64 of `value`, moving one of its arrays."""
    ends = []
    for sign in (1, -1):
        moved = [x.astype(np.float64) for x in arrays]
        moved[index] += sign * step * direction
        ends.append(value(*moved))
    return (ends[0] - ends[1]) / (2 * step)


def sample(batch=2, tokens=6, sentences=4, features=5, seed=0):
    draw = np.random.default_rng(seed)
    patches = draw.normal(size=(batch, tokens, features)).astype(np.float32)
    lines = draw.normal(size=(batch, sentences, features)).astype(np.float32)
    valid = np.arange(sentences) < draw.integers(0, sentences + 1, size=(batch, 1))
    k = draw.integers(1, tokens + 3, size=(batch, sentences))
    return patches, lines, valid, k


@pytest.mark.parametrize("padded", alignment.PADDED)
@pytest.mark.parametrize("shape", [(3, 7, 4, 5), (1, 1, 1, 2), (2, 5, 9, 3)])
def test_value_aligned_vectors_and_gradients(shape, padded):
    tokens, sentences, valid, k = sample(*shape, seed=4)
    valid[0, 0] = True

    def loss(tokens, sentences):
        return alignment.sentence_alignment(tokens, sentences, valid, k, padded=padded)

    arrays = jnp.asarray(tokens), jnp.asarray(sentences)
    (value, aligned), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*arrays)
    want, want_aligned = reference(tokens, sentences, valid, k, padded=padded)
    np.testing.assert_allclose(value, want, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(aligned, want_aligned, rtol=1e-5, atol=1e-6)
    picks = [[chosen(tokens[b], sentences[b, s], k[b, s]) for s in range(shape[2])] for b in range(shape[0])]
    draw = np.random.default_rng(5)
    for index, gradient in enumerate(gradients):
        direction = draw.normal(size=gradient.shape)

        def value(*arrays):
            return reference(*arrays, valid, k, padded=padded, picks=picks)[0]

        slope = np.sum(np.asarray(gradient, np.float64) * direction)
        want = slope_along(value, (tokens, sentences), index, direction)
        np.testing.assert_allclose(slope, want, rtol=1e-3, atol=1e-4)


def test_reports_without_sentences_are_zero_with_finite_gradients():
    tokens, sentences, _, k = sample()
    sentences = np.zeros_like(sentences)

    def loss(tokens, sentences):
        return alignment.sentence_alignment(tokens, sentences, jnp.zeros((2, 4), bool), k)[0]

    value, gradients = jax.value_and_grad(loss, (0, 1))(jnp.asarray(tokens), jnp.asarray(sentences))
    assert float(value) == 0.0
    assert all(float(jnp.abs(gradient).max()) == 0.0 for gradient in gradients)


def test_a_lone_sentence_has_nothing_to_be_told_from():
    tokens, sentences, _, k = sample()
    valid = np.zeros((2, 4), bool)
    valid[:, 0] = True
    value, _ = alignment.sentence_alignment(tokens, sentences, valid, k)
    assert float(value) == 0.0
    released, _ = alignment.sentence_alignment(tokens, sentences, valid, k, padded="negatives")
    assert float(released) > 0.0


def test_ignored_padding_changes_nothing():
    tokens, sentences, _, k = sample(sentences=3)
    valid = np.ones((2, 3), bool)
    value, aligned = alignment.sentence_alignment(tokens, sentences, valid, k)
    wide = [np.concatenate([x, np.full_like(x[:, :2], fill)], 1) for x, fill in ((sentences, 7), (k, 2))]
    more = np.concatenate([valid, np.zeros((2, 2), bool)], 1)
    padded, padded_aligned = alignment.sentence_alignment(tokens, wide[0], more, wide[1])
    np.testing.assert_allclose(padded, value, rtol=1e-6)
    np.testing.assert_allclose(padded_aligned[:, :3], aligned, rtol=1e-6)
    assert float(jnp.abs(padded_aligned[:, 3:]).max()) == 0.0


def test_exactly_k_patches_are_selected_also_among_equal_ones():
    tokens = np.ones((1, 5, 2), np.float32)
    sentences = np.ones((1, 3, 2), np.float32)
    selected = alignment.most_similar(tokens, sentences, np.array([[2, 0, 99]]))
    np.testing.assert_array_equal(selected[0], [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])


def test_memory_holds_no_selected_tokens():
    """Beyond inputs and outputs a few arrays (B, S, N): 64 times less than one of (B, S, N, D)."""
    batch, tokens, sentences, features = 2, 256, 32, 512
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((batch, tokens, features), jnp.float32),
            ((batch, sentences, features), jnp.float32),
            ((batch, sentences), bool),
            ((batch, sentences), jnp.int32),
        )
    ]
    step = jax.jit(jax.grad(lambda *arrays: alignment.sentence_alignment(*arrays)[0], (0, 1)))
    used = step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * batch * sentences * tokens * features / 8


def place_reference(tokens, sentences, shares, temperature):
    """Sentence by sentence; of those that name nothing, nothing."""
    tokens, sentences, shares = (np.asarray(x, np.float64) for x in (tokens, sentences, shares))
    found = np.zeros(shares.shape[:2])
    for b, s in np.argwhere(shares.sum(axis=2) > 0):
        logits = unit(tokens[b]) @ unit(sentences[b, s]) / temperature
        chance = np.exp(logits - logits.max())
        wanted = shares[b, s] / shares[b, s].sum()
        found[b, s] = -(wanted * np.log(chance / chance.sum())).sum()
    return found


@pytest.mark.parametrize("shape", [(3, 7, 4, 5), (1, 1, 1, 2), (2, 5, 9, 3)])
def test_places_value_and_gradients(shape):
    tokens, sentences, valid, _ = sample(*shape, seed=6)
    valid[0, 0] = True
    draw = np.random.default_rng(7)
    shares = draw.uniform(size=(shape[0], shape[2], shape[1])) * valid[..., None]
    shares *= draw.integers(0, 2, shares.shape) | (np.arange(shape[1]) == 0)

    def loss(tokens, sentences):
        values, names = alignment.sentence_places(tokens, sentences, shares, temperature=0.3)
        return values.sum(), (values, names)

    arrays = jnp.asarray(tokens), jnp.asarray(sentences)
    (_, (values, names)), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*arrays)
    np.testing.assert_allclose(values, place_reference(tokens, sentences, shares, 0.3), rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(names, valid)
    for index, gradient in enumerate(gradients):
        direction = draw.normal(size=gradient.shape)

        def value(*arrays):
            return place_reference(*arrays, shares, 0.3).sum()

        slope = np.sum(np.asarray(gradient, np.float64) * direction)
        want = slope_along(value, (tokens, sentences), index, direction)
        np.testing.assert_allclose(slope, want, rtol=1e-3, atol=1e-4)


def test_overlap_of_a_selection_with_a_place():
    draw = np.random.default_rng(8)
    selected = draw.integers(0, 2, (3, 4, 7)).astype(bool)
    shares = draw.uniform(size=(3, 4, 7))
    selected[0, 0], shares[0, 0] = False, 0
    selected[1, 1] = shares[1, 1] > 0.5
    shares[1, 1] = selected[1, 1]
    want = 2 * (selected * shares).sum(axis=2) / np.maximum(selected.sum(axis=2) + shares.sum(axis=2), 1e-6)
    found = alignment.place_overlap(selected, shares)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert float(found[0, 0]) == 0.0
    assert float(found[1, 1]) == 1.0


def test_sentences_that_name_nothing_have_no_place_and_finite_gradients():
    tokens, sentences, _, _ = sample()
    sentences[0, 0] = 0

    def loss(tokens, sentences):
        values, names = alignment.sentence_places(tokens, sentences, jnp.zeros((2, 4, 6)))
        return values.sum(), names

    (value, names), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        *map(jnp.asarray, (tokens, sentences))
    )
    assert float(value) == 0.0
    assert not names.any()
    assert all(float(jnp.abs(gradient).max()) == 0.0 for gradient in gradients)


def test_unknown_padding_names_the_choices():
    with pytest.raises(ValueError, match="'ignored' or 'negatives'"):
        alignment.sentence_alignment(*sample(), padded="kept")
