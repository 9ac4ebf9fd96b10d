"""Parts shared by the tasks on labelled examples: batches with several examples in a row, evaluation, prediction.

Shapes: R rows of a batch, L length of a row, K maximum number of examples in a row.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import jax
import numpy as np

from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import listed
from bert_jax.model.build import Params
from bert_jax.objectives.base import DeviceObjective
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.parallel.batches import HostBatch
from bert_jax.tasks.base import Evaluator, Initialization, Task
from bert_jax.tasks.common.packing import Item, Output, Rows, packed, unpacked
from bert_jax.tasks.common.prediction import Prediction, stacked
from bert_jax.tasks.common.training import Phase
from bert_jax.tasks.finetuning.batch_plan import BatchPlan
from bert_jax.train.step import make_eval_step
from bert_jax.train.writers.base import Row

TRAIN, HELD_OUT = "train", "validation"  # the splits


@dataclasses.dataclass(frozen=True)
class PackedTraining:
    """Training data (see tasks/common/training.py) with several examples in a row."""

    task: "FineTuning"

    workers = 0
    prefetch = 16

    @property
    def summary(self) -> str:
        return self.task.summary

    def shares(self, step: int) -> tuple[float, float]:
        return 0.0, 0.0

    def validate(self, shards: int) -> None:
        self.phases(shards)

    @cached_property
    def plan(self) -> BatchPlan:
        """The examples of each batch."""
        config, lengths = self.task.config, [item.length for item in self.task.training_items]
        train = config.train
        return BatchPlan(lengths, train.batch_size, train.num_steps, train.seed, config.model.hidden_size)

    def phases(self, shards: int) -> list[Phase]:
        train = self.task.config.train
        return [
            Phase(0, 0, train.num_steps, self.plan.shape(train.accumulation_steps * shards), train.accumulation_steps)
        ]

    def batch(self, phase: Phase, rows: np.ndarray, step: int) -> HostBatch:
        all_rows = self.plan.rows(step, phase.shape)
        return packed(
            self.task.training_items, [all_rows[row] for row in rows], phase.shape, self.task.tokenizer.pad_id
        )

    def describe(self, step: int) -> str:
        epoch = step // self.plan.batches_per_epoch
        return f"epoch {epoch}: {listed([str(number) for number in sorted(self.plan.examples(step))])}"

    def effect_of_batch_size(self, before: int, step: int) -> str:
        num_examples = len(self.task.training_items)
        now, then = (step / -(-num_examples // size) for size in (self.task.config.train.batch_size, before))
        return (
            f"step {step} begins after {now:.2f} epochs of {num_examples:,} examples instead of {then:.2f}, and epochs are "
            "split into other batches, so some examples are repeated and some skipped"
        )


@dataclasses.dataclass(frozen=True)
class PackedEvaluator:
    """Evaluator (see tasks/base.py) on held-out data with several examples in a row."""

    task: "FineTuning"
    others: ClassVar[Mapping[str, Evaluator]] = {}

    def validate(self) -> None:
        _ = self.task.held_out_items

    @cached_property
    def rows(self) -> Rows:
        return self.task.rows_of(self.task.held_out_items)

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        for start in range(0, len(self.rows), batch_size):
            part = [self.rows[start + row] if start + row < len(self.rows) else [] for row in rows]
            yield packed(self.task.held_out_items, part, self.task.batch_shape(batch_size), self.task.tokenizer.pad_id)

    def score_outputs(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        return self.task.score_outputs(unpacked(stacked(outputs), self.task.held_out_items, self.rows), tunes)


@dataclasses.dataclass(frozen=True)
class FineTuning(Prediction, Task):
    """Base of the tasks on labelled data; they add the loss, the examples, scores and `prepare`."""

    raw_config: Any  # as given; `config` has the options that depend on the data, too
    tokenizer: Tokenizer
    temperature: float  # divisor of the logits for probabilities

    @property
    def files(self) -> dict[str, Any]:
        return {}

    @property
    @abc.abstractmethod
    def summary(self) -> str:
        """The data in one line."""

    @property
    @abc.abstractmethod
    def objectives(self) -> Mapping[str, DeviceObjective]:
        """The loss, under the name of its head."""

    @property
    @abc.abstractmethod
    def first_score(self) -> str:
        """Name of the score that selects the best checkpoint by default."""

    @abc.abstractmethod
    def items(self, split: str) -> list[Item]:
        """Returns the examples of a split, TRAIN or HELD_OUT."""

    @abc.abstractmethod
    def score_outputs(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Returns the results of `Evaluator.score_outputs` (see tasks/base.py) for one output per held-out item."""

    @cached_property
    def training_items(self) -> list[Item]:
        return self.items(TRAIN)

    @cached_property
    def held_out_items(self) -> list[Item]:
        return self.items(HELD_OUT)

    @cached_property
    def config(self) -> Any:
        config, train = self.raw_config, self.raw_config.train
        if not (num_steps := train.num_steps):
            steps_per_epoch = -(-len(self.training_items) // train.batch_size)
            num_steps = max(1, round(config.num_epochs * steps_per_epoch))
        warmup_steps = config.optimizer.warmup_steps or round(config.warmup_ratio * num_steps)
        best_metric = config.checkpoint.best_metric or f"eval/{self.first_score}"
        return dataclasses.replace(
            config,
            train=dataclasses.replace(train, num_steps=num_steps),
            optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup_steps),
            checkpoint=dataclasses.replace(config.checkpoint, best_metric=best_metric),
        )

    @cached_property
    def losses(self) -> Losses:
        return Losses(build_model(self.raw_config.model, self.objectives), self.objectives)

    @property
    def initialization(self) -> Initialization:
        return Initialization(() if self.raw_config.from_scratch else ("encoder",), self.raw_config.reinit_layers)

    @cached_property
    def training(self) -> PackedTraining:
        return PackedTraining(self)

    @cached_property
    def evaluator(self) -> PackedEvaluator:
        return PackedEvaluator(self)

    @property
    def row_length(self) -> int:
        return self.raw_config.data.sequence_length

    @cached_property
    def _eval_step(self) -> Any:
        return jax.jit(make_eval_step(self.losses))

    def compute(self, params: Params, batch: Any) -> Any:
        return self._eval_step(params, {}, batch)[2]
