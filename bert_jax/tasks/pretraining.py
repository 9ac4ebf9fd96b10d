"""Pretraining on a prepared corpus with any of the objectives; prediction fills masks."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from bert_jax.data.corpus.format import TOKENIZER_FOLDER
from bert_jax.data.pretraining.stream import STREAM_VERSION, DataConfig, open_corpus
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.build import Params
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.base import Initialization, TaskConfig, check_sizes, load_tokenizer, warn_of_padding
from bert_jax.tasks.common.corpus_data import PhaseConfig, PretrainingData, PretrainingEvaluator
from bert_jax.tasks.common.mask_filling import fill_masks


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

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        texts = [values["text"] for values in inputs]
        return fill_masks(self.losses.model, self.tokenizer, self.config.data.sequence_length, params, texts)

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        is_new = not run_folder.exists(workdir)
        if is_new:
            corpus = open_corpus(config.data.corpus, "train")  # before the tokenizer, which is a part of the folder
            if (version := config.data.stream_version) != STREAM_VERSION:
                raise UserError(f"data.stream_version={version}: this version is {STREAM_VERSION}; leave it out")
        if config.train.num_steps < 1:
            raise UserError(f"train.num_steps={config.train.num_steps} must be at least 1")
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
