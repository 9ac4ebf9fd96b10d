"""Pretraining on a prepared corpus with any of the objectives; prediction fills [MASK]s."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from bert_jax.data.corpus.format import TOKENIZER_FOLDER
from bert_jax.data.pretraining.stream import STREAM_VERSION, DataConfig, open_corpus
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.tasks.base import Initialization, check_sizes, load_tokenizer, warn_of_padding
from bert_jax.tasks.common.corpus_data import HeldOut, PhaseConfig, PretrainingData
from bert_jax.tasks.common.mask_filling import MaskFilling
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Config:
    task: str = "pretraining"
    model: EncoderConfig = EncoderConfig()
    objectives: tuple[str, ...] = ("mlm", "nsp")
    options: dict[str, Any] = dataclasses.field(default_factory=objectives_lib.default_options)
    data: DataConfig = DataConfig()
    phases: tuple[PhaseConfig, ...] = ()  # one after the other up to train.num_steps; none: a single one
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    init_from: str = ""

    @property
    def resolved_phases(self) -> tuple[PhaseConfig, ...]:
        """The phases with nothing left open. Evaluations use the run's own options.

        Raises:
          UserError: phases that do not follow each other up to the end of the run.
        """
        ends = [0, *(phase.until_step for phase in self.phases)]
        num_steps = self.train.num_steps
        if self.phases and (ends != sorted(set(ends)) or ends[-1] != num_steps):
            raise UserError(
                f"phases: until_step is {', '.join(map(str, ends[1:]))}; let it rise to train.num_steps={num_steps}"
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
    """See tasks/base.py."""

    config: Config
    tokenizer: Tokenizer
    losses: Losses
    training: PretrainingData
    evaluator: HeldOut
    initialization = Initialization(("encoder", "heads"))
    files: ClassVar[dict[str, Any]] = {}

    @property
    def answers(self) -> MaskFilling:
        return MaskFilling(self.losses.model, self.tokenizer, self.config.data.sequence_length)

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        has_begun = run_folder.exists(workdir)
        if not has_begun:
            corpus = open_corpus(config.data.corpus, "train")  # before the tokenizer, which is a part of the folder
            if (version := config.data.stream_version) != STREAM_VERSION:
                raise UserError(
                    f"data.stream_version={version}: this version of bert_jax makes {STREAM_VERSION}; leave it out"
                )
        if config.train.num_steps < 1:
            raise UserError(f"train.num_steps={config.train.num_steps} must be at least 1")
        of_corpus = Path(config.data.corpus) / TOKENIZER_FOLDER
        tokenizer = load_tokenizer(workdir) if has_begun else Tokenizer.load(of_corpus)
        check_sizes(config.model, tokenizer, config.data.sequence_length)
        if not has_begun:
            corpus.check_tokenizer(tokenizer, f"{of_corpus} was replaced: copy or prepare the corpus again")
            warn_of_padding(config.model, tokenizer, is_new=not config.init_from)
        objectives = objectives_lib.load(config.objectives, config.options, tokenizer)
        if not config.model.pooler and any(objective.makes_pairs for objective in objectives.values()):
            raise UserError(f"objectives {', '.join(objectives)}: those on pairs need model.pooler=True")
        losses = Losses(build_model(config.model, objectives), objectives)
        training = PretrainingData(config, tokenizer, objectives)
        return cls(config, tokenizer, losses, training, HeldOut(config, tokenizer, objectives))
