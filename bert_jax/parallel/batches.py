"""From arrays on the hosts to global `jax.Array`s: each process makes just the rows that its devices hold.

Shapes: A microbatches of a step (accumulation), B sequences of a microbatch.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from bert_jax.errors import UserError

HostBatch = dict[str, np.ndarray]


class BatchShape(NamedTuple):
    """Shape shared by all batches of a phase."""

    rows: int
    length: int  # of a row, in tokens
    most: int = 1  # examples in a row


def check_batch_size(batch_size: int, accumulation_steps: int, shards: int, section: str = "train") -> None:
    """Raises UserError where a batch does not divide into microbatches, or those over the devices."""
    if batch_size < 1 or accumulation_steps < 1 or batch_size % (accumulation_steps * shards):
        divisor = accumulation_steps * shards
        raise UserError(
            f"{section}.batch_size={batch_size} does not divide into {accumulation_steps} microbatches over {shards} devices "
            f"({section}.accumulation_steps x parallel.data x parallel.fsdp); make it a multiple of {divisor}"
        )


def local_rows(batch_size: int, accumulation_steps: int, sharding: NamedSharding) -> np.ndarray:
    """Returns the sorted numbers of the rows of a global batch that this process's devices hold."""
    rows = np.arange(batch_size).reshape(accumulation_steps, -1)
    indices = sharding.addressable_devices_indices_map(rows.shape).values()
    return np.unique(np.concatenate([rows[index].ravel() for index in indices if index is not None]))


def to_devices(local: HostBatch, rows: np.ndarray, batch_size: int, accumulation_steps: int, sharding: NamedSharding):
    """Builds global arrays [A, B, ...] from this process's rows.

    Args:
      local: arrays [len(rows), ...], in the order of `rows`.
      rows: the result of `local_rows`.
      batch_size: A * B.
      accumulation_steps: A.
      sharding: of the leading two axes.

    Returns:
      {name: jax.Array [A, B, ...]}.
    """
    all_rows = np.arange(batch_size).reshape(accumulation_steps, -1)

    def to_global(array: np.ndarray) -> jax.Array:
        def part(index) -> np.ndarray:
            wanted = all_rows[index[:2]]
            return array[np.searchsorted(rows, wanted)]

        return jax.make_array_from_callback((*all_rows.shape, *array.shape[1:]), sharding, part)

    with jax.transfer_guard_host_to_device("allow"):  # the one intended transfer, even where the guard disallows them
        return {name: to_global(array) for name, array in local.items()}
