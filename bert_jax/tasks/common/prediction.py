"""Prediction: inputs become items, the items share rows of the model, and what it computes for each becomes an answer.

Shapes: R rows of a batch, L length of a row, K maximum number of items in a row.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.build import Params
from bert_jax.parallel.batches import BatchShape
from bert_jax.parallel.mesh import batch_sharding, batch_shards, mesh_of
from bert_jax.tasks.common.packing import Item, Output, Rows, filled_rows, packed, unpacked

PREDICTED_ROWS = 8  # rows of a batch, on each device
Answer = dict[str, Any]  # JSON values by name


class InputError(UserError):
    """An invalid input of `Prediction.prepare`.

    Attributes:
      number: its place among the inputs, from 0.
      field: what of it is invalid, such as 'text'.
    """

    def __init__(self, message: str, number: int, field: str):
        super().__init__(message)
        self.number, self.field = number, field


class Prepared(NamedTuple):
    """Inputs that were tokenized."""

    items: list[Item]
    postprocess: Callable[[list[Output]], list[Answer]]  # the answer to each input, from the outputs for each item


class Prediction(abc.ABC):
    """Base of what predicts. Inputs are prepared and computed, maybe in rows shared with others, and outputs postprocessed."""

    tokenizer: Tokenizer

    @property
    @abc.abstractmethod
    def row_length(self) -> int:
        """Number of tokens of a row, which no item exceeds."""

    @abc.abstractmethod
    def prepare(self, inputs: list[dict[str, Any]]) -> Prepared:
        """Tokenizes inputs. Raises InputError for an invalid one."""

    @abc.abstractmethod
    def compute(self, params: Params, batch: Any) -> Any:
        """Applies the model to a batch of rows [1, R, ...] (see packing.py, `packed`).

        Returns:
          Arrays on the devices by name: [R, L, ...] if it begins with 'token_', otherwise [R, K, ...].
        """

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[Answer]:
        """Returns an answer for each input. Raises UserError for an invalid one."""
        prepared = self.prepare(inputs)
        return prepared.postprocess(self.run(self.compute, params, prepared.items))

    def batch_shape(self, num_rows: int) -> BatchShape:
        """Returns the shape of a batch of so many rows."""
        return BatchShape(num_rows, self.row_length, most_items(self.row_length))

    def rows_of(self, items: Sequence[Item]) -> Rows:
        """Packs items into rows."""
        shape = self.batch_shape(1)
        return filled_rows(np.array([item.length for item in items]), shape.length, shape.most)

    def run(self, function: Callable[[Params, Any], Any], params: Params, items: Sequence[Item]) -> list[Output]:
        """Runs a function such as `compute` on all items and returns its outputs for each item.

        Labels of the items are ignored. Rows of a batch are spread over the devices of the parameters.
        """
        mesh, rows = mesh_of(params), self.rows_of(items)
        num_rows = batch_shards(mesh) * (PREDICTED_ROWS if len(rows) > batch_shards(mesh) else 1)
        outputs = []
        for start in range(0, len(rows), num_rows):
            part = rows[start : start + num_rows]
            outputs.append(run_batch(function, params, items, part, self.batch_shape(num_rows), self.tokenizer.pad_id))
        return unpacked(stacked(outputs), items, rows)


def run_batch(
    function: Callable[[Params, Any], Any],
    params: Params,
    items: Sequence[Item],
    rows: Rows,
    shape: BatchShape,
    pad_id: int,
) -> Output:
    """Runs a function such as `Prediction.compute` on a batch with these rows of items and, up to the shape, empty ones.

    Returns:
      Arrays [R, ...] by name, on the host.
    """
    padded = rows + [[]] * (shape.rows - len(rows))
    batch = {name: array[None] for name, array in packed(items, padded, shape, pad_id).items()}
    return jax.device_get(function(params, jax.device_put(batch, batch_sharding(mesh_of(params)))))


def most_items(length: int) -> int:
    """Returns how many items a row of a length holds at most: hardly any has fewer than four tokens."""
    return max(1, length // 4)


def stacked(outputs: Sequence[Output]) -> Output:
    """Concatenates the outputs of batches."""
    return {name: np.concatenate([batch[name] for batch in outputs]) for name in outputs[0]}
