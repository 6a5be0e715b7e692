"""HiPro-CT: every term against NumPy in float64, what is left out, and which organ is looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax import objectives
from medclip_jax.objectives import base, hipro_ct

pytest.importorskip("ml_collections")

SPEC = base.DataSpec(
    shape=(8, 16, 12),
    spacing=(4.0, 3.0, 3.0),
    organs=("heart", "left_lung", "right_lung"),
    vocabulary_size=50,
    pad_token=0,
)
KINDS = ("volume", "text", "organ", "sentence")
DAMAGED = ("damaged_volume", "damaged_text")
WIDTH = 5


def small():
    config = hipro_ct.default_config()
    config.vision.update(patch=(4, 4, 4), width=12, depth=1, heads=2, dtype="float32")
    config.text.update(width=8, depth=1, heads=2, max_positions=16, dtype="float32")
    config.embedding_width = WIDTH
    return config


def build(**changes):
    config = small()
    config.update_from_flattened_dict(changes)
    return objectives.create(config, SPEC, rngs=nnx.Rngs(0))


def make_features(size, seed=0, kinds=KINDS):
    """Gaussians such as training meets; some samples without organ."""
    draw = np.random.default_rng(seed)
    features = {}
    for kind in kinds:
        mean = draw.normal(size=(size, WIDTH))
        features[f"{kind}_mean"] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        features[f"{kind}_log_variance"] = draw.uniform(-4, -1, (size, WIDTH))
    return features | {"valid": np.arange(size) % 4 != 2}


def make_batch(size, seed=0):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, 50, (size, 6))
    tokens[:, 4:] = 0
    batch = {
        "volume": draw.integers(-1000, 1000, (size, *SPEC.shape)).astype(np.int16),
        "tokens": tokens.astype(np.int32),
        "organ_tokens": tokens[:, 1:].astype(np.int32),
        "organs": draw.integers(0, 256, (size, 3, 4, 8, 6)).astype(np.uint8),
        "organ": (np.arange(size) % 3).astype(np.int32),
        "organ_normal": draw.integers(0, 2, size).astype(np.int8),
        # Samples 0 and 1 are of one study, and so are 3 and 6.
        "study": np.stack([np.arange(size)] * 2, axis=1).astype(np.int32),
        "sample": np.arange(size, dtype=np.int32),
    }
    for first, second in ((0, 1), (3, 6)):
        if second < size:
            batch["study"][second] = batch["study"][first]
    return batch


def on_device(arrays):
    kinds = {"f": jnp.float32, "b": bool}
    return {name: jnp.asarray(x, kinds.get(x.dtype.kind, x.dtype)) for name, x in arrays.items()}


def reference(features, batch, config):
    """All terms from the equations, pair by pair and sample by sample: name to (mean, count)."""
    size = len(features["valid"])
    kinds = [name.removesuffix("_mean") for name in features if name.endswith("_mean")]
    valid = {kind: np.ones(size, bool) for kind in kinds} | dict.fromkeys(KINDS[2:], features["valid"])
    mean = {kind: features[f"{kind}_mean"] for kind in kinds}
    variance = {kind: np.exp(features[f"{kind}_log_variance"]) for kind in kinds}
    study, organ, normal = batch["study"], batch["organ"], batch["organ_normal"]

    def contrast(one, other, is_local):
        total = 0.0
        for i in range(size):
            for j in range(size):
                if not (valid[one][i] and valid[other][j]):
                    continue
                same = (study[i] == study[j]).all() and (not is_local or organ[i] == organ[j])
                positive = i == j or (same and config.same_study == "positive")
                both_normal = is_local and organ[i] == organ[j] and normal[i] and normal[j]
                if not positive and (same or (both_normal and config.ignore_normal_pairs)):
                    continue
                traces = variance[one][i].sum() + variance[other][j].sum()
                logit = config.logit_scale * (mean[one][i] @ mean[other][j] - traces / 2) + config.logit_bias
                total += np.log1p(np.exp(-logit if positive else logit))
        return total / max(valid[one].sum(), 1), valid[one].sum()

    def log_integral(one, other, n):
        """Of density one squared times density other, in each dimension."""
        (m1, v1), (m2, v2) = ((mean[kind][n], variance[kind][n]) for kind in (one, other))
        a, b = 1 / v1 + 0.5 / v2, 2 * m1 / v1 + m2 / v2
        c = m1**2 / v1 + 0.5 * m2**2 / v2
        return -np.log(v1) - 0.5 * np.log(v2) - 0.5 * np.log(a) + b**2 / (4 * a) - c

    def score(inside, outside, n):
        return log_integral(inside, outside, n) - log_integral(outside, inside, n)

    def averaged(values, counted):
        return (np.mean(values) if len(values) else 0.0), counted.sum()

    def nested(inside, outside):
        counted = valid[inside] & valid[outside]
        limit, losses = -np.log(config.inclusion.eps), []
        for n in np.flatnonzero(counted):
            h = config.inclusion.scale * score(inside, outside, n)
            h = h if config.inclusion.reduce == "per_dim" else h.sum()
            assert (np.abs(h) < limit).all()
            losses.append(np.mean(-np.log(1 / (1 + np.exp(-h)))))
        return averaged(losses, counted)

    down = config.direction == "global_contains_local"
    terms = {
        "contrast": contrast("volume", "text", False),
        "local_contrast": contrast("organ", "sentence", True),
        "volume_hierarchy": nested("organ", "volume") if down else nested("volume", "organ"),
        "text_hierarchy": nested("sentence", "text") if down else nested("text", "sentence"),
        "cross": nested("volume", "text"),
    }
    if config.weights.damage:
        terms["volume_damage"] = nested("volume", "damaged_volume")
        terms["text_damage"] = nested("text", "damaged_text")
    divergences = [
        0.5 * (mean[kind][n] ** 2 + variance[kind][n] - 1 - np.log(variance[kind][n]))
        for kind in kinds
        for n in np.flatnonzero(valid[kind])
    ]
    combine = np.mean if config.bottleneck_reduce == "mean" else np.sum
    terms["bottleneck"] = np.mean([combine(x) for x in divergences]), np.array(len(divergences))
    for kind in kinds:
        terms[f"{kind}_variance"] = averaged(variance[kind][valid[kind]], valid[kind])
    for part, whole in (("organ", "volume"), ("sentence", "text")):
        inside = [score(part, whole, n).sum() > 0 for n in np.flatnonzero(valid[part])]
        terms[f"{part}_in_{whole}"] = averaged(inside, valid[part])
    hits = 0
    for i in range(size):
        distances = [
            ((mean["volume"][i] - mean["text"][j]) ** 2).sum() + variance["text"][j].sum()
            for j in range(size)
        ]
        hits += (study[np.argmin(distances)] == study[i]).all()
    terms["top1"] = hits / size, np.array(size)
    return terms


SWITCHES = {
    "default": {},
    "other direction, one number a pair": {
        "direction": "local_contains_global",
        "inclusion.reduce": "joint",
        "inclusion.scale": 0.1,
    },
    "all pairs": {"ignore_normal_pairs": False, "same_study": "ignore", "bottleneck_reduce": "sum"},
    "in chunks": {"chunk_rows": 3},
    "damaged views": {"weights.damage": 0.2},
}


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("size", [1, 7])
def test_terms_against_the_equations(switches, size):
    config = small()
    config.update_from_flattened_dict(SWITCHES[switches])
    config.inclusion.eps = 1e-12
    model = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    with_damage = config.weights.damage > 0
    features = make_features(size, kinds=(*KINDS, *DAMAGED) if with_damage else KINDS)
    batch = make_batch(size)
    features["valid"][0] = True
    # All that is ignored by a switch occurs: equal normal organs in two patients.
    batch["organ"][-2:], batch["organ_normal"][-2:] = 1, 1
    terms = jax.jit(model.couple)(on_device(features), on_device(batch))
    weights = {
        "contrast": 1.0,
        "local_contrast": 1.0,
        "volume_hierarchy": 0.1,
        "text_hierarchy": 0.1,
        "cross": 1e-4,
        "bottleneck": 0.1,
        "volume_damage": 0.2,
        "text_damage": 0.2,
    }
    expected = reference(features, batch, config)
    for name, (value, count) in expected.items():
        assert float(terms[name].weight) == pytest.approx(weights.get(name, 0.0)), name
        assert float(terms[name].count) == count, name
        np.testing.assert_allclose(terms[name].sum / max(count, 1), value, rtol=2e-5, atol=2e-6, err_msg=name)
    rest = terms.keys() - expected.keys()
    nested = {"volume_hierarchy", "text_hierarchy", "cross"}
    nested |= {"volume_damage", "text_damage"} if with_damage else set()
    assert rest == {f"{name}_compressed" for name in nested} | {"logit_scale", "logit_bias"}
    assert all(float(terms[name].sum) == 0 for name in rest if name.endswith("compressed"))
    total = sum(weights[name] * value for name, (value, _) in expected.items() if name in weights)
    np.testing.assert_allclose(base.total(terms), total, rtol=2e-5)


def test_compressed_scores_are_counted():
    model = build(**{"inclusion.eps": 0.3})
    features = on_device(make_features(7))
    terms = jax.jit(model.couple)(features, on_device(make_batch(7)))
    found = float(terms["cross_compressed"].sum / terms["cross_compressed"].count)
    assert 0 < found < 1


def graded(model, batch):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        whole = nnx.merge(graph, params, rest)
        terms = whole.couple(whole.encode(batch, jax.random.key(0), train=True), batch)
        return base.total(terms), terms

    (value, terms), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, terms, nnx.to_pure_dict(gradients)


def test_no_organ_in_the_whole_batch_leaves_the_wholes():
    """Neither drawn, nor shown, nor described: the loss is that of volumes and texts, and finite."""
    model = build()
    batch = make_batch(4)
    batch["organ"][:2] = -1
    batch["organs"][2] = 0
    batch["organ_tokens"][[0, 1, 3]] = 0
    value, terms, gradients = graded(model, on_device(batch))
    local = [name for name in terms if "hierarchy" in name or "organ" in name or "local" in name]
    assert len(local) == 7
    assert all(float(terms[name].count) == 0 for name in local)
    assert float(terms["bottleneck"].count) == 8
    expected = sum(
        term.weight * term.sum / term.count
        for name, term in terms.items()
        if name in ("contrast", "cross", "bottleneck")
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    whole_alone = build(**{"weights.local": 0.0, "weights.hierarchy": 0.0})
    value_alone, _, gradients_alone = graded(whole_alone, on_device(batch))
    np.testing.assert_allclose(value, value_alone, rtol=1e-6)
    for with_local, without in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_alone), strict=True):
        np.testing.assert_allclose(with_local, without, rtol=1e-4, atol=1e-6)


def test_a_batch_of_one_trains():
    value, terms, gradients = graded(build(), on_device(make_batch(1)))
    assert float(terms["local_contrast"].count) == 1
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_encode_looks_at_the_drawn_organ_and_says_which_samples_have_one():
    model = build()
    batch = make_batch(5)
    batch["organ"][0] = -1
    batch["organs"][1, 1] = 0
    batch["organ_tokens"][2] = 0
    data = on_device(batch)
    features = jax.jit(lambda data: model.encode(data, jax.random.key(0), train=False))(data)
    np.testing.assert_array_equal(features["valid"], [False, False, False, True, True])
    organs = jax.jit(model.embed_organs)(data, data["organs"])
    assert organs.mean.shape == organs.log_variance.shape == (5, 3, WIDTH)
    assert organs.present.shape == (5, 3)
    assert not organs.present[1, 1]
    assert organs.present.sum() == 14
    for n in (2, 3, 4):
        np.testing.assert_allclose(features["organ_mean"][n], organs.mean[n, batch["organ"][n]], atol=1e-5)
        np.testing.assert_allclose(
            features["organ_log_variance"][n], organs.log_variance[n, batch["organ"][n]], atol=1e-5
        )
    volumes = jax.jit(model.embed_volumes)(data)
    np.testing.assert_allclose(features["volume_mean"], volumes.mean, atol=1e-5)
    np.testing.assert_allclose(features["volume_log_variance"], volumes.log_variance, atol=1e-5)
    texts = jax.jit(model.embed_texts)(data["organ_tokens"][3:])
    np.testing.assert_allclose(features["sentence_mean"][3:], texts.mean, atol=1e-5)
    np.testing.assert_allclose(features["sentence_log_variance"][3:], texts.log_variance, atol=1e-5)


def test_an_organ_that_fills_the_volume_is_the_volume():
    """Occupancy 1 everywhere: the same distribution; and a part of it: another one."""
    model = build()
    data = on_device(make_batch(2))
    organs = jnp.full((2, 2, 4, 8, 6), 255, jnp.uint8).at[:, 1, :, 4:].set(0)
    found = jax.jit(model.embed_organs)(data, organs)
    whole = jax.jit(model.embed_volumes)(data)
    np.testing.assert_allclose(found.mean[:, 0], whole.mean, atol=1e-5)
    np.testing.assert_allclose(found.log_variance[:, 0], whole.log_variance, atol=1e-5)
    assert np.abs(found.mean[:, 1] - whole.mean).max() > 1e-3
    assert np.abs(found.log_variance[:, 1] - whole.log_variance).max() > 1e-3


def test_organ_maps_move_with_the_augmented_volume():
    """An organ of one bright cell: whatever the shift, the weights lie on the patches that are bright."""
    config = small()
    config.vision.augment.shift_voxels = (2, 4, 4)
    config.vision.patch = (2, 2, 2)
    model = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    batch = make_batch(12)
    batch["organ"][:] = 1
    batch["organs"][:] = 0
    batch["organs"][:, 1, 1, 4, 2] = 255
    batch["volume"][:] = -1000
    batch["volume"][:, 2:4, 8:10, 4:6] = 1000
    data = on_device(batch)
    keys = base.sample_keys(jax.random.key(3), data["sample"])
    bright = model.vision.to_voxels(data["volume"], keys)[..., 0] > 0
    shares = np.asarray(bright).reshape(12, 4, 2, 8, 2, 6, 2).mean(axis=(2, 4, 6)).reshape(12, -1)
    assert len({tuple(share) for share in shares}) > 6
    np.testing.assert_allclose(model._drawn_organ(data, keys), shares, atol=2 / 255)


def test_damaged_views_are_those_of_damaged_inputs():
    """Noise in the volume, no end to the text, and nothing of it outside training."""
    batch = on_device(make_batch(4))
    key = jax.random.key(0)

    def features(noise_hu, cut_text, train=True):
        changes = {"weights.damage": 0.1, "damage.noise_hu": noise_hu, "damage.cut_text": cut_text}
        model = build(**changes)
        return jax.jit(lambda batch: model.encode(batch, key, train=train))(batch)

    def apart(found, kind):
        return {
            n
            for n in range(4)
            if np.abs(found[f"damaged_{kind}_log_variance"][n] - found[f"{kind}_log_variance"][n]).max()
            > 1e-4
        }

    intact = features(0.0, 0.0)
    assert apart(intact, "volume") == apart(intact, "text") == set()
    noisy = features(400.0, 0.0)
    assert apart(noisy, "volume") == {0, 1, 2, 3}
    assert apart(noisy, "text") == set()
    # Of four tokens up to three are cut; a draw may cut none.
    assert len(apart(features(0.0, 0.75), "text")) >= 2
    for kind in KINDS:
        np.testing.assert_allclose(noisy[f"{kind}_mean"], intact[f"{kind}_mean"], atol=1e-6)
    assert not any("damaged" in name for name in features(400.0, 0.75, train=False))


def test_without_local_terms_no_organ_is_needed():
    spec = base.DataSpec(shape=SPEC.shape, spacing=SPEC.spacing, vocabulary_size=50)
    config = small()
    with pytest.raises(ValueError, match=r"--organ-cell.*weights.local=0 and .*weights.hierarchy=0"):
        objectives.create(config, spec, rngs=nnx.Rngs(0))
    config.weights.update(local=0.0, hierarchy=0.0)
    model = objectives.create(config, spec, rngs=nnx.Rngs(0))
    batch = on_device({name: x for name, x in make_batch(3).items() if "organ" not in name})
    assert set(model.batch_fields(config)) < batch.keys()
    features = jax.jit(lambda data: model.encode(data, jax.random.key(0), train=True))(batch)
    assert features.keys() == {f"{kind}_{what}" for kind in KINDS[:2] for what in ("mean", "log_variance")}
    terms = model.couple(features, batch)
    assert {name for name, term in terms.items() if term.weight} == {"contrast", "cross", "bottleneck"}


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="choose 'global_contains_local' or 'local_contains_global'"):
        build(direction="up")
    for wrong in ({"damage.cut_text": 1.5}, {"damage.noise_hu": -1.0}):
        with pytest.raises(ValueError, match="noise_hu is 0 or more, cut_text a share up to 1"):
            build(**wrong)
    with pytest.raises(ValueError, match="set it to 'mean'"):
        build(**{"vision.pooling": "cls"})
    batch = on_device(make_batch(2)) | {"organs": jnp.zeros((2, 3, 1, 2, 1), jnp.uint8)}
    with pytest.raises(ValueError, match="do not divide the patch"):
        build().encode(batch, jax.random.key(0), train=True)


def test_it_learns_a_toy_batch_through_the_training_step():
    """Eight volumes, each of its own brightness and words: both contrasts fall well below their start.

    And noisy volumes come to include the intact ones.
    """
    from medclip_jax.parameters import split
    from medclip_jax.training import mesh as meshes
    from medclip_jax.training.config import base_config
    from medclip_jax.training.optimizer import make_optimizer
    from medclip_jax.training.state import initial_state
    from medclip_jax.training.step import make_train_step

    config = base_config()
    config.optimizer.learning_rate = 1e-2
    batch = make_batch(8)
    batch["study"] = np.stack([np.arange(8)] * 2, axis=1).astype(np.int32)
    batch["volume"] = np.broadcast_to(np.linspace(-900, 900, 8)[:, None, None, None], batch["volume"].shape)
    batch["volume"] = batch["volume"].astype(np.int16)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    graphdef, params, variables = split(build(**{"weights.damage": 0.5}))
    optimizer = make_optimizer(config.optimizer, params, 100)
    state = meshes.put_state(initial_state(params, variables, optimizer, ema=False), meshes.replicated(mesh))
    step = make_train_step(graphdef, optimizer, mesh)
    history = []
    for _ in range(60):
        state, metrics = step(state, meshes.put_batch(batch, mesh), jax.random.key(0))
        history.append(jax.device_get(metrics))
    for name in ("terms/contrast", "terms/local_contrast", "loss"):
        assert history[-1][name] < 0.7 * history[0][name], name
    assert history[-1]["terms/volume_damage"] < history[0]["terms/volume_damage"] - 0.1
    assert all(np.isfinite(metrics["loss"]) for metrics in history)


@pytest.mark.slow
def test_centered_heads_open_the_cone():
    """At the start all means of a tower point the same way; with their mean at the origin they do not."""
    batch = make_batch(6)
    alike = {}
    for centered in (False, True):
        model = build(centered=centered)
        model.calibrate(batch, jax.random.key(0))
        features = model.encode(batch, jax.random.key(0), train=False)
        for kind in ("volume", "text"):
            mean = np.asarray(features[f"{kind}_mean"])
            alike[kind, centered] = (mean @ mean.T)[~np.eye(6, dtype=bool)].mean()
    for kind in ("volume", "text"):
        assert alike[kind, False] > 0.5
        assert alike[kind, True] < 0.1
