"""Pretraining on a prepared corpus with any of the objectives; prediction fills masks."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bert_jax.data.corpus.format import TOKENIZER_FOLDER, Corpus
from bert_jax.data.joining import HostBatch
from bert_jax.data.pretraining.stream import (
    STREAM_VERSION,
    CorpusStream,
    DataConfig,
    evaluation_batches,
    held_out_stream,
    open_corpus,
    training_stream,
)
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.build import Model, Params
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives import rtd
from bert_jax.objectives.base import Objective
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.parallel.batches import BatchShape, check_batch_size
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.base import Initialization, TaskConfig, check_sizes, load_tokenizer, warn_of_padding
from bert_jax.tasks.common.mask_filling import fill_masks
from bert_jax.tasks.common.training import Phase, phase_at
from bert_jax.train.writers.base import Row


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """Options of a phase; 0 and '' stand for those of the run."""

    until_step: int = 0
    batch_size: int = 0
    accumulation_steps: int = 0
    sequence_length: int = 0
    corpus: str = ""

    def __post_init__(self):
        for field in ("until_step", "batch_size", "accumulation_steps", "sequence_length"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    task: str = "pretraining"
    objectives: tuple[str, ...] = ("mlm", "nsp")
    options: dict[str, Any] = dataclasses.field(default_factory=objectives_lib.default_options)
    data: DataConfig = DataConfig()
    phases: tuple[PhaseConfig, ...] = ()  # consecutive phases up to train.num_steps; empty for a single one

    @property
    def resolved_phases(self) -> tuple[PhaseConfig, ...]:
        """The phases with all options set. Raises UserError if until_step does not increase up to train.num_steps."""
        ends = [0, *(phase.until_step for phase in self.phases)]
        num_steps = self.train.num_steps
        if self.phases and (ends != sorted(set(ends)) or ends[-1] != num_steps):
            raise UserError(
                f"phases: until_step is {', '.join(map(str, ends[1:]))}; it must increase to train.num_steps={num_steps}; "
                "set --config.phases='()' for a single phase"
            )
        return tuple(
            PhaseConfig(
                phase.until_step,
                phase.batch_size or self.train.batch_size,
                phase.accumulation_steps or self.train.accumulation_steps,
                phase.sequence_length or self.data.sequence_length,
                phase.corpus or self.data.corpus,
            )
            for phase in self.phases or (PhaseConfig(num_steps),)
        )


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """Training data (see tasks/common/training.py)."""

    config: Any
    tokenizer: Tokenizer
    objectives: dict[str, Objective]

    @property
    def summary(self) -> str:
        parts = [Corpus.open(folder) for folder in dict.fromkeys(phase.corpus for phase in self.config.resolved_phases)]
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
    def streams(self) -> list[CorpusStream]:
        """The stream of each phase."""
        configs = [
            dataclasses.replace(self.config.data, corpus=phase.corpus, sequence_length=phase.sequence_length)
            for phase in self.config.resolved_phases
        ]
        seed = self.config.train.seed
        return [training_stream(config, self.tokenizer, self.objectives, seed) for config in configs]

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
            shape = BatchShape(part.batch_size, part.sequence_length)
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

    def stream_of(self, phase: Phase) -> CorpusStream:
        """Returns the stream of one of `phases`."""
        return self.streams[phase.number]


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


@dataclasses.dataclass(frozen=True)
class Task:
    """Pretraining task (see tasks/base.py)."""

    config: Config
    tokenizer: Tokenizer
    losses: Losses
    training: PretrainingData
    evaluator: PretrainingEvaluator
    initialization = Initialization(("encoder", "heads"))
    input_fields = ("text",)
    files: ClassVar[dict[str, Any]] = {}

    @cached_property
    def generator(self) -> Model | None:
        """The generator of a run with the objective rtd, which fills masks as the encoder of other runs does."""
        if "rtd" not in self.config.objectives:
            return None
        return rtd.generator_model(self.config.options["rtd"], self.losses.model)

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        texts = [values["text"] for values in inputs]
        if self.generator:
            params = rtd.generator_params(self.config.options["rtd"], params)
        model = self.generator or self.losses.model
        return fill_masks(model, self.tokenizer, self.config.data.sequence_length, params, texts)

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        is_new = not run_folder.exists(workdir)
        if is_new:
            corpus = open_corpus(config.data.corpus, "train")  # before the tokenizer, which is a part of the folder
            if (version := config.data.stream_version) != STREAM_VERSION:
                raise UserError(f"data.stream_version={version}: this version is {STREAM_VERSION}; leave it out")
        if config.train.num_steps < 1:
            remedy = "set it, or with configs/cramming.py use tools/cramming.py, which finds how many fit into a budget"
            raise UserError(f"train.num_steps={config.train.num_steps} must be at least 1; {remedy}")
        tokenizer_folder = Path(config.data.corpus) / TOKENIZER_FOLDER
        tokenizer = Tokenizer.load(tokenizer_folder) if is_new else load_tokenizer(workdir)
        check_sizes(config.model, tokenizer, config.data.sequence_length)
        if is_new:
            corpus.check_tokenizer(tokenizer, f"{tokenizer_folder} was replaced: copy or prepare the corpus again")
            warn_of_padding(config.model, tokenizer, is_new=not config.init_from)
        objectives = objectives_lib.load(config.objectives, config.options, tokenizer)
        if not config.model.pooler and any(objective.makes_pairs for objective in objectives.values()):
            raise UserError(f"objectives {', '.join(objectives)}: those on pairs need model.pooler=True")
        losses = Losses(build_model(config.model, objectives), objectives)
        data = (config, tokenizer, objectives)
        return cls(config, tokenizer, losses, PretrainingData(*data), PretrainingEvaluator(*data))
