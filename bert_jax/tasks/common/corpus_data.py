"""Training and held-out batches of a pretraining run, from a prepared corpus."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.joining import HostBatch
from bert_jax.data.pretraining.stream import CorpusStream, evaluation_batches, held_out_stream, training_stream
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.objectives.base import Objective
from bert_jax.parallel.batches import BatchShape, check_batch_size
from bert_jax.tasks.base import Phase, check_sizes, phase_at
from bert_jax.train.writers.base import Row


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """Options of a phase; 0 and '' stand for those of the run."""

    until_step: int = 0
    batch_size: int = 0
    accumulation_steps: int = 0
    sequence_length: int = 0
    corpus: str = ""


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """Training data (see tasks/base.py)."""

    config: Any
    tokenizer: Tokenizer
    objectives: dict[str, Objective]

    @property
    def summary(self) -> str:
        parts = [Corpus.open(folder) for folder in dict.fromkeys(phase.corpus for phase in self._phases)]
        tokens, documents = sum(part.num_tokens for part in parts), sum(part.num_documents for part in parts)
        return f"{tokens:,} tokens of {documents:,} documents to train on"

    @property
    def predicted_share(self) -> float:
        return self.config.options["mlm"].mlm_probability if "mlm" in self.objectives else 0.0

    @property
    def workers(self) -> int:
        return self.config.data.workers

    @property
    def prefetch(self) -> int:
        return self.config.data.prefetch

    @cached_property
    def _phases(self) -> tuple[PhaseConfig, ...]:
        return self.config.resolved_phases

    @cached_property
    def streams(self) -> list[CorpusStream]:
        """The stream of each phase."""
        configs = [
            dataclasses.replace(self.config.data, corpus=phase.corpus, sequence_length=phase.sequence_length)
            for phase in self._phases
        ]
        seed = self.config.train.seed
        return [training_stream(config, self.tokenizer, self.objectives, seed) for config in configs]

    def validate(self, shards: int) -> None:
        for number, phase in enumerate(self._phases):
            check_sizes(self.config.model, self.tokenizer, phase.sequence_length)
            section = f"phases[{number}]" if self.config.phases else "train"
            check_batch_size(phase.batch_size, phase.accumulation_steps, shards, section)
        _ = self.streams

    def phases(self, shards: int) -> list[Phase]:
        phases = list[Phase]()
        first_step = first_example = 0
        for part in self._phases:
            shape = BatchShape(part.batch_size, part.sequence_length)
            phases.append(Phase(first_step, part.until_step, shape, part.accumulation_steps, first_example))
            first_example += (part.until_step - first_step) * part.batch_size
            first_step = part.until_step
        return phases

    def batch(self, phase: Phase, rows: np.ndarray, step: int) -> HostBatch:
        return self.stream_at(step).batch(phase.numbers(step)[rows])

    def describe(self, step: int) -> str:
        return self.stream_at(step).describe(phase_at(self.phases(1), step).numbers(step))

    def effect_of_batch_size(self, before: int, step: int) -> str:
        train = dataclasses.replace(self.config.train, batch_size=before)
        number, instead = (
            int(phase_at(data.phases(1), step).numbers(step)[0])
            for data in (self, dataclasses.replace(self, config=dataclasses.replace(self.config, train=train)))
        )
        first, last = min(number, instead), max(number, instead) - 1
        fate = "skipped" if number > instead else "seen again"
        start = f"step {step} begins with example {number:,} instead of {instead:,}"
        return f"{start}, so examples {first:,} to {last:,} are {fate}"

    def stream_at(self, step: int) -> CorpusStream:
        """Returns the stream of a step."""
        return next(stream for phase, stream in zip(self._phases, self.streams, strict=True) if step < phase.until_step)


@dataclasses.dataclass(frozen=True)
class PretrainingEvaluator:
    """Evaluator (see tasks/base.py) on the held-out split."""

    config: Any
    tokenizer: Tokenizer
    objectives: dict[str, Objective]

    @cached_property
    def stream(self) -> CorpusStream:
        return held_out_stream(self.config.data, self.tokenizer, self.objectives)

    def validate(self) -> None:
        _ = self.stream

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        return evaluation_batches(self.stream, batch_size, rows, self.config.train.eval_examples)

    def score_outputs(self, outputs: list[dict[str, np.ndarray]], tunes: bool) -> tuple[Row, dict[str, Any]]:
        return {}, {}  # all metrics are sums over examples
