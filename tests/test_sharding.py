"""Activations stay split over the mesh, and cost nothing where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medclip_jax.models import blocks
from medclip_jax.models.bert import Bert, BertConfig
from medclip_jax.models.mae import MaskedDecoder
from medclip_jax.models.vit import VisionTransformer
from medclip_jax.sharding import batch_axes, batch_sharded, batch_shards

BATCH = PartitionSpec(("data", "fsdp"))


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def test_no_mesh_no_constraint():
    x = jnp.ones((8, 3))
    assert batch_sharded(x) is x
    assert (batch_axes(), batch_shards()) == ((), 1)
    assert "sharding_constraint" not in str(jax.make_jaxpr(batch_sharded)(x))


def test_pinned_in_jit_scan_and_remat(mesh):
    """Replicated input: only the constraint can split the result."""

    @jax.jit
    def run(x):
        body = jax.checkpoint(lambda carry, _: (batch_sharded(jnp.sin(carry)), None))
        return jax.lax.scan(body, x, None, length=2)[0]

    x = jnp.arange(24.0).reshape(8, 3)
    with jax.set_mesh(mesh):
        out = run(jax.device_put(x, NamedSharding(mesh, PartitionSpec())))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, BATCH), 2)
    np.testing.assert_allclose(out, jnp.sin(jnp.sin(x)), rtol=1e-6)


def test_mesh_set_while_tracing(mesh):
    @jax.jit
    def run(x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return batch_sharded(x + 1.0)

    out = run(jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, PartitionSpec())))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, BATCH), 2)


def test_left_alone_where_it_cannot_be_split(mesh):
    def by_hand(x):
        assert batch_axes() == ()
        assert batch_sharded(x) is x
        return x

    with jax.set_mesh(mesh):
        odd = jnp.ones((6, 3))
        assert batch_sharded(odd) is odd
        jax.jit(jax.shard_map(by_hand, in_specs=BATCH, out_specs=BATCH))(jnp.ones((8, 3)))


def autoencoder(options):
    rngs = nnx.Rngs(0)
    sizes = {"patch": (2, 2, 2), "channels": 1, "width": 12, "depth": 2, "heads": 2, "rngs": rngs}
    vit = VisionTransformer(shape=(4, 4, 4), **sizes, **options)
    decoder = MaskedDecoder(grid=vit.grid, encoder_width=12, **sizes, **options)
    keep = jnp.stack([jnp.roll(jnp.arange(8), i)[:3] for i in range(8)])
    restore = jnp.argsort(jnp.stack([jnp.roll(jnp.arange(8), i) for i in range(8)]), axis=1)
    volume = jax.random.normal(jax.random.key(0), (8, 4, 4, 4, 1))
    return nnx.Dict(vit=vit, decoder=decoder), lambda m, x: m.decoder(m.vit.encode(x, keep), restore), volume


def text(options):
    config = BertConfig(vocabulary_size=11, width=12, depth=2, heads=2, mlp_width=24, max_positions=8)
    tokens = jax.random.randint(jax.random.key(0), (8, 7), 0, 11).at[:, 0].set(1)
    return Bert(config, rngs=nnx.Rngs(0), **options), lambda m, x: m(x), tokens


@pytest.mark.parametrize(("build", "scan"), [(autoencoder, True), (text, False)])
def test_towers_on_a_mesh(mesh, build, scan):
    """Split parameters, split batch: outputs stay split, and value and gradient are those of one device."""
    module, forward, inputs = build({"remat": "attention", "scan": scan})
    graph, state = nnx.split(module)

    def loss(state, x):
        out = forward(nnx.merge(graph, state), x)
        return (out**2).mean(), out

    step = jax.value_and_grad(loss, has_aux=True)
    (value, _), gradient = jax.jit(step)(state, inputs)

    def place(x):
        axis = next((i for i, size in enumerate(x.shape) if size % 2 == 0), None)
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        split = jax.jit(step)(jax.tree.map(place, state), jax.device_put(inputs, NamedSharding(mesh, BATCH)))
    (same_value, out), same_gradient = split
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, BATCH), out.ndim)
    np.testing.assert_allclose(same_value, value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4),
        nnx.to_pure_dict(same_gradient),
        nnx.to_pure_dict(gradient),
    )


def test_every_block_pins_its_input_and_output(mesh):
    stack = blocks.stack(3, lambda: blocks.Block(8, 2, rngs=nnx.Rngs(0)))
    with jax.set_mesh(mesh):
        program = jax.make_jaxpr(lambda x: blocks.run(stack, x))(jnp.ones((8, 5, 8)))
    assert str(program).count("sharding_constraint") == 9  # input, attention and output of each
