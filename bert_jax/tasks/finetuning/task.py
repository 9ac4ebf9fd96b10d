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
from bert_jax.model.build import Params
from bert_jax.objectives.base import LossTerm
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.parallel.batches import BatchShape, HostBatch
from bert_jax.parallel.mesh import batch_sharding, batch_shards, mesh_of
from bert_jax.tasks.base import Initialization
from bert_jax.tasks.finetuning.options import resolved
from bert_jax.tasks.finetuning.packing import BatchPlan, Item, Rows, filled_rows, packed, unpacked
from bert_jax.train.phases import Phase
from bert_jax.train.step import make_eval_step
from bert_jax.train.writers.base import Row

PREFETCH = 16  # batches made ahead
PREDICTED_ROWS = 8  # of a batch of predict, on each device
Output = dict[str, np.ndarray]  # what the model says of one example
OfBatch = Callable[[Params, dict[str, jax.Array]], Any]


@dataclasses.dataclass(frozen=True)
class PackedTraining:
    """Training data (see tasks/base.py) in rows of several examples."""

    config: Any
    read_items: Callable[[], Sequence[Item]]
    pad_id: int
    describe_data: Callable[[], str]

    predicted_share = 0.0
    workers = 0
    prefetch = PREFETCH

    @cached_property
    def items(self) -> Sequence[Item]:
        return self.read_items()

    @property
    def summary(self) -> str:
        return self.describe_data()

    def validate(self) -> None:
        self.read_items()

    @cached_property
    def plan(self) -> BatchPlan:
        """Which examples are in which batch."""
        train, lengths = self.config.train, [item.length for item in self.items]
        return BatchPlan(lengths, train.batch_size, train.num_steps, train.seed, self.config.model.hidden_size)

    def phases(self, shards: int) -> list[Phase]:
        train = self.config.train
        return [Phase(0, train.num_steps, self.plan.shape(train.accumulation_steps * shards), train.accumulation_steps)]

    def batch(self, phase: Phase, rows: np.ndarray, step: int) -> HostBatch:
        of_batch = self.plan.rows(step, phase.shape)
        return packed(self.items, [of_batch[row] for row in rows], phase.shape, self.pad_id)

    def describe(self, step: int) -> str:
        epoch = step // self.plan.batches_per_epoch
        return f"epoch {epoch}: {listed([str(number) for number in sorted(self.plan.examples(step))])}"

    def meaning_of_batch_size(self, before: int, step: int) -> str:
        num_examples = len(self.items)
        now, then = (step / -(-num_examples // size) for size in (self.config.train.batch_size, before))
        return (
            f"step {step} begins after {now:.2f} epochs of {num_examples:,} examples instead of {then:.2f}, and epochs are "
            "split into other batches, so some examples are repeated and some skipped"
        )


@dataclasses.dataclass(frozen=True)
class PackedEvaluator:
    """Held-out data (see tasks/base.py) in rows of several examples."""

    read_items: Callable[[], Sequence[Item]]
    pad_id: int
    row_length: int
    score_items: Callable[[list[Output], bool], tuple[Row, dict[str, Any]]]

    @cached_property
    def items(self) -> Sequence[Item]:
        return self.read_items()

    def validate(self) -> None:
        self.read_items()

    @cached_property
    def rows(self) -> Rows:
        lengths = np.array([item.length for item in self.items])
        return filled_rows(lengths, self.row_length, most_in_row(self.row_length))

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        shape = BatchShape(batch_size, self.row_length, most_in_row(self.row_length))
        for start in range(0, len(self.rows), batch_size):
            there = [self.rows[start + row] if start + row < len(self.rows) else [] for row in rows]
            yield packed(self.items, there, shape, self.pad_id)

    def scores(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        of_rows = {name: np.concatenate([batch[name] for batch in outputs]) for name in outputs[0]}
        of_items = unpacked(of_rows, self.items, self.rows)
        return self.score_items([of_items[number] for number in range(len(self.items))], tunes)


def most_in_row(row_length: int) -> int:
    """Returns the most examples of a row in evaluation and prediction: there are hardly any shorter than four tokens."""
    return max(1, row_length // 4)


@dataclasses.dataclass(frozen=True)
class FineTuning(abc.ABC):
    """The part of a task (see tasks/base.py, `Task`) that is the same for all labelled data.

    A task adds its head and loss, the examples, what the model's outputs are worth, and answers.
    """

    given: Any  # the config, in which what depends on the data may be left open; `config` has it all
    tokenizer: Tokenizer
    temperature: float  # of the run: what the logits are divided by for probabilities

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
        """Returns what `Evaluator.scores` does (see tasks/base.py), of the outputs for each of the held-out items."""

    @abc.abstractmethod
    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]: ...

    # -------------------------------------------------------------------------------------------------------- training

    @cached_property
    def config(self) -> Any:
        num_examples = 0 if self.given.train.num_steps else len(self.training_items)
        return resolved(self.given, num_examples, self.first_score)

    @cached_property
    def losses(self) -> Losses:
        return Losses(build_model(self.given.model, self.objectives), self.objectives)

    @property
    def initialization(self) -> Initialization:
        return Initialization(() if self.given.from_scratch else ("encoder",), self.given.reinit_layers)

    @cached_property
    def training(self) -> PackedTraining:
        pad_id = self.tokenizer.pad_id
        return PackedTraining(self.config, lambda: self.training_items, pad_id, lambda: self.summary)

    @cached_property
    def evaluator(self) -> PackedEvaluator:
        length = self.given.data.sequence_length
        return PackedEvaluator(lambda: self.held_out_items, self.tokenizer.pad_id, length, self.judged)

    # ------------------------------------------------------------------------------------------------------ prediction

    @property
    def answers(self) -> "FineTuning":
        return self

    @cached_property
    def _eval_step(self) -> Any:
        return jax.jit(make_eval_step(self.losses))

    def outputs_of(self, params: Params, items: Sequence[Item]) -> list[Output]:
        """What the model says of each item; the labels of the items mean nothing."""
        return self.over_rows(lambda params, batch: self._eval_step(params, {}, batch)[2], params, items)

    def over_rows(self, function: OfBatch, params: Params, items: Sequence[Item]) -> list[Output]:
        """What a function of batches [1, R, ...] gives for each item: of arrays [R, L, ...] (OF_TOKENS) or [R, K, ...].

        The rows of a batch are spread over the devices that the parameters lie on.
        """
        mesh, length = mesh_of(params), self.given.data.sequence_length
        rows = filled_rows(np.array([item.length for item in items]), length, most_in_row(length))
        num_rows = batch_shards(mesh) * (PREDICTED_ROWS if len(rows) > batch_shards(mesh) else 1)
        shape = BatchShape(num_rows, length, most_in_row(length))
        found: dict[int, Output] = {}
        for start in range(0, len(rows), num_rows):
            there = rows[start : start + num_rows]
            batch = packed(items, there + [[]] * (num_rows - len(there)), shape, self.tokenizer.pad_id)
            batch = {name: array[None] for name, array in batch.items()}
            outputs = function(params, jax.device_put(batch, batch_sharding(mesh)))
            found |= unpacked(jax.device_get(outputs), items, there)
        return [found[number] for number in range(len(items))]
