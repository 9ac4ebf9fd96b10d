"""Training and held-out data of pretraining: a stream for each phase, and for each corpus that is evaluated on."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.data.joining import HostBatch
from bert_jax.data.pretraining.mixture import Mixture, taken
from bert_jax.data.pretraining.stream import (
    DataConfig,
    Stream,
    counts_of,
    evaluation_batches,
    held_out_stream,
    open_corpus,
    training_stream,
)
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives.base import Objective
from bert_jax.objectives.losses import normalizers_of
from bert_jax.parallel.batches import BatchShape, check_batch_size
from bert_jax.tasks.base import check_sizes
from bert_jax.tasks.common.training import Phase, phase_at
from bert_jax.train.writers.base import Row


class Source(NamedTuple):
    """A corpus that a run reads."""

    name: str
    size: str  # in tokens and documents, for people
    tokens: int  # that the run reads of it, special tokens and padding counted in
    epochs: float  # times that it reads all of it


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """Training data (see tasks/common/training.py)."""

    config: Any
    tokenizer: Tokenizer
    objectives: dict[str, Objective]

    @property
    def summary(self) -> str:
        sources = self.sources
        if len(sources) == 1:
            return f"{sources[0].size} to train on, {sources[0].epochs:.3g} epochs"
        whole = sum(source.tokens for source in sources)
        parts = [
            f"{source.name}: {source.size}, {source.epochs:.3g} epochs, {source.tokens / whole:.1%} of the run"
            for source in sources
        ]
        return f"to train on {'; '.join(parts)}"

    @cached_property
    def sources(self) -> list[Source]:
        """The corpora that the run reads, and how much of each."""
        sources = dict[str, Source]()
        parts = zip(self.phases(), self.config.resolved_phases, self.streams, strict=True)
        for phase, part, stream in parts:
            counts = counts_of(self._data_of(part))
            streams = stream.streams if isinstance(stream, Mixture) else [stream]
            numbers = taken(len(phase.examples), list(counts.values()))
            for folder, of_folder, number in zip(counts, streams, numbers, strict=True):
                before = sources.get(folder)
                tokens, epochs = number * part.sequence_length, number / of_folder.size
                sources[folder] = Source(
                    of_folder.name,
                    before.size if before else open_corpus(folder, "train").summary,
                    tokens + (before.tokens if before else 0),
                    epochs + (before.epochs if before else 0.0),
                )
        return [*sources.values()]

    def _data_of(self, part: Any) -> DataConfig:
        return dataclasses.replace(
            self.config.data, corpus=part.corpus, mixture=part.mixture, sequence_length=part.sequence_length
        )

    def shares(self, step: int) -> tuple[float, float]:
        number = phase_at(self.phases(), step).number
        shares = [objective.shares(0.5) for objective in self.objectives_of_phases[number].values()]
        return max(read for read, _ in shares), max(predicted for _, predicted in shares)

    @property
    def workers(self) -> int:
        return self.config.data.workers

    @property
    def prefetch(self) -> int:
        return self.config.data.prefetch

    @cached_property
    def objectives_of_phases(self) -> list[dict[str, Objective]]:
        """The objectives of each phase, whose mask rates may be its own."""
        options = map(self.config.options_of, self.config.resolved_phases)
        return [objectives_lib.load(tuple(self.objectives), of_phase, self.tokenizer) for of_phase in options]

    @cached_property
    def streams(self) -> list[Stream]:
        """The stream of each phase."""
        streams, examples_read = list[Stream](), dict[str, int]()
        for phase, part in zip(self.phases(), self.config.resolved_phases, strict=True):
            data = self._data_of(part)
            objectives = self.objectives_of_phases[phase.number]
            seed = self.config.train.seed
            streams.append(training_stream(data, self.tokenizer, objectives, seed, phase.examples, examples_read))
        return streams

    def validate(self, shards: int) -> None:
        for number, phase in enumerate(self.config.resolved_phases):
            of_phase = f"phases[{number}]" if self.config.phases else ""
            check_sizes(self.config.model, self.tokenizer, phase.sequence_length, of_phase or "data")
            check_batch_size(phase.batch_size, phase.accumulation_steps, shards, of_phase or "train")
        _ = self.streams

    def phases(self, shards: int = 1) -> list[Phase]:
        phases = list[Phase]()
        first_step = first_example = 0
        for number, part in enumerate(self.config.resolved_phases):
            # A document has at least a token and its separator.
            most = part.sequence_length // 2 if self.config.data.isolates else 1
            shape = BatchShape(part.batch_size, part.sequence_length, most)
            phases.append(Phase(number, first_step, part.until_step, shape, part.accumulation_steps, first_example))
            first_example += (part.until_step - first_step) * part.batch_size
            first_step = part.until_step
        return phases

    def batch(self, phase: Phase, rows: np.ndarray, step: int) -> HostBatch:
        return self.stream_of(phase).batch(phase.numbers(step)[rows])

    def describe(self, step: int) -> str:
        phase = phase_at(self.phases(), step)
        return self.stream_of(phase).describe(phase.numbers(step))

    def effect_of_batch_size(self, before: int, step: int) -> str:
        train = dataclasses.replace(self.config.train, batch_size=before)
        number, instead = (
            int(phase_at(data.phases(), step).numbers(step)[0])
            for data in (self, dataclasses.replace(self, config=dataclasses.replace(self.config, train=train)))
        )
        if number == instead:
            return "the examples up to here stay the same"
        first, last = min(number, instead), max(number, instead) - 1
        fate = "skipped" if number > instead else "seen again"
        start = f"step {step} begins with example {number:,} instead of {instead:,}"
        return f"{start}, so examples {first:,} to {last:,} are {fate}"

    def stream_of(self, phase: Phase) -> Stream:
        """Returns the stream of one of `phases`."""
        return self.streams[phase.number]


@dataclasses.dataclass(frozen=True)
class PretrainingEvaluator:
    """Evaluator (see tasks/base.py) on the held-out split of a corpus, and of those in `data.eval_corpora`."""

    config: Any
    tokenizer: Tokenizer
    objectives: dict[str, Objective]
    corpus: str

    @cached_property
    def stream(self) -> Stream:
        data = dataclasses.replace(self.config.data, corpus=self.corpus)
        return held_out_stream(data, self.tokenizer, self.objectives)

    @cached_property
    def others(self) -> dict[str, "PretrainingEvaluator"]:
        """The evaluators of further corpora, by the names of their folders."""
        folders = self.config.data.eval_corpora if self.corpus == self.config.data.corpus else ()
        others = {Path(folder).name: dataclasses.replace(self, corpus=folder) for folder in folders}
        if len(others) < len(folders):
            raise UserError(f"data.eval_corpora={','.join(folders)}: two folders have the same name; rename one")
        if others and (taken_names := others.keys() & {"loss", *self.terms}):
            raise UserError(f"data.eval_corpora: a folder has the name of a metric, {taken_names.pop()}; rename it")
        return others

    @property
    def terms(self) -> set[str]:
        """The terms of the objectives, with which the names of metrics begin."""
        row = self.stream.batch(np.zeros(1, np.int64))
        normalizers = jax.eval_shape(partial(normalizers_of, self.objectives), row)
        return {term for terms in normalizers.values() for term in terms}

    def validate(self) -> None:
        for evaluator in (self, *self.others.values()):
            _ = evaluator.stream

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        return evaluation_batches(self.stream, batch_size, rows, self.config.train.eval_examples)

    def score_outputs(self, outputs: list[dict[str, np.ndarray]], tunes: bool) -> tuple[Row, dict[str, Any]]:
        return {}, {}  # all metrics are sums over examples
