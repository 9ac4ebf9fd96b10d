"""Extractive question answering, with or without unanswerable questions, from files in SQuAD's format.

Contexts longer than an example are read in overlapping windows (Devlin et al. 2019, sections 4.2 and 4.3;
google-research/bert run_squad.py).
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from bert_jax.data.datasets.squad import Question, read_questions, scores
from bert_jax.errors import UserError
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.common.packing import Item, Output
from bert_jax.tasks.common.prediction import Answer, InputError, Prepared
from bert_jax.tasks.finetuning.loss_terms import Span
from bert_jax.tasks.finetuning.options import FineTuningConfig, split_path, temperature_for, tokenizer_for
from bert_jax.tasks.finetuning.spans import (
    Answers,
    Window,
    best_answer_temperature,
    best_null_threshold,
    make_windows,
    rank_answers,
)
from bert_jax.tasks.finetuning.task import HELD_OUT, TRAIN, FineTuning
from bert_jax.train.writers.base import Row


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # .json in the format of SQuAD 1.1 or 2.0
    validation: str = ""  # held-out questions, in the same format
    train_questions: int = 0  # size of a sample, which is always the same one; 0 for all
    validation_questions: int = 0  # size of a sample of the held-out questions; 0 for all
    sequence_length: int = 384  # tokens of a window, including the question and special tokens
    doc_stride: int = 128  # tokens from the start of a window to the start of the next
    max_query_length: int = 64  # tokens; longer questions are cut


@dataclasses.dataclass(frozen=True)
class Config(FineTuningConfig):
    task: str = "qa"
    data: DataConfig = DataConfig()
    max_answer_length: int = 30  # tokens
    n_best_size: int = 20  # number of starts and of ends tried per window, and of answers kept

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_answer_length", "n_best_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("train_questions", "validation_questions"):
            if getattr(self.data, name) < 0:
                raise ValueError(f"data.{name}={getattr(self.data, name)} must not be negative")


@dataclasses.dataclass(frozen=True)
class Task(FineTuning):
    """Task on questions (see finetuning/task.py)."""

    null_threshold: float | None  # for null_score_diff, tuned on held-out data; None if all its questions have answers

    input_fields = ("question", "context")
    first_score = "f1"

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        data = config.data
        tokenizer = tokenizer_for(config, workdir)
        size = data.sequence_length - data.max_query_length - tokenizer.num_special_tokens(2)
        if size < 1:
            questions = f"questions of data.max_query_length={data.max_query_length} tokens"
            problem = f"data.sequence_length={data.sequence_length} leaves no space for a context after {questions}"
            raise UserError(f"{problem}; increase the one or reduce the other")
        if not 1 <= data.doc_stride <= size:
            remedy = f"use 1 to {size}, or another data.sequence_length or data.max_query_length"
            raise UserError(
                f"data.doc_stride={data.doc_stride}: a window has space for {size} tokens of context; {remedy}"
            )
        threshold = run_folder.read_value(workdir, run_folder.THRESHOLD, None)
        return cls(config, tokenizer, temperature_for(workdir), threshold)

    @cached_property
    def objectives(self) -> dict[str, Span]:
        return {"qa": Span(self.raw_config.classifier_dropout)}

    def items(self, split: str) -> list[Item]:
        windows = self._held_out[1] if split == HELD_OUT else self._windows(self._training)
        return [window.item for window in windows]

    @cached_property
    def _training(self) -> list[Question]:
        questions = read_questions(split_path(self.raw_config.data, TRAIN), for_training=True)
        return sample(questions, self.raw_config.data.train_questions)

    @cached_property
    def _held_out(self) -> tuple[list[Question], list[Window]]:
        questions = read_questions(split_path(self.raw_config.data, HELD_OUT), for_training=False)
        questions = sample(questions, self.raw_config.data.validation_questions)
        return questions, self._windows(questions)

    @property
    def summary(self) -> str:
        held_out, windows = self._held_out
        return (
            f"{len(self._training):,} questions to train on, in {len(self.training_items):,} windows; "
            f"{len(held_out):,} held out, in {len(windows):,}"
        )

    def _windows(self, questions: Sequence[Question]) -> list[Window]:
        data = self.raw_config.data
        return make_windows(self.tokenizer, questions, data.sequence_length, data.doc_stride, data.max_query_length)

    def score_outputs(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Returns exact match and F1 with the threshold of the run or, if `tunes`, the one with the best F1 (`best_f1`).

        The files are predictions.json and na_prob.json in the format of the official script, the n best answers, and the
        tuned values.
        """
        questions = self._held_out[0]
        answers = self._answers(*self._held_out, outputs)
        has_unanswerable = not all(question.answers for question in questions)
        best = best_null_threshold(questions, answers) if has_unanswerable else None
        threshold = best if tunes else self.null_threshold
        predicted = {name: ranked.text(threshold) for name, ranked in answers.items()}
        row = scores(questions, predicted)
        is_tuned = tunes and self.raw_config.calibrated
        temperature = best_answer_temperature(questions, answers) if is_tuned else self.temperature
        n_best = {name: ranked.to_json(temperature) for name, ranked in answers.items()}
        na_prob = {name: float(special.expit(ranked.null_score_diff)) for name, ranked in answers.items()}
        contents = {"predictions": predicted, "nbest_predictions": n_best, "na_prob": na_prob}
        files: dict[str, Any] = {f"{run_folder.PREDICTIONS}/{name}.json": value for name, value in contents.items()}
        if is_tuned:
            row["temperature"] = files[run_folder.TEMPERATURE] = temperature
        if has_unanswerable:
            row["best_f1"] = scores(questions, {name: ranked.text(best) for name, ranked in answers.items()})["f1"]
        if threshold is not None:
            row["null_threshold"] = threshold
        if tunes and has_unanswerable:
            files[run_folder.THRESHOLD] = threshold
        return row, files

    def _answers(
        self, questions: Sequence[Question], windows: Sequence[Window], outputs: list[Output]
    ) -> dict[str, Answers]:
        logits = [output["token_logits"] for output in outputs]
        return rank_answers(questions, windows, logits, self.raw_config.n_best_size, self.raw_config.max_answer_length)

    def prepare(self, inputs: list[dict[str, Any]]) -> Prepared:
        """Answers are {'answer', 'start', 'end', 'score', 'null_score_diff', 'candidates'}.

        Offsets are in characters of the context. If null_score_diff exceeds the threshold of the run, the answer is '' and both
        offsets are -1.

        Raises:
          InputError: an empty context.
        """
        for number, values in enumerate(inputs):
            if not values["context"].strip():
                problem = f"question {values['question'][:80]!r}: its context is empty"
                raise InputError(f"{problem}; give the text to find the answer in", number, "context")
        questions = [
            Question(str(number), values["question"], values["context"], (), -1) for number, values in enumerate(inputs)
        ]
        windows = self._windows(questions)

        def postprocess(outputs: list[Output]) -> list[Answer]:
            return [self._answer(ranked) for ranked in self._answers(questions, windows, outputs).values()]

        return Prepared([window.item for window in windows], postprocess)

    def _answer(self, ranked: Answers) -> Answer:
        """Returns the answer to a question as JSON values."""
        text = ranked.text(self.null_threshold)
        start, end = (ranked.candidates[0].start, ranked.candidates[0].end) if text else (-1, -1)
        score = ranked.probabilities(self.temperature)[0 if text else -1]
        answer = {"answer": text, "start": start, "end": end, "score": score}
        candidates = ranked.to_json(self.temperature)
        return answer | {"null_score_diff": ranked.null_score_diff, "candidates": candidates}


def sample(questions: Sequence[Question], count: int) -> list[Question]:
    """Returns a random sample of the questions in their order, always the same one; all questions if `count` is 0."""
    chosen = np.random.default_rng(0).permutation(len(questions))[: count or None]
    return [questions[number] for number in sorted(chosen)]
