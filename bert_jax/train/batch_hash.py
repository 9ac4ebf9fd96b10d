"""A hash of each batch among the metrics, to see that two runs read the same."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

BATCH_HASH = "batch_hash"


def with_batch_hash(step: Any) -> Any:
    """Returns a step whose metrics also have `batch_hash`, an integer of 32 bits."""

    def hashed_step(state: Any, frozen: Any, batch: dict[str, jax.Array]):
        new_state, metrics = step(state, frozen, batch)
        return new_state, metrics | {BATCH_HASH: batch_hash(batch)}

    return hashed_step


def batch_hash(batch: dict[str, jax.Array]) -> jax.Array:
    """Returns a hash of all arrays of a batch, uint32: a sum, so it does not depend on how they are split over devices.

    Each value is mixed with its place and the name of its array by the multipliers of MurmurHash3 (Appleby 2011, finalizer).
    """
    total = jnp.uint32(0)
    for name, array in batch.items():
        is_float = jnp.issubdtype(array.dtype, jnp.floating)
        values = jax.lax.bitcast_convert_type(array.astype(jnp.float32), jnp.uint32) if is_float else array
        places = jnp.uint32(zlib.crc32(name.encode()))
        for axis, size in enumerate(array.shape):
            places = places * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        mixed = _mixed(_mixed(values.astype(jnp.uint32)) + places)
        total += mixed.sum(dtype=jnp.uint32)
    return total


def _mixed(x: jax.Array) -> jax.Array:
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(multiplier)
    return x ^ (x >> 16)
