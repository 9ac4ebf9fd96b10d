"""Extractive question answering: the span of a context that answers a question, or none, from files in SQuAD's format.

Contexts that are longer than an example are read in windows that overlap (Devlin et al. 2019, sections 4.2 and 4.3;
google-research/bert run_squad.py). Shapes: R rows, L length, K examples in a row.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax import run_folder
from bert_jax.data.squad import Question, read_questions, scores
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import TokenClassifier
from bert_jax.objectives.base import BaseOptions, Batch, Loss, Losses
from bert_jax.tasks.base import check_sizes, tokenizer_of_run
from bert_jax.tasks.finetuning.options import FineTuningConfig, check_encoder, resolved
from bert_jax.tasks.finetuning.packing import Item
from bert_jax.tasks.finetuning.spans import Answers, Window, best_null_threshold, found_answers, windows_of
from bert_jax.tasks.finetuning.task import FineTuning, Output
from bert_jax.train.metrics import Row

THRESHOLD = (
    "null_threshold.json"  # in the run folder: how much likelier no answer must be than the best one to be given
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # .json in the format of SQuAD 1.1 or 2.0
    validation: str = ""
    sequence_length: int = 384  # tokens of a window, with the question and the special tokens
    stride: int = 128  # tokens from the start of a window to that of the next
    question_length: int = 64  # tokens; longer questions are cut


@dataclasses.dataclass(frozen=True)
class Config(FineTuningConfig):
    task: str = "qa"
    data: DataConfig = DataConfig()
    longest_answer: int = 30  # tokens
    n_best: int = 20  # starts and ends of a window that are tried, and answers that are kept


@dataclasses.dataclass(frozen=True)
class Span:
    """The objective: cross-entropy of the first and of the last token of the answer, over the tokens of the window."""

    dropout: float
    options: BaseOptions = BaseOptions()

    def head(self, config: EncoderConfig, rngs) -> TokenClassifier:
        return TokenClassifier(config, 2, self.dropout, rngs)

    def weight(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> jax.Array | None:
        return jnp.broadcast_to(jnp.arange(batch["input_ids"].shape[1]), batch["input_ids"].shape)

    def loss(self, model, output, batch: Batch, key) -> Loss:
        logits_RxLx2 = model.heads["qa"](output.last_hidden_state, key)
        numbers_K = jnp.arange(1, batch["starts"].shape[1] + 1)
        is_own_RxKxL = batch["attention_mask"][:, None] == numbers_K[None, :, None]
        own_RxKxLx2 = jnp.where(is_own_RxKxL[..., None], logits_RxLx2[:, None], -1e9)
        log_RxKxLx2 = jax.nn.log_softmax(own_RxKxLx2, axis=2)
        gold_RxKx2 = batch["starts"][..., None] + batch["spans"]
        chosen_RxKx2 = jnp.take_along_axis(log_RxKxLx2, gold_RxKx2[:, :, None], axis=2)[:, :, 0]
        losses_RxK = -chosen_RxKx2.mean(-1)
        return Loss((losses_RxK * batch["example_weights"]).sum(), {}, {"token_logits": logits_RxLx2})


@dataclasses.dataclass(frozen=True)
class Task(FineTuning):
    """See tasks/base.py."""

    config: Config
    tokenizer: Tokenizer
    losses: Losses
    null_threshold: float | None  # of the run, tuned on its held-out data; None where all questions have answers

    input_fields = ("question", "context")

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        data = config.data
        check_encoder(config, workdir)
        tokenizer = tokenizer_of_run(workdir, Path(config.init_from) / run_folder.TOKENIZER)
        check_sizes(config.model, tokenizer, data.sequence_length)
        room = data.sequence_length - data.question_length - tokenizer.num_special_tokens(2)
        if not 1 <= data.stride <= room:
            raise UserError(
                f"data.stride={data.stride}: a window has room for {room} tokens of context; take 1 to {room}, or "
                "another data.sequence_length or data.question_length"
            )
        tuned = workdir / THRESHOLD
        threshold = float(json.loads(tuned.read_text())) if tuned.exists() else None
        objective = Span(config.classifier_dropout)
        losses = Losses(Model.build(config.model, {"qa": objective.head}), {"qa": objective})
        draft = cls(config, tokenizer, losses, threshold)
        num_examples = 0 if config.train.num_steps else len(draft.training_items)
        return dataclasses.replace(draft, config=resolved(config, num_examples, "f1"))

    # ------------------------------------------------------------------------------------------------------- examples

    @cached_property
    def training_items(self) -> list[Item]:
        return [window.item for window in self._windows(read(self.config.data, "train"))]

    @cached_property
    def _held_out(self) -> tuple[list[Question], list[Window]]:
        questions = read(self.config.data, "validation")
        return questions, self._windows(questions)

    @cached_property
    def held_out_items(self) -> list[Item]:
        return [window.item for window in self._held_out[1]]

    def _windows(self, questions: Sequence[Question]) -> list[Window]:
        data = self.config.data
        return windows_of(self.tokenizer, questions, data.sequence_length, data.stride, data.question_length)

    # ----------------------------------------------------------------------------------------- scores and predictions

    def measure(self, outputs: list[Output]) -> Row:
        """Exact match and F1; where some questions have no answer, with the run's threshold of "no answer".

        While a run has none, it is the one that gives the best F1, and both scores are with that. `best_f1` always is.
        """
        questions = self._held_out[0]
        answers = self._answers(*self._held_out, outputs)
        if all(question.answers for question in questions):
            return scores(questions, {name: found.text(None) for name, found in answers.items()})
        best = best_null_threshold(questions, answers)
        threshold = best if self.null_threshold is None else self.null_threshold
        chosen, tuned = (
            scores(questions, {name: found.text(value) for name, found in answers.items()})
            for value in (threshold, best)
        )
        return chosen | {"best_f1": tuned["f1"], "null_threshold": threshold}

    def files(self, outputs: list[Output], row: Row) -> dict[str, Any]:
        """The official predictions.json, and the answers and scores that it was chosen from."""
        answers = self._answers(*self._held_out, outputs)
        threshold = row.get("null_threshold")
        return {
            "predictions.json": {name: found.text(threshold) for name, found in answers.items()},
            "nbest_predictions.json": {name: found.described() for name, found in answers.items()},
            "null_odds.json": {name: found.null_odds for name, found in answers.items()},
        }

    def _answers(
        self, questions: Sequence[Question], windows: Sequence[Window], outputs: list[Output]
    ) -> dict[str, Answers]:
        logits = [output["token_logits"] for output in outputs]
        return found_answers(questions, windows, logits, self.config.n_best, self.config.longest_answer)

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each question {'answer', 'start', 'end', 'score', 'null_odds', 'candidates'}; characters of the context.

        The answer is empty, and start and end are -1, where none is likelier than the run's threshold allows.
        """
        questions = [
            Question(str(number), values["question"], values["context"], (), -1) for number, values in enumerate(inputs)
        ]
        windows = self._windows(questions)
        answers = self._answers(questions, windows, self.outputs_of(params, [window.item for window in windows]))
        told = []
        for question in questions:
            found = answers[question.name]
            text = found.text(self.null_threshold)
            best = found.candidates[0] if found.candidates and text else None
            told.append(
                {
                    "answer": text,
                    "start": best.start if best else -1,
                    "end": best.end if best else -1,
                    "score": best.probability if best else found.null_probability,
                    "null_odds": found.null_odds,
                    "candidates": found.described(),
                }
            )
        return told

    def save_files(self, workdir: Path, evaluation: Row | None = None) -> None:
        if evaluation and "eval/null_threshold" in evaluation:
            write_json(workdir / THRESHOLD, evaluation["eval/null_threshold"])


def read(data: DataConfig, split: str) -> list[Question]:
    """The questions of a file of the config."""
    if not getattr(data, split):
        raise UserError(f"data.{split} is empty; set both to files in SQuAD's format")
    return read_questions(getattr(data, split), for_training=split == "train")
