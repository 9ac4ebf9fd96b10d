"""Classification of your own texts, single or in pairs, from JSON lines or TSV; the labels are found and kept.

Shapes: B batch, L length, C classes.
"""

import dataclasses
import json
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import run_folder
from bert_jax.checkpoint.store import CheckpointConfig
from bert_jax.config import inherited, to_dict
from bert_jax.data import examples, pipeline
from bert_jax.data.batch import HostBatch
from bert_jax.data.tables import read_table
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import SequenceClassifier, positions_read
from bert_jax.objectives.base import BaseOptions, Batch, Loss, Losses, classification_loss
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.tasks.base import check_sizes, model_of_run, model_origin, tokenizer_of_run
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

OF_THE_HEAD = {"classifier", "classifier_pooling"}  # options of the model that the head of this task alone reads


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # .jsonl, or .tsv with a header
    validation: str = ""
    text_field: str = "text"
    second_field: str = ""  # of the second text, for tasks on pairs
    label_field: str = "label"
    sequence_length: int = 128  # tokens, special tokens counted in; longer texts are cut at their end


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are those of Devlin et al. 2019, section 4.1 and appendix A.3."""

    task: str = "text"
    init_from: str = ""  # run folder of a pretrained encoder; its model and tokenizer are taken
    from_scratch: bool = False  # take model and tokenizer of init_from, but not the weights
    model: EncoderConfig = inherited(EncoderConfig())  # dropout, dtype, classifier and the like may be set
    data: DataConfig = DataConfig()
    num_epochs: float = 3.0  # sets train.num_steps where that is 0
    warmup_share: float = 0.1  # of the steps; sets optimizer.warmup_steps where that is 0
    classifier_dropout: float = 0.1
    train: TrainConfig = TrainConfig(num_steps=0, batch_size=32, log_every=10, eval_every=0)
    optimizer: OptimizerConfig = OptimizerConfig(name="adamw", learning_rate=5e-5, warmup_steps=0, schedule="linear")
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(best_metric="eval/classification/accuracy", best_is_highest=True)


@dataclasses.dataclass(frozen=True)
class Classification:
    """The objective: cross-entropy of a classifier."""

    model: EncoderConfig
    num_classes: int
    dropout: float
    options: BaseOptions = BaseOptions()

    def head(self, config: EncoderConfig, rngs) -> SequenceClassifier:
        return SequenceClassifier(config, self.num_classes, self.dropout, rngs)

    def weight(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> jax.Array | None:
        return positions_read(self.model, batch["input_ids"])

    def loss(self, model, output, batch: Batch, key) -> Loss:
        logits_BxC = model.heads["classification"](output, batch["attention_mask"], key)
        return classification_loss(logits_BxC, batch["labels"], batch["example_weights"])


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """The rows of a file as numbered examples (see data/pipeline.py, `Numbered`)."""

    tokenizer: Tokenizer
    length: int
    segments: list[tuple[np.ndarray, ...]]  # token ids of one or two texts for each row
    labels: np.ndarray  # int32 [rows]
    seed: int

    @property
    def epoch_size(self) -> int:
        return len(self.segments)

    def example(self, epoch: int, index: int) -> examples.Example:
        example = joined(self.tokenizer, self.length, self.segments[index])
        return example | {"labels": self.labels[index]}


@dataclasses.dataclass(frozen=True)
class Task:
    """See tasks/base.py."""

    config: Config
    tokenizer: Tokenizer
    losses: Losses
    labels: list[str]
    predicted_share = 0.0

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        known = workdir / run_folder.LABELS
        labels = json.loads(known.read_text()) if known.exists() else found_labels(config.data)
        config = resolved(config, workdir)
        tokenizer = tokenizer_of_run(workdir, Path(config.init_from) / run_folder.TOKENIZER)
        check_sizes(config.model, tokenizer, config.data.sequence_length)
        if config.model.classifier == "pooled" and not config.model.pooler:
            raise UserError(
                "model.classifier='pooled' reads the pooled state; pretrain with model.pooler=True, or set it to 'tanh'"
            )
        objective = Classification(config.model, len(labels), config.classifier_dropout)
        model = Model.build(config.model, {"classification": objective.head})
        return cls(config, tokenizer, Losses(model, {"classification": objective}), labels)

    @property
    def inherited(self) -> tuple[str, ...]:
        return () if self.config.from_scratch else ("encoder",)

    @property
    def input_fields(self) -> tuple[str, ...]:
        data = self.config.data
        return (data.text_field, data.second_field) if data.second_field else (data.text_field,)

    @cached_property
    def _training_examples(self) -> TextExamples:
        return self._examples(self.config.data.train)

    @cached_property
    def _held_out_examples(self) -> TextExamples:
        return self._examples(self.config.data.validation)

    def _examples(self, path: str) -> TextExamples:
        rows = read_table(path, (*self.input_fields, self.config.data.label_field))
        label_field = self.config.data.label_field
        for row in rows:
            if row[label_field] not in self.labels:
                raise UserError(
                    f"{path}: label {row[label_field]!r} is not among those trained on: {', '.join(self.labels)}"
                )
        labels = np.array([self.labels.index(row[label_field]) for row in rows], np.int32)
        segments = self._encode(rows)
        return TextExamples(self.tokenizer, self.config.data.sequence_length, segments, labels, self.config.train.seed)

    def _encode(self, rows: list[dict[str, str]]) -> list[tuple[np.ndarray, ...]]:
        return list(
            zip(*(self.tokenizer.encode([row[field] for row in rows]) for field in self.input_fields), strict=True)
        )

    def training_batches(self, rows: np.ndarray, first_step: int) -> Iterator[HostBatch]:
        train = self.config.train
        return pipeline.training_batches(self._training_examples, train.batch_size, rows, first_step, train.num_steps)

    def evaluation_batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        held_out = self._held_out_examples
        return pipeline.evaluation_batches(held_out, batch_size, rows, held_out.epoch_size)

    def describe_batch(self, step: int) -> str:
        return pipeline.describe_batch(self._training_examples, step, self.config.train.batch_size)

    def save_files(self, workdir: Path) -> None:
        write_json(workdir / run_folder.LABELS, self.labels)

    def predict(self, params: Params, inputs: list[dict[str, str]]) -> list[dict[str, Any]]:
        """For each input {'label', 'probabilities': {label: probability}}."""
        length = self.config.data.sequence_length
        rows = [joined(self.tokenizer, length, segments) for segments in self._encode(inputs)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        probabilities_BxC = jax.device_get(_probabilities(self.losses.model, params, batch))
        answers = []
        for row in probabilities_BxC:
            by_label = {label: float(p) for label, p in zip(self.labels, row, strict=True)}
            answers.append({"label": self.labels[int(row.argmax())], "probabilities": by_label})
        return answers


def found_labels(data: DataConfig) -> list[str]:
    """The labels of the training file, sorted."""
    if not data.train or not data.validation:
        raise UserError("data.train or data.validation is empty; set both to .jsonl or .tsv files")
    return sorted({row[data.label_field] for row in read_table(data.train, (data.label_field,))})


def resolved(config: Config, workdir: Path) -> Config:
    """The config with steps in the place of epochs and shares.

    Raises:
      UserError: no run to take the model from, or a setting that would make it another model.
    """
    origin = model_origin(to_dict(config), workdir)
    if origin is None:
        raise UserError("init_from is empty; set it to the folder of a pretrained run (even with from_scratch)")
    model = to_dict(model_of_run(origin))
    for name, value in to_dict(config.model).items():
        if name not in run_folder.NOT_STRUCTURE | OF_THE_HEAD and value != model[name]:
            raise UserError(f"model.{name}={value}: the model is that of {origin}, where it is {model[name]}")
    num_steps = config.train.num_steps
    if not num_steps:
        num_rows = len(read_table(config.data.train, (config.data.label_field,)))
        num_steps = max(1, round(config.num_epochs * num_rows / config.train.batch_size))
    warmup_steps = config.optimizer.warmup_steps or round(config.warmup_share * num_steps)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, num_steps=num_steps),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup_steps),
    )


def joined(tokenizer: Tokenizer, length: int, segments: tuple[np.ndarray, ...]) -> examples.Example:
    """One or two texts as an example, cut at their ends to fit."""
    room = length - tokenizer.num_special_tokens(len(segments))
    if len(segments) == 1:
        return examples.join(tokenizer, length, segments[0][:room])
    a, b = segments
    kept_a, kept_b = examples.kept_lengths(len(a), len(b), room)
    return examples.join(tokenizer, length, a[:kept_a], b[:kept_b])


@partial(jax.jit, static_argnums=0)
def _probabilities(model: Model, params: Params, batch: Batch) -> jax.Array:
    bound = model.bind(params)
    positions = positions_read(model.config, batch["input_ids"])
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    output = bound.encoder(*inputs, positions_BxP=batch["input_ids"][:, :0] if positions is None else positions)
    return jax.nn.softmax(bound.heads["classification"](output, batch["attention_mask"]))
