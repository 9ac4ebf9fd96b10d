"""Pretraining on a prepared corpus with any of the objectives; prediction fills masks."""

import dataclasses
import logging
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from bert_jax.config import from_dict
from bert_jax.data.corpus.index import TOKENIZER_FOLDER
from bert_jax.data.pretraining.stream import STREAM_VERSION, DataConfig, open_corpus
from bert_jax.data.remote import is_url
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.formats import huggingface
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives import rtd
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.objectives.masking import MaskingOptions
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.default_checkpoint import chosen_params
from bert_jax.tasks.base import (
    Initialization,
    TaskConfig,
    check_sizes,
    generator_folder,
    load_tokenizer,
    model_of_checkpoint,
    warn_of_padding,
)
from bert_jax.tasks.common.mask_filling import fill_masks, prepare_masks
from bert_jax.tasks.common.packing import Output
from bert_jax.tasks.common.phases import PhaseConfig, with_steps
from bert_jax.tasks.common.prediction import Prediction, Prepared
from bert_jax.tasks.common.pretraining_data import PretrainingData, PretrainingEvaluator
from bert_jax.train.schedules import RatePiece

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    task: str = "pretraining"
    objectives: tuple[str, ...] = ("mlm", "nsp")  # names of files in objectives/ whose losses are added up
    options: dict[str, Any] = dataclasses.field(default_factory=objectives_lib.default_options)
    data: DataConfig = DataConfig()
    phases: tuple[PhaseConfig, ...] = ()  # consecutive phases up to train.num_steps; empty for a single one

    def inheriting(self, folder: Path, model: EncoderConfig) -> "Config":
        """Returns defaults as in the run or model in a folder: its model, its objectives and their options."""
        config = dataclasses.replace(self, model=model)
        stored = run_folder.read_config(folder) if run_folder.is_run(folder) else {}
        if "objectives" in stored:
            return from_dict(config, {name: stored[name] for name in ("objectives", "options") if name in stored})
        heads = (
            CheckpointStore(folder).structure(chosen_params(stored))
            if stored
            else huggingface.inspect(folder).model.abstract
        )
        names = tuple(name for name in heads.get("heads", ()) if name in objectives_lib.available())
        options = self.options
        if not stored and (generator := generator_folder(folder)):
            shares = rtd.options_of_generator(model_of_checkpoint(generator), model)
            options = options | {"rtd": dataclasses.replace(options["rtd"], **shares)}
        return dataclasses.replace(config, objectives=names or ("mlm",), options=options)

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
                mixture=phase.mixture or (() if phase.corpus else self.data.mixture),
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


def check_options(config: Config, is_new: bool) -> None:
    """Raises UserError for options that contradict each other, and warns of those that have no effect."""
    used = {name: config.options[name] for name in config.options if name in config.objectives}
    changing = [name for name, options in used.items() if getattr(options, "mlm_probability_end", 0.0)]
    if changing and len(config.phases) > 1:
        remedy = "set mlm_probability and mlm_probability_end of each phase"
        raise UserError(f"options.{changing[0]}.mlm_probability_end would begin anew in each phase; {remedy}")
    if config.data.masking == "static" and (changing or any(phase.mlm_probability_end for phase in config.phases)):
        raise UserError(
            "data.masking='static' keeps the masks of an example, so mlm_probability_end cannot change them; "
            "set --config.data.masking=dynamic, or a constant rate"
        )
    if any(phase.rope_theta for phase in config.phases):
        if config.model.positions != "rope":
            raise UserError(
                f"phases: rope_theta is for model.positions='rope', not {config.model.positions!r}; leave it out"
            )
        if (last := config.resolved_phases[-1].rope_theta) != config.model.rope_theta:
            remedy = f"set --config.model.rope_theta={last}"
            raise UserError(
                f"model.rope_theta={config.model.rope_theta} is not that of the last phase, {last}; {remedy}"
            )
    origin = Path(config.init_from) if is_new and config.init_from and "rtd" in config.objectives else None
    if origin and (generator := generator_folder(origin)):
        rtd.check_generator(config.options["rtd"], config.model, model_of_checkpoint(generator), generator)
    for name in ("batch_size", "accumulation_steps") if is_new and config.phases else ():
        value, of_phases = getattr(config.train, name), [getattr(phase, name) for phase in config.phases]
        if all(of_phases) and value not in of_phases:
            logger.warning("train.%s=%s has no effect: each phase has its own", name, value)
    for name, default in objectives_lib.default_options().items() if is_new else ():
        if name not in config.objectives and config.options[name] != default:
            logger.warning("options.%s has no effect: %s is not among the objectives", name, name)


def with_corpus_of_origin(data: DataConfig, init_from: str, workdir: Path) -> DataConfig:
    """Returns the options with the corpus of the run in `init_from` among those to evaluate on, if `eval_origin` is set.

    A run goes on with the corpora that it began with, whatever is in `init_from` now.
    """
    if not data.eval_origin:
        return data
    is_new = not run_folder.exists(workdir)
    before = {} if is_new else run_folder.read_config(workdir).get("data") or {}
    if before.get("eval_origin"):
        more = [corpus for corpus in before["eval_corpora"] if corpus not in (data.corpus, *data.eval_corpora)]
        return dataclasses.replace(data, eval_corpora=(*data.eval_corpora, *more))
    if is_new and not init_from:
        raise UserError(
            "data.eval_origin evaluates on the text of the run in init_from, which is not set; set "
            "--config.init_from=RUN_OR_MODEL, or --config.data.eval_origin=False"
        )
    folder = Path(init_from)
    stored = run_folder.read_config(folder) if init_from and run_folder.is_run(folder) else {}
    corpus = (stored.get("data") or {}).get("corpus", "")
    if not corpus or not (is_url(corpus) or Path(corpus).exists()):
        if is_new:
            message = "data.eval_origin: %s has no corpus, so what is forgotten is not measured; name one with %s"
            logger.warning(message, init_from, "data.eval_corpora")
        return data
    if corpus in (data.corpus, *data.eval_corpora):
        return data
    return dataclasses.replace(data, eval_corpora=(*data.eval_corpora, corpus))


@dataclasses.dataclass(frozen=True)
class Task(Prediction):
    """Pretraining task (see tasks/base.py); it fills masks."""

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

    @property
    def row_length(self) -> int:
        return self.config.data.sequence_length

    def prepare(self, inputs: list[dict[str, Any]]) -> Prepared:
        """Answers are {'masks': [[{'token', 'id', 'probability'}] for each mask]}; see `prepare_masks`.

        Raises:
          UserError: the run has no objective mlm, or as `prepare_masks`.
        """
        if "mlm" not in (self.generator or self.losses.model).heads:
            raise UserError("this run was not pretrained with the objective mlm, so it cannot fill masks")
        return prepare_masks(self.tokenizer, self.row_length, inputs)

    def compute(self, params: Params, batch: Any) -> Output:
        if self.generator:
            params = rtd.generator_params(self.config.options["rtd"], params)
        return fill_masks(self.generator or self.losses.model, self.tokenizer.vocab_size, params, batch)

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
        phases = with_steps(config.phases, config.train.num_steps) if config.phases else ()
        data = with_corpus_of_origin(config.data, config.init_from, workdir)
        config = dataclasses.replace(config, phases=phases, data=data)
        check_options(config, is_new)
        tokenizer = Tokenizer.load(corpus.directory / TOKENIZER_FOLDER) if is_new else load_tokenizer(workdir)
        check_sizes(config.model, tokenizer, config.data.sequence_length)
        if is_new:
            corpus.check_tokenizer(
                tokenizer, f"{config.data.corpus}/{TOKENIZER_FOLDER} was replaced: copy or prepare the corpus again"
            )
            warn_of_padding(config.model, tokenizer, is_new=not config.init_from)
        objectives = objectives_lib.load(config.objectives, config.options, tokenizer)
        if not config.model.pooler and any(objective.makes_pairs for objective in objectives.values()):
            raise UserError(f"objectives {', '.join(objectives)}: those on pairs need model.pooler=True")
        losses = Losses(build_model(config.model, objectives), objectives)
        of_both = (config, tokenizer, objectives)
        evaluator = PretrainingEvaluator(*of_both, corpus=config.data.corpus)
        return cls(config, tokenizer, losses, PretrainingData(*of_both), evaluator)
