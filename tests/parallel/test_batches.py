"""Rows of a batch go to the devices that hold them, and come back in order."""

import jax
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.parallel.batches import check_batch_size, local_rows, to_devices
from bert_jax.parallel.mesh import ParallelConfig, batch_sharding, make_mesh

MESHES = {1: (1, 1, 1), 2: (2, 1, 1), 3: (3, 1, 1), 4: (2, 2, 1), 6: (1, 3, 2), 8: (2, 2, 2)}


@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_round_trip(devices, accumulation):
    batch_size = 48
    sharding = batch_sharding(make_mesh(ParallelConfig(*MESHES[devices]), jax.devices()[:devices]))
    rows = local_rows(batch_size, accumulation, sharding)
    assert np.array_equal(rows, np.arange(batch_size)), "a single process holds all rows"
    local = {"input_ids": np.arange(batch_size * 3, dtype=np.int32).reshape(-1, 3), "weights": np.arange(48.0)}
    placed = to_devices(local, rows, batch_size, accumulation, sharding)
    for name, array in placed.items():
        per_step = batch_size // accumulation
        assert array.shape == (accumulation, per_step, *local[name].shape[1:])
        assert np.array_equal(np.asarray(array).reshape(local[name].shape), local[name]), f"{name} is in another order"
        data, fsdp, _ = MESHES[devices]
        shard = array.addressable_shards[0].data.shape
        assert shard[:2] == (accumulation, per_step // (data * fsdp)), "rows of a microbatch are not spread evenly"


class PartOfTheDevices:
    """A sharding of which this process holds some devices only."""

    def __init__(self, sharding, devices):
        self.sharding, self.devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        return {d: index for d, index in self.sharding.devices_indices_map(shape).items() if d in self.devices}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_hold_their_devices_rows(accumulation):
    sharding = batch_sharding(make_mesh(ParallelConfig(2, 2, 2)))
    parts = [
        local_rows(16, accumulation, PartOfTheDevices(sharding, jax.devices()[start : start + 2]))
        for start in range(0, 8, 2)
    ]
    assert sorted(np.concatenate(parts)) == list(range(16)), "the processes' rows are not the batch"
    assert parts[0].tolist() == ([0, 1, 2, 3] if accumulation == 1 else [0, 1, 8, 9])


@pytest.mark.parametrize("batch_size, accumulation, shards", [(8, 1, 3), (8, 3, 1), (8, 2, 8), (0, 1, 1), (8, 0, 1)])
def test_batches_that_do_not_divide(batch_size, accumulation, shards):
    with pytest.raises(UserError, match=rf"train.batch_size={batch_size} does not divide into {accumulation} micro"):
        check_batch_size(batch_size, accumulation, shards)
    check_batch_size(16, 2, 8)
