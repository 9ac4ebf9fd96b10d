"""Packing several examples into a row: assigning examples to batches and rows, and making the arrays for the encoder.

The examples of an epoch are dealt to batches with about equal numbers of tokens. Those of a batch fill rows whose length is
chosen to leave little padding. The result depends only on the lengths and the seed.

Shapes: R rows of a batch, L length of a row, K maximum number of examples in a row, n tokens of an example.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data import joining
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.parallel.batches import BatchShape, HostBatch

SAMPLED_BATCHES = 64  # batches by which the shape of all is chosen, before it is checked with the others
LENGTH_MULTIPLE = 8
LONGEST_ROW = 1024
# A token costs 24 D^2 operations of a layer's products, and about 6 D for each key of its row (4 D for products, the rest for
# softmax and dropout of the attention weights): each key adds 1 / (4 D).
KEYS_PER_WIDTH = 4

Rows = list[list[int]]  # the examples in each row of a batch
Output = dict[str, np.ndarray]  # outputs of the model by name, for a batch or an item
TOKEN_OUTPUTS = ("token_logits", "token_states")  # outputs [R, L, ...]; all others are [R, K, ...]


class Item(NamedTuple):
    """An example before packing."""

    tokens: dict[str, np.ndarray]  # arrays [n]: input_ids, token_type_ids, and labels of tokens
    values: dict[str, Any]  # labels of the example: scalars, or arrays of one shape

    @property
    def length(self) -> int:
        return len(self.tokens["input_ids"])


def joined(tokenizer: Tokenizer, *segments: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the tokens of an item with one or two segments: input_ids and token_type_ids [n]."""
    size = tokenizer.num_special_tokens(len(segments)) + sum(map(len, segments))
    example = joining.join(tokenizer, size, *segments)
    return {name: example[name] for name in ("input_ids", "token_type_ids")}


def filled_rows(lengths: np.ndarray, length: int, most: int | None = None) -> Rows:
    """Packs examples into rows of a length by best-fit decreasing, at most `most` into a row.

    Raises:
      ValueError: an example is longer than a row.
    """
    if len(lengths) and lengths.max() > length:
        raise ValueError(f"an example of {lengths.max()} tokens does not fit rows of {length}")
    rows: Rows = []
    open_rows: list[tuple[int, int]] = []  # (space left, row), sorted
    sizes = lengths.tolist()
    for example in np.argsort(-lengths, kind="stable").tolist():
        fitting = bisect_left(open_rows, (sizes[example], -1))
        if fitting == len(open_rows):
            rows.append([])
            open_rows.append((length, len(rows) - 1))
        space, row = open_rows.pop(fitting)
        rows[row].append(example)
        if most is None or len(rows[row]) < most:
            insort(open_rows, (space - sizes[example], row))
    return rows


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


def packed(items: Sequence[Item], rows: Rows, shape: BatchShape, pad_id: int) -> HostBatch:
    """Returns the batch (see docs/glossary.md) of rows of items, which are given as indices.

    Arrays of tokens, among them segment_ids and position_ids, are [R, L]. The items' values, example_weights and starts, the
    positions of their first tokens, are [R, K, ...].
    """
    tokens = {name: np.zeros((len(rows), shape.length), array.dtype) for name, array in items[0].tokens.items()}
    tokens["input_ids"][:] = pad_id
    segment_ids, position_ids = (np.zeros((len(rows), shape.length), np.int32) for _ in range(2))
    values = {
        name: np.zeros((len(rows), shape.most, *np.shape(value)), np.asarray(value).dtype)
        for name, value in (items[0].values | {"starts": np.int32(0), "example_weights": np.float32(0)}).items()
    }
    for row, members in enumerate(rows):
        end = 0
        for number, item in enumerate(items[member] for member in members):
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
    layout = {"attention_mask": attention_mask, "segment_ids": segment_ids, "position_ids": position_ids}
    return tokens | layout | values


def unpacked(outputs: Output, items: Sequence[Item], rows: Rows) -> list[Output]:
    """Returns the outputs of each item, from rows that hold all items: its part of [R, L, ...] or its entry of [R, K, ...]."""
    by_item: list[Output] = [{} for _ in items]
    for row, members in enumerate(rows):
        end = 0
        for number, member in enumerate(members):
            start, end = end, end + items[member].length
            by_item[member] = {
                name: array[row, start:end] if name in TOKEN_OUTPUTS else array[row, number]
                for name, array in outputs.items()
            }
    return by_item


def words_only(items: Sequence[Item], outputs: Sequence[Output], name: str) -> np.ndarray:
    """Returns an output of the tokens, [N, ...], for the first pieces of all N words of all items."""
    pairs = zip(items, outputs, strict=True)
    return np.concatenate([output[name][item.tokens["token_weights"] > 0] for item, output in pairs])
