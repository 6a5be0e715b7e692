"""Vision towers by kind: their fields, one of one's own, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from medclip_jax import objectives
from medclip_jax.models.encoder import Encoded, VisionEncoder
from medclip_jax.objectives import clip, mae
from medclip_jax.objectives.base import DataSpec
from medclip_jax.objectives.towers import VisionTower, vision_defaults
from medclip_jax.training.config import apply_override, base_config

SPEC = DataSpec((8, 12, 16), (1.0, 1.0, 1.0), vocabulary_size=50)
OWN = f"{__name__}:Averages"


class Averages(VisionEncoder):
    """The smallest encoder: a linear map of the volume's mean over slabs."""

    part = "averages"
    pooling = "mean"

    @classmethod
    def defaults(cls):
        return {"slabs": 2, "width": 6}

    @classmethod
    def from_config(cls, config, shape, channels, *, rngs):
        return cls(config.slabs, channels, config.width, rngs=rngs)

    def __init__(self, slabs, channels, width, *, rngs):
        self.slabs, self.width, self.pooled_width = slabs, width, width
        self.linear = nnx.Linear(channels, width, rngs=rngs)

    def grid_of(self, shape):
        return (self.slabs, 1, 1)

    def encode(self, voxels, keep=None, *, train=False):
        batch, *_, channels = voxels.shape
        return Encoded(self.linear(voxels.reshape(batch, self.slabs, -1, channels).mean(axis=2)))

    def pool(self, encoded):
        return encoded.tokens.mean(axis=1)


def built(kind, **changes):
    config = ConfigDict(vision_defaults(kind))
    config.update(dtype="float32", **changes)
    return VisionTower(config, SPEC, rngs=nnx.Rngs(0))


TOWERS = {
    "vit": ({"patch": (4, 4, 4), "width": 12, "depth": 1, "heads": 2}, (2, 3, 4), "transformer"),
    "resnet": ({"depth": 18, "width": 2}, (1, 1, 1), "resnet"),
    OWN: ({"cell": (2, 2, 2)}, (2, 1, 1), "averages"),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_every_kind_is_a_tower(kind):
    changes, grid, part = TOWERS[kind]
    tower = built(kind, **changes)
    assert tower.kind == kind
    assert tower.grid == grid
    assert all(name.split("/")[0] == part for name in objectives_params(tower))
    volume = np.random.default_rng(0).integers(-1000, 1000, (2, *SPEC.shape)).astype(np.int16)

    @jax.jit
    def run(volume):
        encoded = tower.encode(tower.to_voxels(volume))
        return encoded, tower.pool(encoded), tower(volume)

    encoded, pooled, called = run(volume)
    assert encoded.tokens.shape == (2, np.prod(grid), tower.width)
    assert (encoded.summary is None) == (kind != "vit")
    assert pooled.shape == (2, tower.pooled_width)
    np.testing.assert_allclose(pooled, called, atol=1e-5)
    centers = tower.token_centers()
    assert tuple(map(len, centers)) == grid
    assert all(0 <= axis.min() <= axis.max() < size for axis, size in zip(centers, SPEC.shape, strict=True))


def objectives_params(tower):
    from medclip_jax.parameters import flatten, split

    return flatten(split(tower)[1])


def test_each_kind_has_its_own_fields():
    vit, resnet = vision_defaults(), vision_defaults("resnet")
    assert vit["kind"] == "vit"
    assert {"patch", "heads"} <= vit.keys()
    assert not {"patch", "heads"} & resnet.keys()
    assert {"kind", "windows", "augment", "dtype", "remat", "weights"} <= vit.keys() & resnet.keys()


def test_encoded_keeps_summary_and_tokens_apart():
    tokens, summary = jnp.arange(12.0).reshape(2, 3, 2), jnp.ones((2, 2))
    encoded = Encoded.of(tokens, summary)
    np.testing.assert_array_equal(encoded.tokens, tokens)
    np.testing.assert_array_equal(encoded.summary, summary)
    assert Encoded.of(tokens).summary is None


def test_unknown_kinds_and_policies():
    with pytest.raises(ValueError, match=r"there are vit, resnet, and package.module:Class.*'resnet'\?"):
        vision_defaults("resnets")
    with pytest.raises(ValueError, match="there is no module 'nowhere'"):
        vision_defaults("nowhere:Net")
    with pytest.raises(ValueError, match=r"no class 'nnx' that is a .*VisionEncoder; it has Averages"):
        vision_defaults(f"{__name__}:nnx")
    with pytest.raises(ValueError, match="remat='block': of kind 'resnet' it is one of none, stage"):
        built("resnet", remat="block", depth=18, width=2)


def test_a_kind_is_chosen_with_all_its_fields():
    given = clip.default_config()
    given.vision.kind = "resnet"
    with pytest.raises(
        ValueError, match=r"has no .*patch.*config.objective.vision = vision_defaults\('resnet'\)"
    ):
        objectives.default_config("clip", given)
    config = base_config()
    config.objective = clip.default_config()
    with pytest.raises(ValueError, match=r"vision.kind cannot be overridden.*vision_defaults\('resnet'\)"):
        apply_override(config, "--config.objective.vision.kind=resnet")


def test_masking_needs_an_encoder_that_leaves_patches_out():
    config = mae.default_config()
    config.vision = vision_defaults("resnet")
    config.vision.update(depth=18, width=2)
    with pytest.raises(ValueError, match="kind='resnet' cannot leave patches out"):
        objectives.create(config, SPEC, rngs=nnx.Rngs(0))


def test_a_tower_moves_label_maps_as_it_moves_volumes():
    shift = {"shift_voxels": (1, 2, 3)}
    still, noisy = (
        built(OWN, cell=(2, 2, 2), augment={**vision_defaults(OWN)["augment"], **shift, "noise_hu": noise})
        for noise in (0.0, 20.0)
    )
    keys = jax.random.split(jax.random.key(3), 4)
    labels = jax.random.randint(jax.random.key(4), (4, *SPEC.shape), 0, 200).astype(jnp.uint8)
    moved = np.asarray(still.augment(labels.astype(jnp.int16), keys))
    got = np.asarray(noisy.augment_labels(labels, keys))
    np.testing.assert_array_equal(got, np.where(moved == -1024, 255, moved))
    assert (got == 255).any()
    np.testing.assert_array_equal(noisy.augment_labels(labels, None), labels)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_a_loop_over_blocks_is_warned_of_on_a_tpu(platform, caplog):
    from medclip_jax.training.start import warn_of_scan

    objective = clip.default_config()
    objective.text.scan = True
    warn_of_scan(objective, platform)
    assert ("config.objective.text.scan=True: on a TPU" in caplog.text) == (platform == "tpu")
    assert "vision" not in caplog.text
