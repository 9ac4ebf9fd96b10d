"""The order of the examples of a run: each once an epoch, in a random order that is computed, not stored.

Shapes: n examples.
"""

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
        epochs, indices = self.epochs_and_indices(np.asarray(numbers[:MOST_LISTED]))
        parts = [f"epoch {epoch}: {', '.join(map(str, indices[epochs == epoch]))}" for epoch in np.unique(epochs)]
        return "; ".join(parts) + (f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else "")
