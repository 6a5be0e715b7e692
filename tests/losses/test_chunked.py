"""Pair losses some rows at a time: the same numbers, memory linear in the batch, one device or more."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medclip_jax.losses import chunked, contrastive
from tests.losses.comparing import assert_equal


def sample(batch, width=6):
    draw = np.random.default_rng(batch)
    return {
        "volume": jnp.asarray(draw.normal(size=(batch, width)), jnp.float32),
        "text": jnp.asarray(draw.normal(size=(batch, width)), jnp.float32),
        "scale": jnp.float32(7.0),
        "findings": jnp.asarray(draw.choice([-1, 1], size=(batch, 5)), jnp.int8),
        "groups": jnp.asarray(draw.integers(0, batch // 2, (batch, 1)), jnp.int32).repeat(2, axis=1),
        "valid": jnp.arange(batch) % 5 != 3,
    }


def pair_loss(same_group, masked, sigmoid):
    def loss(data, chunk_rows):
        options = {"chunk_rows": chunk_rows, "valid": data["valid"] if masked else None}
        if same_group:
            options |= {"groups": data["groups"], "same_group": same_group}
        args = data["volume"], data["text"], data["scale"]
        if sigmoid:
            return contrastive.sigmoid_pairs(*args, -3.0, **options)
        return contrastive.info_nce(*args, **options)

    return loss


def soft_loss(kind, text_targets, masked):
    def loss(data, chunk_rows):
        return contrastive.soft_target(
            data["volume"],
            data["text"],
            data["findings"],
            data["scale"],
            soft_target=kind,
            target_temperature=0.3,
            text_targets=text_targets,
            valid=data["valid"] if masked else None,
            chunk_rows=chunk_rows,
        )

    return loss


LOSSES = {
    "info_nce": pair_loss(None, False, False),
    "info_nce, shared reports": pair_loss("positive", True, False),
    "info_nce, shared reports left out": pair_loss("ignore", True, False),
    "sigmoid": pair_loss("positive", False, True),
    "sigmoid, shared reports left out": pair_loss("ignore", True, True),
    "softmax targets": soft_loss("softmax", "renormalized", True),
    "softmax targets transposed": soft_loss("softmax", "transposed", True),
    "clipped targets": soft_loss("clip", "renormalized", False),
    "clipped targets transposed": soft_loss("clip", "transposed", True),
    "one-hot targets": soft_loss("onehot", "transposed", False),
}
FEW = ("info_nce, shared reports", "sigmoid", "softmax targets transposed")


def graded(names, chunk_rows):
    """All losses and their gradients in one compiled program."""

    def run(data):
        trained = {name: data[name] for name in ("volume", "text", "scale")}
        return {
            name: jax.value_and_grad(lambda x, name=name: LOSSES[name](data | x, chunk_rows))(trained)
            for name in names
        }

    return jax.jit(run)


@pytest.mark.parametrize("chunk_rows", [4, 12])
def test_chunks_change_nothing(chunk_rows):
    """13 rows in chunks of 4 or 12 leave a chunk that is nearly all filling."""
    data = sample(13)
    assert_equal(graded(LOSSES, chunk_rows)(data), graded(LOSSES, 0)(data))


def shapes(batch):
    return jax.eval_shape(lambda: sample(batch, width=16))


def kept(name, batch, chunk_rows):
    """Bytes that the forward pass keeps for the backward pass."""

    def residuals(data):
        def loss(volume, text):
            return LOSSES[name](data | {"volume": volume, "text": text}, chunk_rows)

        return jax.tree.leaves(jax.vjp(loss, data["volume"], data["text"])[1])

    return sum(x.size * x.dtype.itemsize for x in jax.eval_shape(residuals, shapes(batch)))


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_kept_is_linear_in_the_batch(name):
    few, more, most = (kept(name, batch, 64) for batch in (512, 1024, 2048))
    assert few < more < 2.05 * few
    assert more < most < 2.05 * more
    assert most < kept(name, 2048, 0) / 20
    # The guard itself: full matrices grow with the square.
    assert kept(name, 1024, 0) > 3.5 * kept(name, 512, 0)


def temporary(name, batch, chunk_rows):
    def loss(volume, text, data):
        return LOSSES[name](data | {"volume": volume, "text": text}, chunk_rows)

    data = shapes(batch)
    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return step.lower(data["volume"], data["text"], data).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", FEW)
def test_the_compiled_program_s_memory_is_linear_in_the_batch(name):
    few, more, most = (temporary(name, batch, 64) for batch in (512, 1024, 2048))
    assert more < 2.2 * few
    assert most < 2.2 * more
    assert temporary(name, 2048, 0) > 5 * most


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("chunk_rows", [0, 3])
def test_eight_devices_equal_one(mesh, chunk_rows):
    """64 rows, 8 a device, in chunks of 3; the scale is on every device."""
    data = sample(64)
    expected = graded(FEW, 0)(data)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = {name: jax.device_put(x, rows if x.ndim else whole) for name, x in data.items()}
    with jax.set_mesh(mesh):
        program = graded(FEW, chunk_rows).lower(placed).compile()
        assert_equal(jax.device_get(program(placed)), expected)
    if chunk_rows:
        # In a loop over chunks, sums over the devices would be made once a chunk.
        bodies = re.findall(r"body=%?([\w.\-]+)", program.as_text())
        assert bodies
        for body in bodies:
            inside = program.as_text().split(f"%{body} (")[1].split("\n}")[0]
            assert not re.search(r"all-(reduce|gather)|reduce-scatter|collective-permute", inside)


def test_batch_that_no_mesh_divides(mesh):
    data = sample(13)
    with jax.set_mesh(mesh):
        assert_equal(graded(FEW, 4)(data), jax.device_get(graded(FEW, 0)(data)))


def test_when_chunks_start_by_themselves(mesh):
    assert chunked.automatic(4096) == 0
    assert chunked.automatic(8192) == 2048
    assert chunked.automatic(10**9) == 1
    with jax.set_mesh(mesh):
        assert chunked.automatic(8192) == 0  # 1024 rows on each of 8 devices
        assert chunked.automatic(65536) == 256


def test_rows_at_a_time_are_a_number():
    with pytest.raises(ValueError, match="chunk_rows=-1: give the rows at a time, or 0"):
        chunked.map_rows(lambda rows, columns: rows, jnp.ones(3), jnp.ones(3), -1)
