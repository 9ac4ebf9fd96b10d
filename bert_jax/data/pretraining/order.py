"""The order of the examples of a run: each once an epoch, in a random order that is computed, not stored.

Shapes: n examples, S blocks.
"""

import dataclasses
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from bert_jax import random_numbers
from bert_jax.errors import MOST_LISTED


class Order(NamedTuple):
    """Which example of a data set each number of a run is."""

    size: int  # examples in an epoch
    seed: int
    is_shuffled: bool

    def epochs_and_indices(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epochs and indices [n] of numbers [n]; within an epoch each index comes once, in random order."""
        epochs, positions = np.divmod(numbers, self.size)
        if not self.is_shuffled:
            return epochs, positions
        keys = random_numbers.fold_in(random_numbers.row_keys(self.seed, epochs), "order")
        return epochs, random_numbers.permuted(keys, positions, self.size)

    def describe(self, numbers: np.ndarray) -> str:
        """Names the first examples by epoch and index, and how many more there are: 'epoch 2: 17, 4 and 500 more'."""
        return described(numbers, *self.epochs_and_indices(np.asarray(numbers[:MOST_LISTED])))


@dataclasses.dataclass(frozen=True)
class OrderOfBlocks:
    """An order for examples that are made block by block: few blocks are needed at a time.

    In an epoch the blocks come in random order, some of them together; the examples of these come in random order.
    """

    sizes: np.ndarray  # [S], examples of each block
    together: int  # blocks whose examples are shuffled together
    seed: int
    is_shuffled: bool

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @property
    def size(self) -> int:
        """Examples in an epoch."""
        return int(self._firsts[-1])

    def epochs_and_indices(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epochs and indices of numbers [n]; within an epoch each index comes once, in random order."""
        epochs, positions = np.divmod(numbers, self.size)
        if not self.is_shuffled:
            return epochs, positions
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            blocks, firsts = self._blocks_of_epoch(epoch)
            rows = np.flatnonzero(epochs == epoch)
            of_epoch = positions[rows]
            groups = (np.searchsorted(firsts, of_epoch, side="right") - 1) // self.together
            for group in np.unique(groups).tolist():
                members = rows[groups == group]
                first, last = firsts[group * self.together], firsts[min((group + 1) * self.together, len(blocks))]
                keys = random_numbers.row_keys(self.seed, np.full(len(members), epoch), np.full(len(members), group))
                keys = random_numbers.fold_in(keys, "order in blocks")
                shuffled = first + random_numbers.permuted(keys, positions[members] - first, int(last - first))
                places = np.searchsorted(firsts, shuffled, side="right") - 1
                indices[members] = self._firsts[blocks[places]] + shuffled - firsts[places]
        return epochs, indices

    @cached_property
    def _blocks_of_epoch(self):
        return lru_cache(2)(self._shuffled_blocks)  # a batch has examples of at most two epochs, unless these are tiny

    def _shuffled_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the order of the blocks in an epoch [S], and the number of examples before each place in it [S + 1]."""
        keys = random_numbers.fold_in(random_numbers.row_keys(self.seed, np.array([epoch])), "order of blocks")
        blocks = np.argsort(random_numbers.bits(keys, np.arange(len(self.sizes))), kind="stable")
        return blocks, np.concatenate([[0], np.cumsum(self.sizes[blocks])])

    def describe(self, numbers: np.ndarray) -> str:
        """Names the first examples as `Order.describe`."""
        return described(numbers, *self.epochs_and_indices(np.asarray(numbers[:MOST_LISTED])))


def described(numbers: np.ndarray, epochs: np.ndarray, indices: np.ndarray) -> str:
    """Names the first of some examples, of which epochs and indices are given, and how many more there are."""
    parts = [f"epoch {epoch}: {', '.join(map(str, indices[epochs == epoch]))}" for epoch in np.unique(epochs)]
    return "; ".join(parts) + (f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else "")
