"""ASAP: every term against NumPy in float64, what is left out, and what it tells of volumes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax import objectives, transforms
from medclip_jax.models.patches import mean_and_peak
from medclip_jax.objectives import asap, base

pytest.importorskip("ml_collections")

SPEC = base.DataSpec(
    shape=(8, 16, 12),
    spacing=(4.0, 3.0, 3.0),
    organs=("heart", "left_lung", "right_lung"),
    organ_shape=(3, 4, 8, 6),
    vocabulary_size=50,
    mask_token=4,
    pad_token=0,
)
SIZE = 5
# Tokens of a sentence; the reports have 3, 1, 0, 2 and 5 sentences, one of them of one token.
SENTENCES = ((3, 4, 1), (2,), (), (5, 3), (2, 2, 2, 2, 2))
LENGTH = 12


def small(**changes):
    config = asap.default_config()
    config.vision.update(patch=(4, 4, 4), width=12, depth=1, heads=2, dtype="float32")
    config.text.update(width=8, depth=1, heads=2, max_positions=16, dtype="float32")
    config.decoder.update(width=12, depth=2, heads=2)
    config.anatomy.block = 1
    config.selection.candidates = (1, 3, 5)
    config.most_sentences = 4
    config.text_decoder.update(depth=1, heads=2)
    config.update_from_flattened_dict(changes)
    return config


def build(**changes):
    return objectives.create(small(**changes), SPEC, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def usual():
    """With the defaults, for tests that change nothing."""
    return build()


def make_batch(seed=0):
    draw = np.random.default_rng(seed)
    tokens, sentence = np.zeros((SIZE, LENGTH), np.int32), np.full((SIZE, LENGTH), -1, np.int32)
    for row, lengths in enumerate(SENTENCES):
        words = sum(lengths)
        tokens[row, : words + 2] = [2, *draw.integers(5, 50, words), 3]
        sentence[row, 1 : words + 1] = np.repeat(np.arange(len(lengths)), lengths)
    batch = {
        "volume": draw.integers(-1000, 1000, (SIZE, *SPEC.shape)).astype(np.int16),
        "organs": (
            draw.integers(0, 256, (SIZE, 3, 4, 8, 6)) * draw.integers(0, 2, (SIZE, 3, 4, 8, 6))
        ).astype(np.uint8),
        "tokens": tokens,
        "sentence": sentence,
        "sentences": np.array([len(lengths) for lengths in SENTENCES], np.int32),
        "sentence_organs": named_organs(sentence),
        "report_tokens": np.roll(tokens, 1, axis=0),
        "study": np.arange(2 * SIZE).reshape(SIZE, 2).astype(np.int32),
        "sample": np.arange(10, 10 + SIZE).astype(np.int32),
    }
    return {name: jnp.asarray(value) for name, value in batch.items()}


def named_organs(sentence):
    """The first sentence of a report names nothing, the second the heart, the third both lungs, and so on."""
    named = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 1)], np.uint8)
    return np.where(sentence[..., None] >= 0, named[np.maximum(sentence, 0) % 3], 0).astype(np.uint8)


def terms(model, batch, key=0, train=False):
    step = jax.jit(lambda batch: model.couple(model.encode(batch, jax.random.key(key), train=train), batch))
    return step(batch)


def double(x):
    return np.asarray(x, np.float64)


def unit(x):
    return x / np.linalg.norm(x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def shares(batch, groups=((0,), (1,), (2,))):
    """Of patches, looped over cells: (B, N, groups)."""
    cells = double(batch["organs"]) / 255
    found = np.zeros((SIZE, 24, len(groups)))
    for n, (d, h, w) in enumerate(np.ndindex(2, 4, 3)):
        of_patch = cells[:, :, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].mean(axis=(2, 3, 4))
        for index, group in enumerate(groups):
            found[:, n, index] = np.minimum(of_patch[:, list(group)].sum(axis=1), 1)
    return found


def seen(model, batch, key=0):
    """The tokens and states that the terms are made of, and what was hidden."""
    _, mask_key, word_key = (
        base.sample_keys(part, batch["sample"]) for part in jax.random.split(jax.random.key(key), 3)
    )
    keep, restore, mask = asap.random_keep(mask_key, model.tokens, model.keep)

    @jax.jit
    def run(volume, keep, restore):
        encoded = model.vision.encode(model.vision.to_voxels(volume), keep)
        return encoded.tokens, *model.decoder.with_states(encoded, restore, block=model.anatomy_block)

    return *run(batch["volume"], keep, restore), double(mask), word_key, np.asarray(keep)


def reference(model, batch, config):
    """All terms from the equations, patch by patch and sentence by sentence: name to (sum, count)."""
    tokens, predicted, states, mask, word_key, keep = seen(model, batch)
    found = {}
    voxels = double(model.vision.to_voxels(batch["volume"]))[..., 0]
    total = 0.0
    for b in range(SIZE):
        for n, (d, h, w) in enumerate(np.ndindex(2, 4, 3)):
            patch = voxels[b, 4 * d : 4 * d + 4, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4].ravel()
            total += mask[b, n] * np.mean((double(predicted[b, n]) - patch) ** 2)
    found["reconstruction"] = total, mask.sum() if config.denominator == "masked" else mask.size

    logits, want = double(model.organ_head(states)), shares(batch)
    entropy = -want * np.log(sigmoid(logits)) - (1 - want) * np.log(sigmoid(-logits))
    found["anatomy"] = entropy.sum() / (3 if config.anatomy.organ_reduction == "mean" else 1), mask.size

    patches = double(model.patch_head(tokens))
    words = double(
        model.sentence_head(model.text.encoder(batch["tokens"], batch["tokens"] != SPEC.pad_token))
    )
    loss, used, counts, prior = 0.0, 0, 0, np.zeros((SIZE, 1, 12))
    places, extent, naming = 0.0, 0.0, 0
    for b in range(SIZE):
        vectors, aligned = [], []
        for s in range(min(len(SENTENCES[b]), config.most_sentences)):
            vector = words[b, np.asarray(batch["sentence"][b]) == s].mean(axis=0)
            score = vector @ double(model.budget.score.kernel[...])[:, 0] + float(model.budget.score.bias[0])
            k = config.selection.candidates[int(np.floor(3 * sigmoid(score)))]
            similarity = [unit(vector) @ unit(patch) for patch in patches[b]]
            best = sorted(range(len(similarity)), key=lambda n: -similarity[n])[:k]
            vectors.append(vector)
            aligned.append(patches[b, best].mean(axis=0))
            counts += k
            if config.weights.places:
                organs = [(), (0,), (1, 2)][s % 3]
                part = np.minimum(shares(batch)[b, keep[b]][:, list(organs)].sum(axis=1), 1)
                if part.sum() > 0:
                    logits = np.array(similarity) / config.temperature
                    chance = np.exp(logits - logits.max())
                    places += -(part / part.sum()) @ np.log(chance / chance.sum())
                    extent += 1 - 2 * part[best].sum() / (len(best) + part.sum())
                    naming += 1
        for i in range(len(vectors)):
            cosines = [
                (unit(vectors[i]) @ unit(other), unit(vectors[j]) @ unit(aligned[i]))
                for j, other in enumerate(aligned)
            ]
            for way in (0, 1):
                row = np.array([pair[way] for pair in cosines]) / config.temperature
                loss += np.log(np.exp(row - row[i]).sum())
        used += len(vectors)
        if aligned:
            prior[b, 0] = 0.2 * np.mean(aligned, axis=0)
    found["alignment"], found["patches_selected"] = (loss, used), (counts, used)
    if config.weights.places:
        found["places"], found["extent"] = (places, naming), (extent, naming)
    stated = sum(map(len, SENTENCES))
    found["sentences_lost"] = stated - used, stated

    targets = np.asarray(batch["report_tokens"])
    masked, hidden = model._hide_words(batch["report_tokens"], word_key)
    prior = jnp.asarray(prior, jnp.float32) if config.fusion.prior else None
    logits = double(model.text_decoder.logits(model._decode(masked, tokens, prior)))
    entropy, hits = 0.0, 0
    for b, place in np.argwhere(np.asarray(hidden)):
        row = logits[b, place]
        entropy += np.log(np.exp(row).sum()) - row[targets[b, place]]
        hits += row.argmax() == targets[b, place]
    found["language"], found["word_accuracy"] = (entropy, np.sum(hidden)), (hits, np.sum(hidden))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"denominator": "all", "anatomy.organ_reduction": "mean", "selection.learned": False},
        {"fusion.prior": False, "temperature": 0.2},
        {"weights.places": 1.0},
    ],
)
def test_every_term_is_that_of_the_equations(changes):
    config, batch = small(**changes), make_batch()
    model = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    found = terms(model, batch)
    want = reference(model, batch, config)
    assert found.keys() == want.keys()
    for name, (value, count) in want.items():
        np.testing.assert_allclose(float(found[name].sum), value, rtol=2e-4, err_msg=name)
        assert float(found[name].count) == count, name
        assert found[name].weight == (1.0 if name in (*config.weights, "extent") else 0.0)


def test_hidden_words_are_three_in_four(usual):
    found = terms(usual, make_batch())
    assert found["language"].count == sum(round(0.75 * sum(lengths)) for lengths in SENTENCES)


def test_organs_may_be_grouped_and_be_one_or_none():
    groups = (("heart",), ("left_lung", "right_lung"))
    batch = make_batch()
    batch["organs"] = batch["organs"].at[0, :, :2, :2, :2].set(0)  # a patch without any organ
    model = build(**{"anatomy.groups": groups})
    np.testing.assert_allclose(model._labels(batch, None), shares(batch, ((0,), (1, 2))), atol=1e-6)
    assert model.organ_names() == ("heart", "left_lung+right_lung")
    model = build(**{"anatomy.labels": "one_hot"})
    labels = np.asarray(model._labels(batch, None))
    want = shares(batch)
    for b, n in np.ndindex(SIZE, 24):
        expected = np.eye(3)[want[b, n].argmax()] if want[b, n].max() > 0 else np.zeros(3)
        np.testing.assert_array_equal(labels[b, n], expected)
    assert not labels[0, 0].any()


def test_organs_move_with_the_volume():
    model = build(**{"vision.augment.shift_voxels": (0, 0, 4)})
    batch = make_batch()
    # The heart is where voxels are bright, in blocks of a patch.
    bright = np.random.default_rng(1).integers(0, 2, (SIZE, 2, 4, 3))
    batch["volume"] = jnp.asarray(np.kron(bright, np.ones((1, 4, 4, 4))) * 900 - 1000, jnp.int16)
    batch["organs"] = jnp.asarray(np.kron(bright[:, None], np.ones((1, 3, 2, 2, 2))) * 255, jnp.uint8)
    keys = base.sample_keys(jax.random.key(3), batch["sample"])
    moved = np.asarray(model.vision.augment(batch["volume"], keys)) > -500
    seen = moved.reshape(SIZE, 2, 4, 4, 4, 3, 4).mean(axis=(2, 4, 6)).reshape(SIZE, 24)
    labels = np.asarray(model._labels(batch, keys))[..., 0]
    assert (moved != (np.asarray(batch["volume"]) > -500)).any()
    # A cell that a shift cuts is taken for evenly filled: exact where the shift is by full cells.
    offsets = np.asarray(transforms.shift_offsets(keys, (0, 0, 4)))
    even = (offsets % 2 == 0).all(axis=1)
    assert even.any()
    np.testing.assert_allclose(labels[even], seen[even], atol=0.01)
    assert np.abs(labels - seen).mean() < 0.2


@pytest.mark.parametrize(
    ("weights", "fields", "parts"),
    [
        ({"anatomy": 0.0}, {"organs"}, {"organ_head"}),
        ({"language": 0.0}, {"report_tokens"}, {"report_head", "text_decoder", "prior"}),
    ],
)
def test_a_term_without_weight_needs_no_data_and_no_weights(weights, fields, parts):
    changes = {f"weights.{name}": value for name, value in weights.items()}
    everything, config = small(), small(**changes)
    missing = set(asap.Asap.batch_fields(everything)) - set(asap.Asap.batch_fields(config))
    assert missing == fields
    model = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    batch = {name: value for name, value in make_batch().items() if name not in fields}
    assert np.isfinite(float(base.total(terms(model, batch))))
    assert all(getattr(model, part) is None for part in parts)
    assert not weights.keys() & terms(model, batch).keys()


def aligned(model, batch):
    """Sums of the alignment with random visible tokens."""
    tokens = jax.random.normal(jax.random.key(1), (SIZE, model.keep, model.vision.width))
    compared = model._compared(tokens, batch)
    return model._align(*compared, model._choose(*compared[:2]), batch["sentences"])[0]


@pytest.mark.parametrize("learned", [True, False])
def test_the_released_choice_of_patches_gets_no_gradient_and_ours_does(learned):
    batch = make_batch()
    graph, params, rest = nnx.split(build(**{"selection.learned": learned}), nnx.Param, ...)

    def loss(params):
        return aligned(nnx.merge(graph, params, rest), batch)["alignment"][0].sum()

    gradient = jax.jit(jax.grad(loss))(params)
    assert np.any(np.asarray(gradient["budget"]["score"]["kernel"][...]) != 0) == learned


def test_a_fixed_number_of_patches_and_all_of_them():
    batch = make_batch()
    for fixed, expected in ((2, 2), (1000, 6)):
        model = build(**{"selection.fixed": fixed})
        total, used = aligned(model, batch)["patches_selected"]
        assert total.sum() / used.sum() == expected
        assert model.budget is None
    everything = model.select({"volume": batch["volume"]}, batch["tokens"], batch["sentence"])
    assert (np.asarray(everything.count) == 24).all()


def test_more_candidates_than_visible_patches_are_refused():
    with pytest.raises(ValueError, match="goes to 64 patches, but 6 of 24 are visible"):
        build(**{"selection.candidates": (16, 32, 64)})
    with pytest.raises(ValueError, match="ascending"):
        build(**{"selection.candidates": (3, 1)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anatomy.labels": "soft"}, r"anatomy\.labels is 'soft'; choose 'share' or 'one_hot'"),
        ({"anatomy.groups": (("liver",),)}, "names liver, which the shards lack: they hold heart"),
        ({"align_heads": False}, "12 wide, the text tower 8: set config.objective.align_heads=True"),
        ({"weights.alignment": 0.0}, r"set fusion\.prior=False"),
        ({"weights.alignment": 0.0, "weights.places": 1.0}, "set both or none"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_what_it_tells_of_a_volume(usual):
    model, batch = usual, make_batch()
    inputs = {"volume": batch["volume"]}
    patches = model.embed_patches(inputs)
    np.testing.assert_allclose(np.linalg.norm(patches, axis=-1), 1, atol=1e-5)
    one = model.select(inputs, batch["tokens"], batch["sentence"])
    assert one.similarity.shape == (SIZE, 4, 24)
    assert np.asarray(one.valid).sum(axis=1).tolist() == [3, 1, 0, 2, 4]
    assert set(np.unique(one.count)) <= {4, 12, 20}  # four times as many as of the visible quarter
    # A report of one sentence is that sentence's text.
    text = model.embed_texts(batch["tokens"][1:2]).mean
    np.testing.assert_allclose(text @ patches[1].T, one.similarity[1, :1], atol=1e-5)
    organs = model.predict_organs(inputs)
    assert organs.shape == (SIZE, 24, 3)
    assert (np.asarray(organs) > 0).all()
    assert (np.asarray(organs) < 1).all()


def test_words_are_filled_in_from_whichever_volume(usual):
    batch, key = make_batch(), jax.random.key(0)
    fill = jax.jit(lambda batch, key, image: usual.fill_words(batch, key, image=image), static_argnums=2)
    model = SimpleNamespace(fill_words=lambda batch, key, image="own": fill(batch, key, image))
    own, other, none = (model.fill_words(batch, key, image=image) for image in ("own", "other", "none"))
    np.testing.assert_array_equal(own.hidden, other.hidden)
    np.testing.assert_array_equal(own.masked, none.masked)
    tokens = batch["report_tokens"]
    np.testing.assert_array_equal(own.masked, jnp.where(own.hidden, SPEC.mask_token, tokens))
    same = {name: jnp.broadcast_to(batch[name][:1], batch[name].shape) for name in ("volume", "tokens")}
    same["sentence"] = jnp.broadcast_to(batch["sentence"][:1], batch["sentence"].shape)
    alike = batch | same
    np.testing.assert_array_equal(
        model.fill_words(alike, key).filled, model.fill_words(alike, key, image="other").filled
    )
    with pytest.raises(ValueError, match="'own', 'other' or 'none'"):
        usual.fill_words(batch, key, image="mine")


def test_no_array_holds_the_tokens_of_every_sentence():
    """The compiled step needs less than a quarter of what the tokens (B, S, N, D) would take."""
    model, batch = build(**{"vision.width": 192, "most_sentences": 64}), make_batch()

    def loss(tokens, sentences):
        compared = model._compared(tokens, batch | {"tokens": sentences})
        choice = model._choose(*compared[:2])
        return model._align(*compared, choice, batch["sentences"])[0]["alignment"][0].sum()

    tokens = jnp.ones((SIZE, 512, 192))
    compiled = jax.jit(jax.grad(loss)).lower(tokens, batch["tokens"]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < SIZE * 64 * 512 * 192 * 4 / 4


def test_the_tower_is_calibrated_by_the_first_batch():
    changed = build(**{"vision.extremes": True, "vision.pooling": "cls_mean"})
    batch = make_batch()
    changed.calibrate(batch, jax.random.key(0))
    tower = changed.vision.encoder
    unusual = mean_and_peak(changed.vision.to_voxels(batch["volume"]), tower.embed.patch)
    scaled = np.asarray(unusual * tower.extreme_scale[...] + tower.extreme_shift[...])
    assert 0.1 < scaled.std(axis=0).max() <= 1.0
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-4)
    assert changed.pool_volumes(batch).shape == (SIZE, 2 * 12)
