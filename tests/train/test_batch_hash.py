"""The hash of a batch: another one for any change, the same however the batch is split over devices."""

import zlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from bert_jax.train.batch_hash import batch_hash

MASK = (1 << 32) - 1


def mixed(x: int) -> int:
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ x >> shift) * multiplier) & MASK
    return x ^ x >> 16


def by_hand(batch: dict[str, np.ndarray]) -> int:
    total = 0
    for name, array in batch.items():
        values = array.view(np.uint32) if array.dtype == np.float32 else array.astype(np.uint32)
        start = zlib.crc32(name.encode())
        for size in array.shape:
            start = start * size & MASK
        for place, value in enumerate(values.reshape(-1).tolist()):
            total += mixed((mixed(value) + start + place) & MASK)
    return total & MASK


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30_000, (2, 8, 6)).astype(np.int32)
    return {"ids": ids, "weights": rng.random((2, 8, 3), np.float32), "flags": rng.random((2, 8)) < 0.5}


def test_the_hash_is_the_one_that_is_described(batch):
    assert int(jax.jit(batch_hash)(batch)) == by_hand(batch)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1}])
def test_the_hash_does_not_depend_on_the_devices(sizes, batch):
    config = ParallelConfig(**sizes)
    count = int(np.prod([*sizes.values()]))
    mesh = make_mesh(config, jax.devices()[:count])
    sharding = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    placed = {name: jax.device_put(array, sharding) for name, array in batch.items()}
    with jax.set_mesh(mesh):
        assert int(jax.jit(batch_hash)(placed)) == by_hand(batch)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_change_is_seen(data, batch):
    name = data.draw(st.sampled_from(sorted(batch)))
    changed = {other: array.copy() for other, array in batch.items()}
    places = st.integers(0, batch[name].size - 1)
    first, second = data.draw(places), data.draw(places)
    flat = changed[name].reshape(-1)
    if flat[first] != flat[second]:
        flat[[first, second]] = flat[[second, first]]
    else:
        flat[first] = 1 - flat[first]
    assert by_hand(changed) != by_hand(batch)
    assert int(batch_hash(changed)) == by_hand(changed)
