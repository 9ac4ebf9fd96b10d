"""Pretraining on a prepared corpus with any of the objectives; prediction fills [MASK]s."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from bert_jax.data import joining
from bert_jax.data.corpus.format import TOKENIZER_FOLDER, Corpus
from bert_jax.data.pretraining import stream as pipeline
from bert_jax.data.pretraining.stream import STREAM_VERSION, CorpusStream, DataConfig
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives.base import Batch, Losses, Objective
from bert_jax.parallel.batches import BatchShape, HostBatch, check_batch_size
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.tasks.base import check_sizes, load_tokenizer, warn_of_padding
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig
from bert_jax.train.writers import Row

TOP_K = 5  # fillings of a mask that are returned


@dataclasses.dataclass(frozen=True)
class Config:
    task: str = "pretraining"
    model: EncoderConfig = EncoderConfig()
    objectives: tuple[str, ...] = ("mlm", "nsp")
    options: dict[str, Any] = dataclasses.field(default_factory=objectives_lib.default_options)
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    init_from: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """See tasks/base.py."""

    config: Config
    tokenizer: Tokenizer
    losses: Losses
    objectives: dict[str, Objective]
    inherited = ("encoder", "heads")
    fresh_layers = 0
    input_fields = ("text",)
    files: ClassVar[dict[str, Any]] = {}

    @property
    def predicted_share(self) -> float:
        return self.config.options["mlm"].rate if "mlm" in self.objectives else 0.0

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        has_begun = run_folder.exists(workdir)
        if not has_begun:
            check_corpus(config.data)
            corpus = Corpus.open(config.data.corpus)  # before the tokenizer, which is just a part of the folder
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
        model = Model.build(config.model, {name: objective.head for name, objective in objectives.items()})
        return cls(config, tokenizer, Losses(model, objectives), objectives)

    @property
    def summary(self) -> str:
        corpus = Corpus.open(self.config.data.corpus)
        return f"{corpus.num_tokens:,} tokens of {corpus.num_documents:,} documents to train on"

    def stream(self, split: str) -> CorpusStream:
        """The numbered examples of a split of the corpus."""
        check_corpus(self.config.data)  # the run of an imported model has none
        corpus = Corpus.open(self.config.data.corpus, split)
        data, seed, is_training = self.config.data, self.config.train.seed, split == "train"
        if not is_training:  # the same held-out examples with the same masks for every run
            data, seed = dataclasses.replace(data, masking="static"), 0
        return CorpusStream.build(corpus, self.tokenizer, data, self.objectives, seed, is_shuffled=is_training)

    def batch_shape(self, row_multiple: int) -> BatchShape:
        train = self.config.train
        check_batch_size(train.batch_size, train.accumulation_steps, row_multiple // train.accumulation_steps)
        return BatchShape(train.batch_size, self.config.data.sequence_length)

    def training_batches(self, shape: BatchShape, rows: np.ndarray, first_step: int) -> Iterator[HostBatch]:
        data = self.config.data
        return pipeline.training_batches(
            self.stream("train"),
            lambda step: step * shape.rows + rows,
            first_step,
            self.config.train.num_steps,
            data.workers,
            data.prefetch,
        )

    def evaluation_batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        limit = self.config.train.eval_examples
        return pipeline.evaluation_batches(self.stream("validation"), batch_size, rows, limit)

    def results(self, outputs: list[dict[str, np.ndarray]], tunes: bool) -> tuple[Row, dict[str, Any]]:
        return {}, {}  # all of its metrics are sums

    def describe_batch(self, step: int) -> str:
        size = self.config.train.batch_size
        return self.stream("train").describe(step * size + np.arange(size))

    def meaning_of_batch_size(self, before: int, step: int) -> str:
        number, instead = step * self.config.train.batch_size, step * before
        first, last = min(number, instead), max(number, instead) - 1
        fate = "skipped" if number > instead else "seen again"
        start = f"step {step} begins with example {number:,} instead of {instead:,}"
        return f"{start}, so examples {first:,} to {last:,} are {fate}"

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each text {'masks': [[{'token', 'probability'} x TOP_K] for each mask]}.

        Raises:
          UserError: a text without a mask, or with one beyond the length, or the run has no MLM head.
        """
        if "mlm" not in self.objectives:
            raise UserError("this run was not pretrained with the objective mlm, so it cannot fill masks")
        # As many as the next power of two, so that there are few programs to compile.
        padded = inputs + inputs[-1:] * ((1 << (len(inputs) - 1).bit_length()) - len(inputs))
        rows, positions = zip(*(self._with_masks(values["text"]) for values in padded), strict=True)
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        most = 1 << (max(map(len, positions)) - 1).bit_length()  # few widths, few compilations
        positions_BxP = np.stack([np.resize(row, most) for row in positions])
        top = _top_tokens(self.losses.model, self.tokenizer.vocab_size, params, batch, positions_BxP)
        answers = []
        for masks, ids_PxK, probabilities_PxK in zip(positions, *jax.device_get(top), strict=True):
            pairs = [
                zip(self.tokenizer.tokens(ids_PxK[i]), probabilities_PxK[i], strict=True) for i in range(len(masks))
            ]
            answers.append({"masks": [[{"token": t, "probability": float(p)} for t, p in pair] for pair in pairs]})
        return answers[: len(inputs)]

    def _with_masks(self, text: str) -> tuple[joining.Example, np.ndarray]:
        """A text as an example, and the positions of its masks."""
        length, mask_id = self.config.data.sequence_length, self.tokenizer.mask_id
        room = length - self.tokenizer.num_special_tokens(1)
        ids = self.tokenizer.encode_with_masks(text)
        masks = np.flatnonzero(ids == mask_id)
        mask = self.tokenizer.tokens([mask_id])[0]
        if not len(masks):
            raise UserError(f"{text[:80]!r}: no {mask} in it; put one where a word is to be")
        if masks[-1] >= room:
            raise UserError(f"{text[:80]!r}: a {mask} beyond the first {room} tokens; shorten the text")
        return joining.join(self.tokenizer, length, ids[:room]), masks + 1  # after [CLS]


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
