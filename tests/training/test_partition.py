"""Every parameter by one rule; optimizer state and average lie as their parameters."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from toy import make_config

from medclip_jax import objectives
from medclip_jax.objectives import base, cardiac_clip, clip, mae
from medclip_jax.parameters import flatten, split
from medclip_jax.training import mesh as meshes
from medclip_jax.training import partition
from medclip_jax.training.optimizer import make_optimizer
from medclip_jax.training.state import initial_state

PARAMS = {
    "vision/kernel": (64, 96),
    "vision/bias": (96,),
    "text/embedding": (1000, 64),
    "norm/scale": (64,),
    "small/kernel": (8, 8),
    "odd/kernel": (65, 129),
    "stack/kernel": (3, 64, 64),
    "class_token": (1, 1, 64),
    "log_scale": (),
}


def shapes(params=PARAMS):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in params.items()}


def mesh(data=2, fsdp=4):
    return meshes.make_mesh(ConfigDict({"data": data, "fsdp": fsdp}))


def specs(rules=(), params=PARAMS, **sizes):
    found = partition.param_shardings(shapes(params), mesh(**sizes), rules)
    return {name: sharding.spec for name, sharding in found.items()}


def test_the_large_axis_of_matrices_is_split_where_it_divides():
    assert specs() == {
        "vision/kernel": P(None, "fsdp"),
        "vision/bias": P(),
        "text/embedding": P("fsdp"),
        "norm/scale": P(),
        "small/kernel": P(),  # below MINIMUM_SIZE
        "odd/kernel": P(),  # no axis divides
        "stack/kernel": P(None, "fsdp"),  # the first of equals
        "class_token": P(),
        "log_scale": P(),
    }
    # 1000 is no multiple of 16, so the other axis; nothing is split over one device.
    assert partition._largest((1000, 64), 16) == P(None, "fsdp")
    assert set(specs(data=8, fsdp=1).values()) == {P()}


def test_rules_of_the_config_come_before_the_defaults():
    found = specs(((r"^vision/kernel$", ("fsdp", None)), (r"^text/", ()), (r"^small", ["data", "fsdp"])))
    assert found["vision/kernel"] == P("fsdp", None)
    assert found["text/embedding"] == P()
    assert found["small/kernel"] == P("data", "fsdp")
    assert found["stack/kernel"] == P(None, "fsdp")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((r"^vision/", ()), (r"kernel$", ())), "vision/kernel is covered by '^vision/' and 'kernel$'"),
        (((r"^visoin/", ()),), "matches no parameter. Near: vision"),
        (((r"odd", ("fsdp",)),), "65 is no multiple of the 4 devices along 'fsdp'"),
        (((r"odd", ("model",)),), "each of the mesh axes ('data', 'fsdp') at most once"),
        (((r"vision/kernel", ("fsdp", "fsdp")),), "at most once"),
        (((r"vision/bias", (None, "fsdp")),), "names 2 axes, but the array has 1"),
        (((r"vision/bias", "fsdp"),), "is no rule: give 'largest', or"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        specs(rules)


def test_a_parameter_without_a_rule_stops_the_run_and_is_named():
    params = {**PARAMS, "head/codebook": (64, 64)}
    with pytest.raises(ValueError, match=re.escape(r"('^head/codebook$', 'largest') to config.mesh.rules")):
        specs(params=params)
    assert specs(((r"^head/codebook$", "largest"),), params)["head/codebook"] == P("fsdp")


def test_the_defaults_exclude_each_other():
    for name in ("a/kernel", "positions", "grid_scale", "out/logit_bias", "query", "mask_token"):
        assert sum(bool(re.search(pattern, name)) for pattern, _ in partition.DEFAULT_RULES) == 1


@pytest.mark.parametrize("module", [mae, clip, cardiac_clip])
def test_the_defaults_cover_and_split_every_objective(module):
    spec = base.DataSpec(
        shape=(16, 32, 32),
        spacing=(1.0, 1.0, 1.0),
        findings=cardiac_clip.FINDINGS,
        vocabulary_size=30522,
    )
    config = module.default_config()
    config.vision.update(depth=1, position="learned")
    if "text" in config:
        config.text.depth = 1
    if "logit_bias" in config:
        config.loss = "sigmoid"
    built = nnx.eval_shape(lambda: objectives.create(config, spec, rngs=nnx.Rngs(0)))
    params = flatten(split(built)[1])
    found = partition.param_shardings(params, mesh(1, 8))
    whole = sum(params[name].size for name in params if found[name].spec == P())
    # What stays on every device is under a percent: biases, norms, tokens.
    assert whole < 0.01 * sum(leaf.size for leaf in params.values())


def test_optimizer_state_and_average_follow_their_parameters():
    params = {
        "vision": {"kernel": jnp.ones((64, 96)), "bias": jnp.ones(96)},
        # Its end is the name of another parameter; the longer one is meant.
        "text": {"vision": {"kernel": jnp.ones((96, 64))}},
        "kernel": jnp.ones((64, 96)),
    }
    config = make_config(optimizer__accumulate=2, optimizer__frozen=("^kernel$",)).optimizer
    config.clip_norm, config.multipliers = 1.0, ((r"^text", 0.5),)
    optimizer = make_optimizer(config, params, 10)
    state = initial_state(params, {"seen": jnp.zeros(4)}, optimizer, ema=True)
    found = partition.state_shardings(jax.eval_shape(lambda: state), mesh(), ((r"^kernel", ("fsdp",)),))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    expected = {"vision/kernel": P(None, "fsdp"), "vision/bias": P(), "text/vision/kernel": P("fsdp")}
    copies = 0
    for path, sharding in jax.tree_util.tree_leaves_with_path(found["optimizer"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for parameter, spec in expected.items():
            if name.endswith(parameter) and not (name.endswith("text/" + parameter)):
                assert sharding.spec == spec, name
                copies += spec != P()
    assert copies == 2 * 3  # two moments and the accumulated gradient
    assert {name: sharding.spec for name, sharding in flatten(found["ema"]).items()} == expected
    assert found["params"]["kernel"].spec == P("fsdp")
    assert found["variables"]["seen"].spec == found["step"].spec == P()


def test_an_array_of_the_optimizer_that_belongs_to_nothing_is_refused():
    state = {"params": {"kernel": jnp.ones((64, 96))}, "optimizer": ({"kernel": jnp.ones(64)},)}
    state |= {"variables": {}, "ema": {}, "step": jnp.zeros((), jnp.int32)}
    with pytest.raises(ValueError, match=re.escape("state 0/kernel (64,) is neither a scalar")):
        partition.state_shardings(state, mesh())
