"""Extractive question answering: the span of a context that answers a question, or none, from files in SQuAD's format.

Contexts that are longer than an example are read in windows that overlap (Devlin et al. 2019, sections 4.2 and 4.3;
google-research/bert run_squad.py). Shapes: R rows, L length, K examples in a row.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.datasets.squad import Question, read_questions, scores
from bert_jax.errors import UserError
from bert_jax.model.build import ModuleFactory, Params
from bert_jax.model.heads import TokenClassifier
from bert_jax.objectives.base import BaseOptions, Batch, Loss, all_positions
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.finetuning.options import FineTuningConfig, split_path, temperature_for, tokenizer_for
from bert_jax.tasks.finetuning.packing import Item
from bert_jax.tasks.finetuning.spans import (
    Answers,
    Window,
    best_answer_temperature,
    best_null_threshold,
    found_answers,
    windows_of,
)
from bert_jax.tasks.finetuning.task import FineTuning, Output
from bert_jax.train.writers.base import Row


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # .json in the format of SQuAD 1.1 or 2.0
    validation: str = ""
    train_questions: int = 0  # a sample of so many, always the same one; 0: all
    validation_questions: int = 0
    sequence_length: int = 384  # tokens of a window, with the question and the special tokens
    doc_stride: int = 128  # tokens from the start of a window to that of the next
    max_query_length: int = 64  # tokens; longer questions are cut


@dataclasses.dataclass(frozen=True)
class Config(FineTuningConfig):
    task: str = "qa"
    data: DataConfig = DataConfig()
    max_answer_length: int = 30  # tokens
    n_best_size: int = 20  # starts and ends of a window that are tried, and answers that are kept

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_answer_length", "n_best_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("train_questions", "validation_questions"):
            if getattr(self.data, name) < 0:
                raise ValueError(f"data.{name}={getattr(self.data, name)} must not be negative")


@dataclasses.dataclass(frozen=True)
class Span:
    """The objective: cross-entropy of the first and of the last token of the answer, over the tokens of the window."""

    dropout: float
    options: BaseOptions = BaseOptions()

    @property
    def modules(self) -> dict[str, ModuleFactory]:
        return {"qa": partial(TokenClassifier, num_classes=2, dropout=self.dropout)}

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> jax.Array:
        return all_positions(batch)

    def loss(self, models, output, batch: Batch, key) -> Loss:
        logits_RxLx2 = models.heads["qa"](output.last_hidden_state, key)
        numbers_K = jnp.arange(1, batch["starts"].shape[1] + 1)
        is_own_RxKxL = batch["segment_ids"][:, None] == numbers_K[None, :, None]
        own_RxKxLx2 = jnp.where(is_own_RxKxL[..., None], logits_RxLx2[:, None], -1e9)
        log_RxKxLx2 = jax.nn.log_softmax(own_RxKxLx2, axis=2)
        gold_RxKx2 = batch["starts"][..., None] + batch["spans"]
        chosen_RxKx2 = jnp.take_along_axis(log_RxKxLx2, gold_RxKx2[:, :, None], axis=2)[:, :, 0]
        losses_RxK = -chosen_RxKx2.mean(-1)
        return Loss((losses_RxK * batch["example_weights"]).sum(), {}, {"token_logits": logits_RxLx2})


@dataclasses.dataclass(frozen=True)
class Task(FineTuning):
    """See tasks/base.py."""

    null_threshold: float | None  # of the run, tuned on its held-out data; None where all questions have answers

    input_fields = ("question", "context")
    first_score = "f1"

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        data = config.data
        tokenizer = tokenizer_for(config, workdir)
        room = data.sequence_length - data.max_query_length - tokenizer.num_special_tokens(2)
        if room < 1:
            raise UserError(
                f"data.sequence_length={data.sequence_length} leaves no room for a context next to "
                f"data.max_query_length={data.max_query_length} tokens of question; make the one larger or the other smaller"
            )
        if not 1 <= data.doc_stride <= room:
            raise UserError(
                f"data.doc_stride={data.doc_stride}: a window has room for {room} tokens of context; take 1 to {room}, or "
                "another data.sequence_length or data.max_query_length"
            )
        threshold = run_folder.read_value(workdir, run_folder.THRESHOLD, None)
        return cls(config, tokenizer, temperature_for(workdir), threshold)

    @cached_property
    def objectives(self) -> dict[str, Span]:
        return {"qa": Span(self.given.classifier_dropout)}

    # ------------------------------------------------------------------------------------------------------- examples

    @cached_property
    def training_items(self) -> list[Item]:
        return [window.item for window in self._windows(self._training_questions)]

    @cached_property
    def _training_questions(self) -> list[Question]:
        questions = read_questions(split_path(self.given.data, "train"), for_training=True)
        return sample(questions, self.given.data.train_questions)

    @cached_property
    def _held_out(self) -> tuple[list[Question], list[Window]]:
        questions = read_questions(split_path(self.given.data, "validation"), for_training=False)
        questions = sample(questions, self.given.data.validation_questions)
        return questions, self._windows(questions)

    @property
    def summary(self) -> str:
        held_out, windows = self._held_out
        return (
            f"{len(self._training_questions):,} questions to train on, in {len(self.training_items):,} windows; "
            f"{len(held_out):,} held out, in {len(windows):,}"
        )

    @cached_property
    def held_out_items(self) -> list[Item]:
        return [window.item for window in self._held_out[1]]

    def _windows(self, questions: Sequence[Question]) -> list[Window]:
        data = self.given.data
        return windows_of(self.tokenizer, questions, data.sequence_length, data.doc_stride, data.max_query_length)

    # ----------------------------------------------------------------------------------------- scores and predictions

    def judged(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Exact match and F1; with the run's threshold of "no answer", where it has one.

        A run tunes the threshold for the best F1; `best_f1` is with that of these outputs in any case. Files: predictions.json
        and na_prob.json are what the official script takes; the answers to choose from, and what was tuned.
        """
        questions = self._held_out[0]
        answers = self._answers(*self._held_out, outputs)
        may_decline = not all(question.answers for question in questions)
        best = best_null_threshold(questions, answers) if may_decline else None
        threshold = best if tunes else self.null_threshold
        predicted = {name: found.text(threshold) for name, found in answers.items()}
        row = scores(questions, predicted)
        is_tuned = tunes and self.given.calibrated
        temperature = best_answer_temperature(questions, answers) if is_tuned else self.temperature
        n_best = {name: found.described(temperature) for name, found in answers.items()}
        files: dict[str, Any] = {
            f"{run_folder.PREDICTIONS}/predictions.json": predicted,
            f"{run_folder.PREDICTIONS}/nbest_predictions.json": n_best,
            f"{run_folder.PREDICTIONS}/na_prob.json": {name: found.null_probability for name, found in answers.items()},
        }
        if is_tuned:
            row["temperature"] = files[run_folder.TEMPERATURE] = temperature
        if may_decline:
            row["best_f1"] = scores(questions, {name: found.text(best) for name, found in answers.items()})["f1"]
        if threshold is not None:
            row["null_threshold"] = threshold
        if tunes and may_decline:
            files[run_folder.THRESHOLD] = threshold
        return row, files

    def _answers(
        self, questions: Sequence[Question], windows: Sequence[Window], outputs: list[Output]
    ) -> dict[str, Answers]:
        logits = [output["token_logits"] for output in outputs]
        return found_answers(questions, windows, logits, self.given.n_best_size, self.given.max_answer_length)

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each question {'answer', 'start', 'end', 'score', 'null_score_diff', 'candidates'}; characters of the context.

        The answer is empty, and start and end are -1, where none is likelier than the run's threshold allows.

        Raises:
          UserError: an empty context.
        """
        if empty := [values["question"] for values in inputs if not values["context"].strip()]:
            raise UserError(f"question {empty[0][:80]!r}: its context is empty; give the text to find the answer in")
        questions = [
            Question(str(number), values["question"], values["context"], (), -1) for number, values in enumerate(inputs)
        ]
        windows = self._windows(questions)
        answers = self._answers(questions, windows, self.outputs_of(params, [window.item for window in windows]))
        described = []
        for question in questions:
            found = answers[question.name]
            text, probabilities = found.text(self.null_threshold), found.probabilities(self.temperature)
            best = found.candidates[0] if found.candidates and text else None
            described.append(
                {
                    "answer": text,
                    "start": best.start if best else -1,
                    "end": best.end if best else -1,
                    "score": probabilities[0 if best else -1],
                    "null_score_diff": found.null_score_diff,
                    "candidates": found.described(self.temperature),
                }
            )
        return described


def sample(questions: Sequence[Question], count: int) -> list[Question]:
    """So many of the questions, in their order; all for 0."""
    chosen = np.random.default_rng(0).permutation(len(questions))[: count or None]
    return [questions[number] for number in sorted(chosen)]
