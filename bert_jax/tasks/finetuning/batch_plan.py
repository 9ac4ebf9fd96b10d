"""The examples of each batch of a fine-tuning, and the shape of the batches.

The examples of an epoch are dealt to batches with about equal numbers of tokens. Those of a batch fill rows whose length is
chosen to leave little padding. The result depends only on the lengths and the seed.
"""

from collections.abc import Sequence

import numpy as np

from bert_jax.parallel.batches import BatchShape
from bert_jax.tasks.common.packing import Rows, filled_rows

SAMPLED_BATCHES = 64  # batches by which the shape of all is chosen, before it is checked with the others
LENGTH_MULTIPLE = 8
LONGEST_ROW = 1024
# A token costs 24 D^2 operations of a layer's products, and about 6 D for each key of its row (4 D for products, the rest for
# softmax and dropout of the attention weights): each key adds 1 / (4 D).
KEYS_PER_WIDTH = 4


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Returns the fewest batches with each example once and with about equal numbers of examples and tokens.

    Examples are sorted by decreasing length, in random order for equal lengths, and dealt one to each batch in turn; the
    longest of a turn goes to the batch with the fewest tokens.
    """
    rng = np.random.default_rng([seed, epoch])
    num_batches = -(-len(lengths) // batch_size)
    order = rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    totals = np.zeros(num_batches, np.int64)
    batches = np.full((num_batches, batch_size), -1)
    for number, start in enumerate(range(0, len(order), num_batches)):
        deal = order[start : start + num_batches]
        lightest = np.lexsort((rng.random(num_batches), totals))[: len(deal)]
        batches[lightest, number] = deal
        totals[lightest] += lengths[deal]
    return [batch[batch >= 0] for batch in rng.permutation(batches)]


class BatchPlan:
    """The examples in each row of each batch of a run, a deterministic function of the arguments."""

    def __init__(self, lengths: Sequence[int], batch_size: int, num_steps: int, seed: int, hidden_size: int):
        """Initializes a plan of `num_steps` batches for examples of these lengths; hidden_size sets the cost of longer rows."""
        self.lengths = np.asarray(lengths)
        self._batch_size, self._num_steps, self._seed, self._hidden_size = batch_size, num_steps, seed, hidden_size
        self.batches_per_epoch = -(-len(self.lengths) // batch_size)
        self._shapes: dict[int, BatchShape] = {}
        self._epochs: dict[int, list[np.ndarray]] = {}

    def examples(self, step: int) -> np.ndarray:
        """Returns the examples of a batch, in any order."""
        epoch, number = divmod(step, self.batches_per_epoch)
        epochs = self._epochs  # threads ask for batches of this epoch and of the next
        if epoch not in epochs:
            latest = {other: epochs[other] for other in epochs if other == epoch - 1}
            epochs = self._epochs = latest | {epoch: epoch_batches(self.lengths, self._batch_size, self._seed, epoch)}
        return epochs[epoch][number]

    def rows(self, step: int, shape: BatchShape) -> Rows:
        """Returns the examples in each row of a batch; the last rows may be empty."""
        examples = self.examples(step)
        rows = [examples[row].tolist() for row in filled_rows(self.lengths[examples], shape.length)]
        return rows + [[]] * (shape.rows - len(rows))

    def shape(self, row_multiple: int) -> BatchShape:
        """Returns the cheapest shape for all batches; the number of rows is a multiple of `row_multiple`."""
        if row_multiple not in self._shapes:
            self._shapes[row_multiple] = self._choose_shape(row_multiple)
        return self._shapes[row_multiple]

    def _choose_shape(self, row_multiple: int) -> BatchShape:
        num_sampled = min(SAMPLED_BATCHES, self._num_steps, self.batches_per_epoch)
        sample = [self.lengths[self.examples(step)] for step in range(num_sampled)]
        num_rows, length = cheapest_shape(sample, int(self.lengths.max()), row_multiple, self._hidden_size)
        while True:
            batches = [filled_rows(self.lengths[self.examples(step)], length) for step in range(self._num_steps)]
            if max(map(len, batches)) <= num_rows:
                return BatchShape(num_rows, length, max(len(row) for rows in batches for row in rows))
            length += LENGTH_MULTIPLE


def cheapest_shape(batches: list[np.ndarray], longest: int, row_multiple: int, hidden_size: int) -> tuple[int, int]:
    """Returns the cheapest number and length of rows that hold each batch (lengths of its examples) and the longest example."""
    shortest_row = rounded_up(longest, LENGTH_MULTIPLE)
    costs = {}
    for length in range(shortest_row, max(LONGEST_ROW, shortest_row) + 1, LENGTH_MULTIPLE):
        rows = rounded_up(max(len(filled_rows(sizes, length)) for sizes in batches), row_multiple)
        costs[rows, length] = rows * length * (1 + length / (KEYS_PER_WIDTH * hidden_size))
        if rows == row_multiple:  # longer rows would only have more padding
            break
    return min(costs, key=lambda shape: costs[shape])


def rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
