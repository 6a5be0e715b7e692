"""Random masking and the decoder of the masked autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models import blocks, positions
from medclip_jax.models.encoder import Encoded
from medclip_jax.models.mae import MaskedDecoder, random_keep

GRID = (2, 3, 5)


def keys(batch=3):
    return jax.random.split(jax.random.key(0), batch)


def decoder(**options):
    sizes = {"patch": (2, 2, 2), "channels": 1, "encoder_width": 10, "width": 12, "depth": 2, "heads": 2}
    return MaskedDecoder(grid=GRID, **(sizes | options), rngs=nnx.Rngs(0))


def test_keep_restore_and_mask_agree():
    keep, restore, mask = (np.asarray(x) for x in random_keep(keys(), 30, 7))
    assert keep.shape == (3, 7)
    assert mask.sum(axis=1).tolist() == [23, 23, 23]
    for b in range(3):
        assert sorted(restore[b]) == list(range(30))
        assert set(np.flatnonzero(mask[b] == 0)) == set(keep[b])
        np.testing.assert_array_equal(restore[b][keep[b]], np.arange(7))
    assert len({tuple(row) for row in keep.tolist()}) == 3


def test_draw_depends_on_the_samples_key_alone():
    keep, restore, _ = random_keep(keys(), 30, 7)
    alone, alone_restore, _ = random_keep(keys()[1:2], 30, 7)
    np.testing.assert_array_equal(alone[0], keep[1])
    np.testing.assert_array_equal(alone_restore[0], restore[1])


def test_every_patch_is_kept_equally_often():
    """2000 draws of 5 out of 20: a share of .25, standard deviation .0097."""
    _, _, mask = random_keep(jax.random.split(jax.random.key(1), 2000), 20, 5)
    np.testing.assert_allclose(1 - np.asarray(mask).mean(axis=0), 0.25, atol=0.045)


@pytest.mark.parametrize("keep", [0, 31])
def test_keep_out_of_range(keep):
    with pytest.raises(ValueError, match="of 30 patches cannot stay visible"):
        random_keep(keys(), 30, keep)


def test_visible_tokens_return_to_their_places():
    """Without blocks the decoder is a map of each place alone: every output is known."""
    model = decoder(depth=0)
    keep, restore, mask = random_keep(keys(), 30, 7)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 10)), jnp.float32)
    got = model(Encoded(tokens, has_summary=True), restore)
    assert got.shape == (3, 30, 8)
    table = positions.sincos_3d(GRID, 12)
    blank = model.predict(model.norm(model.mask_token[...][0] + table))
    seen = model.embed(tokens[:, 1:])
    for b in range(3):
        for n in range(30):
            if mask[b, n]:
                expected = blank[n]
            else:
                place = int(np.flatnonzero(np.asarray(keep[b]) == n)[0])
                expected = model.predict(model.norm(seen[b, place] + table[n]))
            np.testing.assert_allclose(got[b, n], expected, atol=1e-5)


def test_blocks_are_those_of_the_encoder():
    model = decoder()
    _, restore, _ = random_keep(keys(), 30, 30)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 31, 10)), jnp.float32)
    placed = model.embed(tokens)
    rows = jnp.take_along_axis(placed[:, 1:], restore[..., None], axis=1) + positions.sincos_3d(GRID, 12)
    inner = blocks.run(model.blocks, jnp.concatenate([placed[:, :1], rows], axis=1))
    got = model(Encoded(tokens, has_summary=True), restore)
    np.testing.assert_allclose(got, model.predict(model.norm(inner)[:, 1:]), atol=1e-5)


def test_remat_and_scan_change_nothing():
    _, restore, _ = random_keep(keys(), 30, 7)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 10)), jnp.float32)
    other = decoder(remat="block", scan=True)
    tokens = Encoded(tokens, has_summary=True)
    np.testing.assert_allclose(decoder()(tokens, restore), other(tokens, restore), atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_states_of_a_block_in_the_middle(scan):
    """As ASAP's anatomy head reads them: what the first block alone makes of the tokens."""
    _, restore, _ = random_keep(keys(), 30, 7)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 10)), jnp.float32)
    encoded = Encoded.of(tokens, tokens[:, 0] + 1.0)
    model, first = decoder(depth=3, scan=scan), decoder(depth=1)
    nnx.update(first, {**nnx.state(model), "blocks": {"0": nnx.state(model.blocks["0"])}})
    predicted, states = model.with_states(encoded, restore, block=1)
    assert states.shape == (3, 30, 12)
    np.testing.assert_allclose(predicted, model(encoded, restore), atol=1e-5)
    np.testing.assert_allclose(first(encoded, restore), model.predict(model.norm(states)), atol=1e-5)
    with pytest.raises(ValueError, match="block 4: the decoder has blocks 1 to 3"):
        model.with_states(encoded, restore, block=4)


def test_a_summary_is_seen_by_all_patches_and_has_no_place_itself():
    _, restore, _ = random_keep(keys(), 30, 7)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 10)), jnp.float32)
    model = decoder()
    summaries = (None, tokens[:, 0], tokens[:, 1])
    without, one, other = (model(Encoded.of(tokens, summary), restore) for summary in summaries)
    assert without.shape == one.shape == (3, 30, 8)
    assert float(jnp.abs(one - other).min(axis=(0, 2)).max()) > 1e-6
    assert float(jnp.abs(one - without).max()) > 1e-4
