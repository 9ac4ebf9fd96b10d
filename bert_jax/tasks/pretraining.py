"""Pretraining on a prepared corpus with any of the objectives; prediction fills [MASK]s."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from bert_jax.data.corpus.format import TOKENIZER_FOLDER, Corpus
from bert_jax.data.pretraining import windows as examples
from bert_jax.data.pretraining.stream import DataConfig, Stream, evaluation_batches, make_stream
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives.base import Batch, Objective
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.parallel.batches import BatchShape, HostBatch, check_batch_size
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.tasks.base import Initialization, check_sizes, load_tokenizer, warn_of_padding
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig
from bert_jax.train.phases import Phase, phase_at
from bert_jax.train.writers.base import Row

TOP_K = 5  # fillings of a mask that are returned


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """Steps with options of their own; 0 and '' stand for those of the run."""

    until_step: int = 0
    batch_size: int = 0
    accumulation_steps: int = 0
    sequence_length: int = 0
    corpus: str = ""


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
class PretrainingData:
    """Training data: see tasks/base.py."""

    config: Config
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
    def streams(self) -> list[Stream]:
        """Of each phase."""
        config = self.config
        return [
            make_stream(
                dataclasses.replace(config.data, corpus=phase.corpus, sequence_length=phase.sequence_length),
                "train",
                self.tokenizer,
                self.objectives,
                config.train.seed,
            )
            for phase in self._phases
        ]

    def validate(self) -> None:
        for phase in self._phases:
            check_sizes(self.config.model, self.tokenizer, phase.sequence_length)
        _ = self.streams

    def phases(self, shards: int) -> list[Phase]:
        phases = list[Phase]()
        first_step = first_example = 0
        for part in self._phases:
            check_batch_size(part.batch_size, part.accumulation_steps, shards)
            shape = BatchShape(part.batch_size, part.sequence_length)
            phases.append(Phase(first_step, part.until_step, shape, part.accumulation_steps, first_example))
            first_example += (part.until_step - first_step) * part.batch_size
            first_step = part.until_step
        return phases

    def batch(self, phase: Phase, rows: np.ndarray, step: int) -> HostBatch:
        return self._stream_at(step).batch(phase.numbers(step)[rows])

    def describe(self, step: int) -> str:
        return self._stream_at(step).describe(phase_at(self.phases(1), step).numbers(step))

    def meaning_of_batch_size(self, before: int, step: int) -> str:
        train = dataclasses.replace(self.config.train, batch_size=before)
        number, instead = (
            int(phase_at(data.phases(1), step).numbers(step)[0])
            for data in (self, dataclasses.replace(self, config=dataclasses.replace(self.config, train=train)))
        )
        first, last = min(number, instead), max(number, instead) - 1
        fate = "skipped" if number > instead else "seen again"
        start = f"step {step} begins with example {number:,} instead of {instead:,}"
        return f"{start}, so examples {first:,} to {last:,} are {fate}"

    def _stream_at(self, step: int) -> Stream:
        return next(stream for phase, stream in zip(self._phases, self.streams, strict=True) if step < phase.until_step)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out data: see tasks/base.py. They are the same, with the same masks, for every run."""

    config: Config
    tokenizer: Tokenizer
    objectives: dict[str, Objective]

    @cached_property
    def stream(self) -> Stream:
        data = dataclasses.replace(self.config.data, masking="static")
        return make_stream(data, "validation", self.tokenizer, self.objectives, seed=0)

    def validate(self) -> None:
        _ = self.stream

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        return evaluation_batches(self.stream, batch_size, rows, self.config.train.eval_examples)

    def scores(self, outputs: list[dict[str, np.ndarray]], tunes: bool) -> tuple[Row, dict[str, Any]]:
        return {}, {}  # all of its metrics are sums


@dataclasses.dataclass(frozen=True)
class MaskFilling:
    """Fills [MASK]s: see tasks/base.py, `Answers`."""

    model: Model
    tokenizer: Tokenizer
    length: int  # of a text, in tokens

    input_fields = ("text",)

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each text {'masks': [[{'token', 'probability'} x TOP_K] for each mask]}.

        Raises:
          UserError: a text without a mask, or with one beyond the length, or the run has no MLM head.
        """
        if "mlm" not in self.model.heads:
            raise UserError("this run was not pretrained with the objective mlm, so it cannot fill masks")
        # As many as the next power of two, so that there are few programs to compile.
        padded = inputs + inputs[-1:] * ((1 << (len(inputs) - 1).bit_length()) - len(inputs))
        rows, positions = zip(*(self._with_masks(values["text"]) for values in padded), strict=True)
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        most = 1 << (max(map(len, positions)) - 1).bit_length()  # few widths, few compilations
        positions_BxP = np.stack([np.resize(row, most) for row in positions])
        top = _top_tokens(self.model, self.tokenizer.vocab_size, params, batch, positions_BxP)
        answers = []
        for masks, ids_PxK, probabilities_PxK in zip(positions, *jax.device_get(top), strict=True):
            pairs = [
                zip(self.tokenizer.tokens(ids_PxK[i]), probabilities_PxK[i], strict=True) for i in range(len(masks))
            ]
            answers.append({"masks": [[{"token": t, "probability": float(p)} for t, p in pair] for pair in pairs]})
        return answers[: len(inputs)]

    def _with_masks(self, text: str) -> tuple[examples.Example, np.ndarray]:
        """A text as an example, and the positions of its masks."""
        length, mask_id = self.length, self.tokenizer.mask_id
        room = length - self.tokenizer.num_special_tokens(1)
        ids = self.tokenizer.encode_with_masks(text)
        masks = np.flatnonzero(ids == mask_id)
        mask = self.tokenizer.tokens([mask_id])[0]
        if not len(masks):
            raise UserError(f"{text[:80]!r}: no {mask} in it; put one where a word is to be")
        if masks[-1] >= room:
            raise UserError(f"{text[:80]!r}: a {mask} beyond the first {room} tokens; shorten the text")
        return examples.join(self.tokenizer, length, ids[:room]), masks + 1  # after [CLS]


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
            check_corpus(config.data)
            corpus = Corpus.open(config.data.corpus)  # before the tokenizer, which is just a part of the folder
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


def check_corpus(data: DataConfig) -> None:
    """Raises UserError where no corpus is named."""
    if not data.corpus:
        raise UserError("data.corpus is empty; set it to a folder made by tools/prepare_corpus.py")


@partial(jax.jit, static_argnums=(0, 1))
def _top_tokens(
    model: Model, vocab_size: int, params: Params, batch: Batch, positions_BxP: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Ids and probabilities [B, P, TOP_K] of the likeliest tokens at some positions."""
    bound = model.bind(params)
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    output = bound.encoder(*inputs, positions_BxP=positions_BxP)

    def row(hidden_PxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_PxV = bound.heads["mlm"](hidden_PxD[None], bound.encoder.embeddings.tokens.embedding[...])[0]
        # Rows of the table beyond the tokenizer's vocabulary are there for the hardware only.
        probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits_PxV[:, :vocab_size]), TOP_K)
        return ids, probabilities

    return jax.lax.map(row, output.last_hidden_state)  # one by one: [B, P, V] may not fit
