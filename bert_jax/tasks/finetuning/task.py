"""What tasks on labelled examples have in common: their batches, in rows of several examples, evaluation and prediction.

Shapes: R rows of a batch, L length of a row, K examples in a row at most.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import listed
from bert_jax.model.build import Model, Params
from bert_jax.objectives.base import Losses, LossTerm
from bert_jax.parallel.batches import BatchShape, HostBatch
from bert_jax.parallel.mesh import batch_sharding, batch_shards, mesh_of
from bert_jax.tasks.finetuning.options import resolved
from bert_jax.tasks.finetuning.packing import BatchPlan, Item, Rows, filled_rows, packed, unpacked
from bert_jax.train.step import make_eval_step
from bert_jax.train.writers import Row

PREFETCH = 16  # batches made ahead
PREDICTED_ROWS = 8  # of a batch of predict, on each device
Output = dict[str, np.ndarray]  # what the model says of one example
OfBatch = Callable[[Params, dict[str, jax.Array]], Any]


@dataclasses.dataclass(frozen=True)
class FineTuning(abc.ABC):
    """The part of a task (see tasks/base.py, `Task`) that is the same for all labelled data.

    A task adds its head and loss, the examples, what the model's outputs are worth, and answers.
    """

    given: Any  # the config, in which what depends on the data may be left open; `config` has it all
    tokenizer: Tokenizer
    temperature: float  # of the run: what the logits are divided by for probabilities

    predicted_share = 0.0

    # ------------------------------------------------------------------------------------------------ what a task adds

    @property
    def files(self) -> dict[str, Any]:
        return {}

    @property
    @abc.abstractmethod
    def summary(self) -> str: ...

    @property
    @abc.abstractmethod
    def input_fields(self) -> tuple[str, ...]: ...

    @property
    @abc.abstractmethod
    def objectives(self) -> Mapping[str, LossTerm]:
        """The loss, by the name of the head it trains."""

    @property
    @abc.abstractmethod
    def first_score(self) -> str:
        """The score that matters most."""

    @property
    @abc.abstractmethod
    def training_items(self) -> Sequence[Item]: ...

    @property
    @abc.abstractmethod
    def held_out_items(self) -> Sequence[Item]: ...

    @abc.abstractmethod
    def judged(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """As `results` (see tasks/base.py), of the outputs for each of the held-out items."""

    @abc.abstractmethod
    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]: ...

    # -------------------------------------------------------------------------------------------------------- training

    @cached_property
    def config(self) -> Any:
        num_examples = 0 if self.given.train.num_steps else len(self.training_items)
        return resolved(self.given, num_examples, self.first_score)

    @cached_property
    def losses(self) -> Losses:
        heads = {name: objective.head for name, objective in self.objectives.items()}
        return Losses(Model.build(self.given.model, heads), self.objectives)

    @property
    def inherited(self) -> tuple[str, ...]:
        return () if self.given.from_scratch else ("encoder",)

    @property
    def reinit_layers(self) -> int:
        return self.given.reinit_layers

    @cached_property
    def plan(self) -> BatchPlan:
        """Which examples are in which batch."""
        train, lengths = self.config.train, [item.length for item in self.training_items]
        return BatchPlan(lengths, train.batch_size, train.num_steps, train.seed, self.config.model.hidden_size)

    def batch_shape(self, row_multiple: int) -> BatchShape:
        return self.plan.shape(row_multiple)

    def training_batches(self, shape: BatchShape, rows: np.ndarray, first_step: int) -> Iterator[HostBatch]:
        import grain  # lazy import: it is slow, and only training needs it

        plan, pad_id, items = self.plan, self.tokenizer.pad_id, self.training_items

        def batch(step: int) -> HostBatch:
            of_batch = plan.rows(step, shape)
            return packed(items, [of_batch[row] for row in rows], shape, pad_id)

        steps = grain.MapDataset.range(first_step, self.config.train.num_steps).map(batch)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=PREFETCH)))

    def describe_batch(self, step: int) -> str:
        epoch = step // self.plan.batches_per_epoch
        return f"epoch {epoch}: {listed([str(number) for number in sorted(self.plan.examples(step))])}"

    def meaning_of_batch_size(self, before: int, step: int) -> str:
        num_examples = len(self.training_items)
        now, then = (step / -(-num_examples // size) for size in (self.config.train.batch_size, before))
        return (
            f"step {step} begins after {now:.2f} epochs of {num_examples:,} examples instead of {then:.2f}, and epochs are "
            "split into other batches, so some examples are repeated and some skipped"
        )

    # ------------------------------------------------------------------------------------------ evaluation, prediction

    @cached_property
    def _held_out_rows(self) -> Rows:
        lengths = np.array([item.length for item in self.held_out_items])
        return filled_rows(lengths, self._row_length, self._most_in_row)

    @property
    def _row_length(self) -> int:
        return self.given.data.sequence_length

    @property
    def _most_in_row(self) -> int:
        return max(1, self._row_length // 4)  # shorter examples there are hardly any

    def evaluation_batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        # Read now, and not at the first batch, so that what is wrong with them is found first.
        items, all_rows = self.held_out_items, self._held_out_rows
        shape = BatchShape(batch_size, self._row_length, self._most_in_row)

        def batch(start: int) -> HostBatch:
            there = [all_rows[start + row] if start + row < len(all_rows) else [] for row in rows]
            return packed(items, there, shape, self.tokenizer.pad_id)

        return (batch(start) for start in range(0, len(all_rows), batch_size))

    def results(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        of_rows = {name: np.concatenate([batch[name] for batch in outputs]) for name in outputs[0]}
        found = unpacked(of_rows, self.held_out_items, self._held_out_rows)
        of_items = [found[number] for number in range(len(self.held_out_items))]
        return self.judged(of_items, tunes)

    @cached_property
    def _eval_step(self) -> Any:
        return jax.jit(make_eval_step(self.losses))

    def outputs_of(self, params: Params, items: Sequence[Item]) -> list[Output]:
        """What the model says of each item; the labels of the items mean nothing."""
        return self.over_rows(lambda params, batch: self._eval_step(params, batch)[2], params, items)

    def over_rows(self, function: OfBatch, params: Params, items: Sequence[Item]) -> list[Output]:
        """What a function of batches [1, R, ...] gives for each item: of arrays [R, L, ...] (OF_TOKENS) or [R, K, ...].

        The rows of a batch are spread over the devices that the parameters lie on.
        """
        mesh = mesh_of(params)
        rows = filled_rows(np.array([item.length for item in items]), self._row_length, self._most_in_row)
        num_rows = batch_shards(mesh) * (PREDICTED_ROWS if len(rows) > batch_shards(mesh) else 1)
        shape = BatchShape(num_rows, self._row_length, self._most_in_row)
        found: dict[int, Output] = {}
        for start in range(0, len(rows), num_rows):
            there = rows[start : start + num_rows]
            batch = packed(items, there + [[]] * (num_rows - len(there)), shape, self.tokenizer.pad_id)
            batch = {name: array[None] for name, array in batch.items()}
            outputs = function(params, jax.device_put(batch, batch_sharding(mesh)))
            found |= unpacked(jax.device_get(outputs), items, there)
        return [found[number] for number in range(len(items))]
