"""Packing several examples into a row: assigning examples to rows, and making the arrays for the encoder.

Shapes: R rows of a batch, L length of a row, K maximum number of examples in a row, n tokens of an example.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data import joining
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.parallel.batches import BatchShape, HostBatch

Rows = list[list[int]]  # the examples in each row of a batch
Output = dict[str, np.ndarray]  # outputs of the model by name, for a batch or an item
TOKEN_PREFIX = "token_"  # begins the names of outputs [R, L, ...]; all others are [R, K, ...]


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
                name: array[row, start:end] if name.startswith(TOKEN_PREFIX) else array[row, number]
                for name, array in outputs.items()
            }
    return by_item


def words_only(items: Sequence[Item], outputs: Sequence[Output], name: str) -> np.ndarray:
    """Returns an output of the tokens, [N, ...], for the first pieces of all N words of all items."""
    pairs = zip(items, outputs, strict=True)
    return np.concatenate([output[name][item.tokens["token_weights"] > 0] for item, output in pairs])
