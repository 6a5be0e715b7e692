"""Which device stands where, and what is said where counts do not fit."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from medclip_jax.training import mesh as meshes


def axes(data=-1, fsdp=1):
    return ConfigDict({"data": data, "fsdp": fsdp})


def fake(groups, size, *, by="slice_index", platform="gpu"):
    """Devices of several slices or hosts, numbered so that neighbors in number lie in different groups."""
    return [
        SimpleNamespace(
            id=index * groups + group,
            platform=platform,
            process_index=group if by == "process_index" else 0,
            **({"slice_index": group} if by == "slice_index" else {}),
        )
        for index in range(size)
        for group in range(groups)
    ]


def of(grid, attribute):
    return np.array([[getattr(device, attribute) for device in row] for row in grid])


def test_all_devices_are_shared_out():
    assert meshes.make_mesh(axes()).shape == {"data": 8, "fsdp": 1}
    assert meshes.make_mesh(axes(fsdp=4)).shape == {"data": 2, "fsdp": 4}
    assert meshes.make_mesh(axes(data=1, fsdp=8)).shape == {"data": 1, "fsdp": 8}
    # Named, because the default of some versions of JAX would demand a sharding of every operation.
    assert set(meshes.make_mesh(axes(fsdp=2)).axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (-1, 3, "fsdp=3, but there are 8 cpu devices: set it to one of 1, 2, 4, 8"),
        (-1, 0, "set it to one of 1, 2, 4, 8"),
        (4, 16, "set it to one of 1, 2, 4, 8"),
        (8, 2, "data=8 beside fsdp=2, but there are 8 cpu devices: set it to at most 4, or to -1"),
        (0, 1, "data=0, but there are 8 cpu devices: set it to at most 8, or to -1"),
    ],
)
def test_axes_that_do_not_fit_say_what_fits(data, fsdp, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        meshes.make_mesh(axes(data, fsdp))


@pytest.mark.parametrize("by", ["slice_index", "process_index"])
@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_parameters_stay_inside_a_slice_or_host(by, fsdp):
    grid = meshes.arrange(fake(2, 4, by=by), fsdp)
    assert grid.shape == (8 // fsdp, fsdp)
    assert sorted(of(grid, "id").flat) == list(range(8))
    assert all(len(set(row)) == 1 for row in of(grid, by))
    # Whole groups follow each other along data.
    assert (np.diff(of(grid, by)[:, 0]) >= 0).all()


def test_parameters_that_fit_no_slice_span_whole_ones(caplog):
    grid = meshes.arrange(fake(4, 2), 4)
    assert [sorted(set(row)) for row in of(grid, "slice_index")] == [[0, 1], [2, 3]]
    assert "fsdp=2 would stay inside" in caplog.text


def test_slices_count_before_processes():
    # One process for each device, as SLURM starts them: the host is the slice.
    devices = fake(2, 4)
    for index, device in enumerate(devices):
        device.process_index = index
    assert all(len(set(row)) == 1 for row in of(meshes.arrange(devices, 4), "slice_index"))


def test_groups_that_cannot_be_shared_out_evenly_are_refused():
    with pytest.raises(ValueError, match="cut across slices or hosts of 3 devices: set it to one of 1, 3, 6"):
        meshes.arrange(fake(2, 3), 2)
    with pytest.raises(ValueError, match="with 1 and 2 devices each"):
        meshes.arrange(fake(2, 2)[:3], 1)


def test_several_processes_must_all_take_part():
    with pytest.raises(ValueError, match=r"4 of 8 devices of 2 processes.*config\.mesh\.data to -1"):
        meshes.make_mesh(axes(data=4), fake(2, 4, by="process_index"))


@pytest.mark.parametrize(
    ("batch", "microbatches", "message"),
    [
        (24, 2, "8 devices in 2 microbatches: set it to 16 or 32, or config.microbatches to 1"),
        (48, 4, "8 devices in 4 microbatches: set it to 32 or 64, or config.microbatches to 3"),
        (12, 3, "set it to 24, or the number of devices (config.mesh) to 4"),
        (8, 0, "config.microbatches=0 must be at least 1"),
    ],
)
def test_a_batch_that_cannot_be_cut_says_what_to_change(batch, microbatches, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        meshes.check_batch_size(batch, meshes.make_mesh(axes()), microbatches)


def test_batches_that_fit_pass():
    mesh = meshes.make_mesh(axes(fsdp=2))
    for batch, microbatches in ((8, 1), (16, 2), (64, 8)):
        meshes.check_batch_size(batch, mesh, microbatches)


def test_processes_are_counted_in_the_message():
    devices = np.array(fake(2, 4, by="process_index"), object).reshape(8, 1)
    mesh = SimpleNamespace(size=8, devices=devices, shape={"data": 8, "fsdp": 1})
    with pytest.raises(ValueError, match="8 devices of 2 processes"):
        meshes.check_batch_size(12, mesh)


def test_a_batch_is_spread_over_both_axes():
    mesh = meshes.make_mesh(axes(fsdp=2))
    rows = np.arange(16, dtype=np.int32)
    batch = meshes.put_batch({"sample": rows}, mesh)
    assert {shard.data.shape for shard in batch["sample"].addressable_shards} == {(2,)}
    np.testing.assert_array_equal(batch["sample"], rows)


def test_a_state_gets_buffers_of_its_own():
    mesh = meshes.make_mesh(axes(data=1))
    held = jax.device_put(np.ones(3, np.float32), mesh.devices.flat[0])
    placed = meshes.put_state({"w": held}, meshes.replicated(mesh))
    placed["w"].delete()
    np.testing.assert_array_equal(held, np.ones(3))
