"""Pretraining on a prepared corpus with any of the objectives; prediction fills masks."""

import dataclasses
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bert_jax.config import from_dict
from bert_jax.data.corpus.format import TOKENIZER_FOLDER
from bert_jax.data.joining import HostBatch
from bert_jax.data.pretraining.mixture import parse_mixture
from bert_jax.data.pretraining.stream import (
    STREAM_VERSION,
    DataConfig,
    Stream,
    evaluation_batches,
    held_out_stream,
    open_corpus,
    training_stream,
)
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.formats import huggingface
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives import rtd
from bert_jax.objectives.base import Objective
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.objectives.masking import MaskingOptions
from bert_jax.parallel.batches import BatchShape, check_batch_size
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.base import Initialization, TaskConfig, check_sizes, load_tokenizer, model_of_run, warn_of_padding
from bert_jax.tasks.common.mask_filling import fill_masks
from bert_jax.tasks.common.phases import PhaseConfig, with_steps
from bert_jax.tasks.common.training import Phase, phase_at
from bert_jax.train.schedules import RatePiece
from bert_jax.train.writers.base import Row

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    task: str = "pretraining"
    objectives: tuple[str, ...] = ("mlm", "nsp")
    options: dict[str, Any] = dataclasses.field(default_factory=objectives_lib.default_options)
    data: DataConfig = DataConfig()
    phases: tuple[PhaseConfig, ...] = ()  # consecutive phases up to train.num_steps; empty for a single one

    def inheriting(self, folder: Path) -> "Config":
        """Returns defaults as in the run or model in a folder: its model, its objectives and their options."""
        config = dataclasses.replace(self, model=model_of_run(folder))
        if not run_folder.is_run(folder):
            heads = huggingface.inspect(folder).heads
            names = tuple(name for name in heads if name in objectives_lib.available())
            return dataclasses.replace(config, objectives=names or ("mlm",))
        stored = run_folder.read_config(folder)
        return from_dict(config, {name: stored[name] for name in stored if name in ("objectives", "options")})

    @property
    def resolved_phases(self) -> tuple[PhaseConfig, ...]:
        """The phases with all options set. Raises UserError as `with_steps`."""
        return tuple(
            dataclasses.replace(
                phase,
                batch_size=phase.batch_size or self.train.batch_size,
                accumulation_steps=phase.accumulation_steps or self.train.accumulation_steps,
                sequence_length=phase.sequence_length or self.data.sequence_length,
                corpus=phase.corpus or self.data.corpus,
                mixture=phase.mixture or self.data.mixture,
                rope_theta=phase.rope_theta or self.model.rope_theta,
            )
            for phase in with_steps(self.phases, self.train.num_steps)
        )

    def options_of(self, phase: PhaseConfig) -> dict[str, Any]:
        """Returns the options of the objectives in a phase, with its mask rates. Raises UserError for invalid ones."""
        rates = {"mlm_probability": phase.mlm_probability, "mlm_probability_end": phase.mlm_probability_end}
        if not any(rates.values()):
            return self.options
        changes: dict[str, Any] = {name: rate for name, rate in rates.items() if rate or phase.mlm_probability}
        try:
            return {
                name: dataclasses.replace(options, **changes) if isinstance(options, MaskingOptions) else options
                for name, options in self.options.items()
            }
        except ValueError as error:
            raise UserError(f"phases: {error}") from None

    @property
    def rate_pieces(self) -> tuple[RatePiece, ...]:
        """The learning rates of the phases that have one of their own."""
        first_step, pieces = 0, list[RatePiece]()
        for phase in with_steps(self.phases, self.train.num_steps):
            if phase.schedule:
                peak = phase.learning_rate or self.optimizer.learning_rate
                pieces.append(RatePiece(first_step, phase.until_step, peak, phase.warmup_steps, phase.schedule))
            first_step = phase.until_step
        return tuple(pieces)

    def model_at(self, step: int) -> EncoderConfig:
        """Returns the options of the model in the phase of a step, counted from 0."""
        phases = self.resolved_phases
        phase = next((phase for phase in phases if step < phase.until_step), phases[-1])
        return dataclasses.replace(self.model, rope_theta=phase.rope_theta)


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """Training data (see tasks/common/training.py)."""

    config: Any
    tokenizer: Tokenizer
    objectives: dict[str, Objective]

    @property
    def summary(self) -> str:
        phases = self.config.resolved_phases
        folders = dict.fromkeys(folder for phase in phases for folder in (phase.corpus, *parse_mixture(phase.mixture)))
        return f"{' and '.join(open_corpus(folder, 'train').summary for folder in folders)} to train on"

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
        streams = []
        for phase, part in zip(self.phases(), self.config.resolved_phases, strict=True):
            data = dataclasses.replace(
                self.config.data, corpus=part.corpus, mixture=part.mixture, sequence_length=part.sequence_length
            )
            objectives = self.objectives_of_phases[phase.number]
            streams.append(training_stream(data, self.tokenizer, objectives, self.config.train.seed, phase.examples))
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
        return others

    def validate(self) -> None:
        for evaluator in (self, *self.others.values()):
            _ = evaluator.stream

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        return evaluation_batches(self.stream, batch_size, rows, self.config.train.eval_examples)

    def score_outputs(self, outputs: list[dict[str, np.ndarray]], tunes: bool) -> tuple[Row, dict[str, Any]]:
        return {}, {}  # all metrics are sums over examples


def with_corpus_of_origin(data: DataConfig, init_from: str) -> DataConfig:
    """Returns the options with the corpus of the run in `init_from` among those to evaluate on, if `eval_origin` is set."""
    if not data.eval_origin:
        return data
    folder = Path(init_from)
    stored = run_folder.read_config(folder) if init_from and run_folder.is_run(folder) else {}
    corpus = (stored.get("data") or {}).get("corpus", "")
    if not corpus or not Path(corpus).exists():
        logger.warning(
            "data.eval_origin: %s has no corpus, so what is forgotten is not measured; name one with data.eval_corpora",
            init_from or "init_from",
        )
        return data
    if corpus in (data.corpus, *data.eval_corpora):
        return data
    return dataclasses.replace(data, eval_corpora=(*data.eval_corpora, corpus))


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
        phases = with_steps(config.phases, config.train.num_steps) if config.phases else ()
        config = dataclasses.replace(config, phases=phases, data=with_corpus_of_origin(config.data, config.init_from))
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
        evaluator = PretrainingEvaluator(*data, corpus=config.data.corpus)
        return cls(config, tokenizer, losses, PretrainingData(*data), evaluator)
