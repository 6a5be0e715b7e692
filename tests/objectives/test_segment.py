"""Segmentation through the seam: the terms against NumPy, crops by their own keys, towers of both kinds."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax import objectives
from medclip_jax.objectives import base, segment
from medclip_jax.objectives.towers import vision_defaults
from tests import any_shape
from tests.objectives.made_batches import SPEC, make_batch

CLASSES = ("liver", "spleen")
SPEC = dataclasses.replace(SPEC, label_classes=CLASSES)


def config_of(kind="vit", **changes):
    config = segment.default_config()
    with config.unlocked():
        config.vision = vision_defaults(kind)
    if kind == "vit":
        config.vision.update(patch=(2, 4, 4), width=12, depth=4, heads=2)
    elif kind == "resnet":
        config.vision.update(depth=18, width=2, stem_size=(3, 3, 3), stem_stride=(1, 1, 1), norm="group")
    config.vision.update(windows=((-1000.0, 0.0), (-150.0, 250.0)), dtype="float32")
    config.feature_size = 2
    # The maps of a ResNet's third stage must have more than one voxel.
    config.crops.update(shape=(4, 8, 8) if kind == "vit" else SPEC.shape, count=2)
    config.update(changes)
    return config


def batch_of(size=3, seed=0):
    labels = np.random.default_rng(seed).integers(0, 3, (size, *SPEC.shape)).astype(np.uint8)
    labels[:, :2] = 255
    batch = make_batch(size, seed)
    return {name: batch[name] for name in ("volume", "study", "sample")} | {"label_map": jnp.asarray(labels)}


def create(config):
    return objectives.create(config, SPEC, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_step(kind):
    """Finite, every weight learns, and a sample's features are its own."""
    model, batch, key = create(config_of(kind)), batch_of(), jax.random.key(1)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    hash(graph)

    @jax.jit
    def step(params, batch):
        def loss(params):
            model = nnx.merge(graph, params, rest)
            features = model.encode(batch, key, train=True)
            terms = model.couple(features, batch)
            return base.total(terms), (features, terms)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, (features, terms)), gradients = step(params, batch)
    assert np.isfinite(value)
    for path, leaf in nnx.to_flat_state(gradients):
        assert np.isfinite(leaf[...]).all(), path
    moved = [bool(np.any(np.asarray(leaf[...]))) for _, leaf in nnx.to_flat_state(gradients)]
    assert sum(moved) >= 0.85 * len(moved)
    order = np.array([2, 0, 1])
    (_, (turned, _)), _ = step(params, {name: part[order] for name, part in batch.items()})
    for name, part in features.items():
        np.testing.assert_allclose(turned[name], part[order], rtol=2e-5, atol=2e-5, err_msg=name)
    expected = sums_of(features)
    np.testing.assert_allclose(terms["dice"].sum / terms["dice"].count, expected[0], rtol=1e-5)
    np.testing.assert_allclose(
        terms["cross_entropy"].sum / terms["cross_entropy"].count, expected[1], rtol=1e-5
    )
    np.testing.assert_allclose(value, sum(expected), rtol=1e-5)


def sums_of(features):
    """Mean over crops with a labeled voxel of one less Dice, mean over classes; cross entropy of a voxel."""
    f = {name: np.asarray(part, np.float64) for name, part in features.items()}
    dice = (2 * f["shared"] + 1e-5) / (f["predicted"] + f["true"] + 1e-5)
    return (1 - dice.mean(-1))[f["voxels"] > 0].mean(), f["cross_entropy"].sum() / f["voxels"].sum()


def made_features():
    draw = np.random.default_rng(0)
    features = {name: draw.uniform(1, 5, (3, 2, 3)) for name in ("shared", "predicted", "true")}
    features |= {"cross_entropy": draw.uniform(1, 5, (3, 2)), "voxels": draw.uniform(5, 9, (3, 2))}
    for part in features.values():
        part[1, 0] = 0  # a crop without a labeled voxel
    return features


def test_dice_over_crops_and_over_the_batch():
    features = made_features()
    given = {name: jnp.asarray(part, jnp.float32) for name, part in features.items()}
    found = create(config_of()).couple(given, {})["dice"]
    np.testing.assert_allclose(found.sum / found.count, sums_of(features)[0], rtol=1e-5)
    assert found.count == 5
    found = create(config_of(dice_over="batch")).couple(given, {})["dice"]
    sums = [features[name].sum((0, 1)) for name in ("shared", "predicted", "true")]
    np.testing.assert_allclose(
        found.sum / found.count, (1 - 2 * sums[0] / (sums[1] + sums[2])).mean(), rtol=1e-5
    )


@pytest.mark.parametrize("over", ["crop", "batch"])
def test_a_batch_without_labels_teaches_nothing(over):
    model, batch = create(config_of(dice_over=over)), batch_of()
    batch["label_map"] = jnp.full_like(batch["label_map"], 255)
    terms = jax.jit(lambda batch: model.couple(model.encode(batch, jax.random.key(0), train=True), batch))(
        batch
    )
    assert base.total(terms) == 0


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_classes_start_as_probable_as_they_are_frequent(kind):
    """In the crops of the first batch; one that these lack at a thousandth; what was trained stays."""
    model, batch, key = create(config_of(kind)), batch_of(), jax.random.key(3)
    batch["label_map"] = jnp.where(batch["label_map"] == 2, 0, batch["label_map"])  # no spleen
    labels = np.asarray(jax.jit(lambda batch: model._crops(batch, key, True)[1])(batch))
    counts = np.array([(labels == value).sum() for value in range(3)], np.float64)
    assert counts[:2].all()
    assert counts[2] == 0
    expected = np.log(np.maximum(counts / counts.sum(), 1e-3))
    model.calibrate(batch, key)
    classify = model.decoder.decoder.classify
    np.testing.assert_allclose(classify.bias[...], expected, rtol=1e-6)
    classify.bias[...] = jnp.array([0.0, 0.5, 0.0])
    model.calibrate(batch, key)
    np.testing.assert_array_equal(classify.bias[...], [0.0, 0.5, 0.0])
    classify.bias[...] = jnp.zeros(3)
    model.calibrate(batch | {"label_map": jnp.full_like(batch["label_map"], 255)}, key)
    np.testing.assert_allclose(jax.nn.softmax(classify.bias[...]), np.full(3, 1 / 3), rtol=1e-6)


def test_volumes_and_maps_are_cut_and_moved_alike():
    """Of volumes whose HU are 100 times their class, as far as a shift left anything."""
    config = config_of()
    config.vision.augment.shift_voxels = (1, 2, 2)
    config.crops.update(mirror=0.5, turn=0.5)
    model, batch = create(config), batch_of()
    labels = np.random.default_rng(1).integers(0, 3, batch["label_map"].shape).astype(np.uint8)
    batch |= {"label_map": jnp.asarray(labels), "volume": jnp.asarray(100 * labels.astype(np.int16))}
    volume, cut = jax.jit(lambda batch: model._crops(batch, jax.random.key(0), True))(batch)
    volume, cut = np.asarray(volume), np.asarray(cut)
    assert cut.shape == (6, 4, 8, 8)
    np.testing.assert_array_equal(volume == -1024, cut == 255)
    np.testing.assert_array_equal(volume[cut != 255], 100 * cut[cut != 255].astype(np.int16))


def test_tokens_that_stand_for_cells():
    """The tower sees cells, the decoder voxels all the same."""
    config = config_of()
    config.vision.update(cell=(2, 2, 2), patch=(1, 2, 2))
    model = create(config)
    assert model.vision.token_voxels == (2, 4, 4)
    crop = batch_of()["volume"][:, :4, :8, :8]
    found = jax.jit(lambda crop: model.segment({"volume": crop}))(crop)
    assert found.shape == (3, 4, 8, 8, 3)
    assert found.dtype == jnp.float32


def test_embeddings_see_the_full_volume():
    model, batch = create(config_of()), batch_of(2)
    embed = jax.jit(lambda volume: model.embed_volumes({"volume": volume}).mean)
    first = embed(batch["volume"])
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-5)
    for corner in ((0, 0, 0), (-1, -1, -1)):
        changed = embed(batch["volume"].at[(0, *corner)].add(900))
        assert np.abs(changed - first)[0].max() > 1e-7
        np.testing.assert_array_equal(changed[1], first[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dice_over": "voxel"}, "choose 'crop' or 'batch'"),
        ({"crops": {"shape": (9, 8, 8)}}, "does not fit into volumes"),
        ({"crops": {"shape": (4, 8, 4), "turn": 0.5}}, "needs crops as high as wide"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        create(config_of(**changes))


def test_other_refusals():
    with pytest.raises(ValueError, match="no label maps"):
        objectives.create(config_of(), dataclasses.replace(SPEC, label_classes=()), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="has no decoder"):
        create(config_of(any_shape.KIND))


def test_what_it_says_of_itself():
    model, other = (nnx.eval_shape(lambda kind=kind: create(config_of(kind))) for kind in ("vit", "resnet"))
    assert "UNETR, 2 classes, crops of 4 × 8 × 8" in model.towers()["decoder"]
    assert "U-Net" in other.towers()["decoder"]
    assert model.segmented_classes() == CLASSES
    assert model.crop_shape() == (4, 8, 8)
    whole = config_of()
    whole.crops.shape = ()
    assert nnx.eval_shape(lambda: create(whole)).crop_shape() == SPEC.shape


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_in_bfloat16_no_convolution_is_wide(kind):
    """Logits are float32, what comes before is not widened by what is put beside it."""
    config = config_of(kind)
    config.vision.dtype = "bfloat16"
    crops = jnp.zeros((2, *config.crops.shape), jnp.int16)
    graph, state = nnx.split(nnx.eval_shape(lambda: create(config)))

    def told(state, crops):
        return nnx.merge(graph, state).segment({"volume": crops})

    jaxpr = jax.make_jaxpr(told)(state, crops)
    assert jaxpr.out_avals[0].dtype == jnp.float32
    types = re.findall(r":(\w+)\[[\d,]+\] = conv_general_dilated", str(jaxpr))
    assert len(types) > 10
    assert set(types) == {"bf16"}
