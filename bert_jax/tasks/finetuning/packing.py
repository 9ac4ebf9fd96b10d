"""Several examples in a row: which share a batch, which share a row, and the arrays that the encoder takes.

An epoch deals its examples to batches of close to the same number of tokens, and a batch's examples fill rows whose length
was chosen so that little of them stays empty. All of that follows from the lengths and the seed.

Shapes: R rows of a batch, L length of a row, K examples in a row at most, n tokens of an example.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.parallel.batches import BatchShape, HostBatch

SAMPLED_BATCHES = 64  # that the shape of all is chosen by; then all are looked at
LENGTH_MULTIPLE = 8
LONGEST_ROW = 1024
# The work of a token in a layer is 24 D^2 operations of products and about 6 D more for each key of its row (4 D of
# products; softmax and dropout of the attention weights count for the rest): a key more costs 1 / (4 D) of it.
KEYS_PER_WIDTH = 4

Rows = list[list[int]]  # the examples in each row of a batch
OF_TOKENS = ("token_logits", "token_states")  # outputs [R, L, ...]; all others are [R, K, ...]


class Item(NamedTuple):
    """One example before it is put in a row."""

    tokens: dict[str, np.ndarray]  # arrays [n]: input_ids, token_type_ids, and labels of tokens
    values: dict[str, Any]  # labels of the whole: scalars, or arrays of one shape

    @property
    def length(self) -> int:
        return len(self.tokens["input_ids"])


def filled_rows(lengths: np.ndarray, length: int, most: int | None = None) -> Rows:
    """Puts examples into as few rows of a length as best-fit decreasing finds; at most `most` into one.

    Raises:
      ValueError: an example that is longer than a row.
    """
    if len(lengths) and lengths.max() > length:
        raise ValueError(f"an example of {lengths.max()} tokens does not fit rows of {length}")
    rows: Rows = []
    open_rows: list[tuple[int, int]] = []  # room left, row; sorted
    sizes = lengths.tolist()
    for example in np.argsort(-lengths, kind="stable").tolist():
        fitting = bisect_left(open_rows, (sizes[example], -1))
        if fitting == len(open_rows):
            rows.append([])
            open_rows.append((length, len(rows) - 1))
        room, row = open_rows.pop(fitting)
        rows[row].append(example)
        if most is None or len(rows[row]) < most:
            insort(open_rows, (room - sizes[example], row))
    return rows


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch: every example once, in as few batches as can be, of close to as many examples and tokens each.

    Examples are dealt from the longest to the shortest, as many as there are batches at a time, in random order within a
    length; the longest of a deal goes to the batch with the fewest tokens.
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
    """The batches of a run of `num_steps` steps: which examples, in which rows. The same for the same arguments."""

    def __init__(self, lengths: Sequence[int], batch_size: int, num_steps: int, seed: int, hidden_size: int):
        """Makes a plan.

        Args:
          lengths: tokens of each example.
          batch_size: examples of a batch.
          num_steps: batches of the run.
          seed: of the order.
          hidden_size: D of the encoder; with it, how much more work a longer row is.
        """
        self.lengths = np.asarray(lengths)
        self._batch_size, self._num_steps, self._seed, self._hidden_size = batch_size, num_steps, seed, hidden_size
        self.batches_per_epoch = -(-len(self.lengths) // batch_size)
        self._shapes: dict[int, BatchShape] = {}
        self._epochs: dict[int, list[np.ndarray]] = {}

    def examples(self, step: int) -> np.ndarray:
        """The examples of a batch, in no order."""
        epoch, number = divmod(step, self.batches_per_epoch)
        epochs = self._epochs  # threads ask for batches of this epoch and of the next
        if epoch not in epochs:
            latest = {other: epochs[other] for other in epochs if other == epoch - 1}
            epochs = self._epochs = latest | {epoch: epoch_batches(self.lengths, self._batch_size, self._seed, epoch)}
        return epochs[epoch][number]

    def rows(self, step: int, shape: BatchShape) -> Rows:
        """The examples in each row of a batch of a shape; some of the last rows may be empty."""
        examples = self.examples(step)
        rows = filled_rows(self.lengths[examples], shape.length)
        rows = [[int(examples[at]) for at in row] for row in rows]
        return rows + [[]] * (shape.rows - len(rows))

    def shape(self, row_multiple: int) -> BatchShape:
        """The shape that all batches fit in and that costs the least work, of a multiple of rows (devices share them)."""
        if row_multiple not in self._shapes:
            self._shapes[row_multiple] = self._found_shape(row_multiple)
        return self._shapes[row_multiple]

    def _found_shape(self, row_multiple: int) -> BatchShape:
        num_sampled = min(SAMPLED_BATCHES, self._num_steps, self.batches_per_epoch)
        sample = [self.lengths[self.examples(step)] for step in range(num_sampled)]
        rows, length = cheapest(sample, int(self.lengths.max()), row_multiple, self._hidden_size)
        while True:
            filled = [filled_rows(self.lengths[self.examples(step)], length) for step in range(self._num_steps)]
            if max(map(len, filled)) <= rows:
                return BatchShape(rows, length, max(len(row) for of_batch in filled for row in of_batch))
            length += LENGTH_MULTIPLE


def cheapest(batches: list[np.ndarray], longest: int, row_multiple: int, hidden_size: int) -> tuple[int, int]:
    """Number and length of rows that hold each of the batches (lengths of examples) with the least work.

    `longest` is the longest example of all, which may be in none of them.
    """
    shortest_row = rounded_up(longest, LENGTH_MULTIPLE)
    costs = {}
    for length in range(shortest_row, max(LONGEST_ROW, shortest_row) + 1, LENGTH_MULTIPLE):
        rows = rounded_up(max(len(filled_rows(sizes, length)) for sizes in batches), row_multiple)
        costs[rows, length] = rows * length * (1 + length / (KEYS_PER_WIDTH * hidden_size))
        if rows == row_multiple:  # longer rows would only be emptier
            break
    return min(costs, key=lambda shape: costs[shape])


def rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


# ----------------------------------------------------------------------------------------------------------------------
# Arrays, and back
# ----------------------------------------------------------------------------------------------------------------------


def packed(items: Sequence[Item], rows: Rows, shape: BatchShape, pad_id: int) -> HostBatch:
    """Returns the arrays of some rows, which name items by their indices.

    Returns:
      {input_ids, token_type_ids, attention_mask (0: padding), segment_ids (the number of the token's example in its row,
      from 1; 0: padding), position_ids and other arrays of tokens [R, L]; starts, example_weights (0 where there is no
      example) and the items' values [R, K, ...]}.
    """
    some = items[next(row[0] for row in rows if row)] if any(rows) else items[0]
    tokens = {name: np.zeros((len(rows), shape.length), array.dtype) for name, array in some.tokens.items()}
    tokens["input_ids"][:] = pad_id
    segment_ids, position_ids = (np.zeros((len(rows), shape.length), np.int32) for _ in range(2))
    values = {
        name: np.zeros((len(rows), shape.most, *np.shape(value)), np.asarray(value).dtype)
        for name, value in (some.values | {"starts": np.int32(0), "example_weights": np.float32(0)}).items()
    }
    for row, examples in enumerate(rows):
        end = 0
        for number, example in enumerate(examples):
            item = items[example]
            start, end = end, end + item.length
            for name, array in item.tokens.items():
                tokens[name][row, start:end] = array
            segment_ids[row, start:end] = number + 1
            position_ids[row, start:end] = np.arange(item.length)
            for name, value in item.values.items():
                values[name][row, number] = value
            values["starts"][row, number] = start
            values["example_weights"][row, number] = 1
    attention_mask = (segment_ids > 0).astype(np.int32)
    rows_of_several = {"attention_mask": attention_mask, "segment_ids": segment_ids, "position_ids": position_ids}
    return tokens | rows_of_several | values


def unpacked(outputs: dict[str, np.ndarray], items: Sequence[Item], rows: Rows) -> dict[int, dict[str, np.ndarray]]:
    """What was computed for each example of a batch: of outputs [R, L, ...] its tokens' part, of those [R, K, ...] its own."""
    found = {}
    for row, examples in enumerate(rows):
        end = 0
        for number, example in enumerate(examples):
            start, end = end, end + items[example].length
            found[example] = {
                name: array[row, start:end] if name in OF_TOKENS else array[row, number]
                for name, array in outputs.items()
            }
    return found
