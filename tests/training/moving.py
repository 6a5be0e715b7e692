"""Restores what another start saved, on devices and processes of its own, and saves it again one step on.

``python moving.py WORKDIR DEVICES FSDP EXPECTED [INDEX COUNT PORT]``: EXPECTED is the step to be
found, 0 where there is nothing yet.
"""

import logging
import sys

import jax

jax.config.update("jax_platforms", "cpu")

# ruff: noqa: E402  Platform and processes come before anything can touch a device.
if __name__ == "__main__":
    workdir, (devices, fsdp, expected) = sys.argv[1], map(int, sys.argv[2:5])
    jax.config.update("jax_num_cpu_devices", devices)
    if len(sys.argv) > 5:
        index, count, port = map(int, sys.argv[5:])
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medclip_jax.training import mesh as meshes
from medclip_jax.training.checkpoints import Checkpoints
from medclip_jax.training.partition import state_shardings


def values(step: int) -> dict:
    """A state whose every number tells its step."""
    kernel = jnp.arange(64.0 * 128).reshape(64, 128) + step
    return {
        "params": {"vision": {"kernel": kernel, "bias": jnp.full(7, 2.0 * step)}},
        "variables": {"seen": jnp.asarray(3.0 * step)},
        "optimizer": ({"mu": {"vision": {"kernel": -kernel}}, "count": jnp.asarray(step, jnp.int32)}, ()),
        "ema": {"vision": {"kernel": kernel / 2}},
        "step": jnp.asarray(step, jnp.int32),
    }


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    mesh = meshes.make_mesh(ConfigDict({"data": -1, "fsdp": fsdp}))
    abstract = jax.eval_shape(lambda: values(0))
    shardings = state_shardings(abstract, mesh)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    with Checkpoints(workdir) as checkpoints:
        if expected:
            state, run = checkpoints.restore(target)
            assert run["note"] == expected, run
            for found, wanted, sharding in zip(
                *map(jax.tree.leaves, (state, values(expected), shardings)), strict=True
            ):
                assert found.sharding == sharding, (found.sharding, sharding)
                for shard in found.addressable_shards:
                    np.testing.assert_array_equal(shard.data, np.asarray(wanted)[shard.index])
            parts = state["params"]["vision"]["kernel"].addressable_shards[0].data.shape
            assert np.prod(parts) == 64 * 128 // fsdp
        checkpoints.save(meshes.put_state(values(expected + 1), shardings), {"note": expected + 1})
    print("moved", expected, "of", checkpoints.steps())


if __name__ == "__main__":
    main()
