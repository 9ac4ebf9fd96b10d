"""Parts shared by the tasks on whole texts, single or in pairs.

Shapes: N examples, C classes.
"""

import abc
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np
from scipy import special

from bert_jax.data import joining
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError, listed
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.common.packing import Item, Output, joined
from bert_jax.tasks.common.prediction import Answer, Prepared
from bert_jax.tasks.finetuning.loss_terms import Classification
from bert_jax.tasks.finetuning.scores import SCORES, best_temperature
from bert_jax.tasks.finetuning.task import HELD_OUT, FineTuning
from bert_jax.train.writers.base import Row


class LabelledText(NamedTuple):
    texts: tuple[str, ...]  # one or two
    label: Any  # name of a class, list of such names, or number as text
    place: str  # file and line, for messages


@dataclasses.dataclass(frozen=True)
class TextTask(FineTuning):
    """Base of the tasks on texts; they add `read`."""

    problem: str  # one of loss_terms.PROBLEMS
    score_names: tuple[str, ...]  # see scores.py; the first selects the best checkpoint by default
    labels: list[str]  # in the order of the logits; empty for regression
    class_weights: tuple[float, ...] = ()  # weight of each label in the loss; empty for equal weights

    @abc.abstractmethod
    def read(self, split: str) -> list[LabelledText]:
        """Reads all rows of a split."""

    @cached_property
    def held_out_rows(self) -> list[LabelledText]:
        return self.read(HELD_OUT)

    @cached_property
    def objectives(self) -> dict[str, Classification]:
        model, dropout = self.raw_config.model, self.raw_config.classifier_dropout
        if model.classifier == "pooled" and not model.pooler:
            raise UserError(
                "model.classifier='pooled' reads the pooled state; pretrain with model.pooler=True, or set it to 'tanh'"
            )
        num_outputs = max(1, len(self.labels))
        return {"classification": Classification(model, self.problem, num_outputs, dropout, self.class_weights)}

    @property
    def first_score(self) -> str:
        return self.score_names[0]

    def items(self, split: str) -> list[Item]:
        rows = self.held_out_rows if split == HELD_OUT else self.read(split)
        return self._items([row.texts for row in rows], self.targets(rows))

    def _items(self, texts: Sequence[tuple[str, ...]], targets: np.ndarray) -> list[Item]:
        length = self.raw_config.data.sequence_length
        columns = [self.tokenizer.encode(list(column)) for column in zip(*texts, strict=True)]
        tokens = [join_and_cut(self.tokenizer, length, segments) for segments in zip(*columns, strict=True)]
        return [Item(arrays, {"labels": target}) for arrays, target in zip(tokens, targets, strict=True)]

    def targets(self, rows: Sequence[LabelledText]) -> np.ndarray:
        """Returns class numbers int32 [N], 0 or 1 for each label float32 [N, C], or numbers float32 [N].

        Raises:
          UserError: a label is unknown or, in regression, not a finite number.
        """
        class_numbers = {label: number for number, label in enumerate(self.labels)}
        targets = list[Any]()
        for _, label, place in rows:
            try:
                if self.problem == "regression":
                    targets.append(np.float32(label))
                    if not np.isfinite(targets[-1]):
                        raise ValueError("infinite or NaN")
                elif self.problem == "multi_label":
                    targets.append(np.isin(np.arange(len(self.labels)), [class_numbers[part] for part in label]))
                else:
                    targets.append(class_numbers[label])
            except (KeyError, ValueError):
                known = "a number" if self.problem == "regression" else f"among {listed(self.labels)}"
                raise UserError(f"{place}: label {label!r} is not {known}; fix it") from None
        return np.array(targets, np.int32 if self.problem == "classification" else np.float32)

    def score_outputs(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Returns the scores on the held-out set, and files with a prediction per line.

        validation.jsonl also has the texts, the label of the data (a label, a list of them or a number) and the logits, in the
        order of the labels and before they are divided by the temperature.
        """
        gold = np.stack([item.values["labels"] for item in self.held_out_items])
        logits_NxC, predicted = self._predictions(outputs)
        row = self.score(gold, predicted)
        lines = [str(value) if self.problem == "regression" else ",".join(self._names(value)) for value in predicted]
        columns = [row.texts for row in self.held_out_rows], map(self._label, gold), map(self._label, predicted)
        fields = ("texts", "label", "predicted", "logits")
        rows = zip(*columns, logits_NxC.astype(float).round(5).tolist(), strict=True)
        content = b"".join(msgspec.json.encode(dict(zip(fields, row, strict=True))) + b"\n" for row in rows)
        files: dict[str, Any] = {
            f"{run_folder.PREDICTIONS}/validation.txt": "".join(f"{line}\n" for line in lines),
            f"{run_folder.PREDICTIONS}/validation.jsonl": content.decode(),  # NaN becomes null
        }
        if tunes and self.raw_config.calibrated:
            row["temperature"] = files[run_folder.TEMPERATURE] = best_temperature(logits_NxC, gold)
        return row, files

    def score(self, gold: np.ndarray, predicted: np.ndarray) -> Row:
        """Returns the scores of predictions; both arguments have the form of `targets`."""
        return {name: SCORES[name](gold, predicted) for name in self.score_names}

    def _predictions(self, outputs: list[Output]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits [N, C], and predictions in the form of `targets`."""
        logits_NxC = np.stack([output["logits"] for output in outputs])
        if self.problem == "regression":
            return logits_NxC, logits_NxC[:, 0]
        is_single = self.problem == "classification"
        return logits_NxC, logits_NxC.argmax(-1) if is_single else (logits_NxC > 0).astype(np.float32)

    def _names(self, predicted: Any) -> list[str]:
        """Returns the names of the predicted labels of an example, a class number or 0 or 1 for each label [C]."""
        return [self.labels[number] for number in (np.flatnonzero(predicted) if np.ndim(predicted) else [predicted])]

    def _label(self, target: Any) -> str | list[str] | float:
        """Returns what `target`, in the form of `targets`, is called in data and answers."""
        if self.problem == "regression":
            return float(target)
        return self._names(target) if self.problem == "multi_label" else self.labels[target]

    def prepare(self, inputs: list[dict[str, Any]]) -> Prepared:
        """Answers are {'label' or 'labels', 'probabilities': {label: probability}} or {'score': number}."""
        texts = [tuple(values[field] for field in self.input_fields) for values in inputs]
        shape = (len(texts), len(self.labels)) if self.problem == "multi_label" else len(texts)
        targets = np.zeros(shape, np.int32 if self.problem == "classification" else np.float32)
        return Prepared(self._items(texts, targets), self._answers)

    def _answers(self, outputs: list[Output]) -> list[Answer]:
        logits_NxC, predicted = self._predictions(outputs)
        if self.problem == "regression":
            return [{"score": float(number)} for number in predicted]
        is_single = self.problem == "classification"
        scaled_NxC = logits_NxC / self.temperature
        probabilities_NxC = special.softmax(scaled_NxC, axis=-1) if is_single else special.expit(scaled_NxC)
        answers = list[Answer]()
        for prediction, row in zip(predicted, probabilities_NxC.tolist(), strict=True):
            names, probabilities = self._names(prediction), dict(zip(self.labels, row, strict=True))
            label = {"label": names[0]} if is_single else {"labels": names}
            answers.append(label | {"probabilities": probabilities})
        return answers

    @property
    def summary(self) -> str:
        length, training, held_out = self.raw_config.data.sequence_length, self.training_items, self.held_out_items
        full = sum(item.length == length for item in (*training, *held_out))
        full_text = f"; {full:,} have the maximum of {length} tokens or are cut to it" if full else ""
        labels = f"; labels {listed(self.labels)}" if self.labels else ""
        return f"{len(training):,} texts to train on, {len(held_out):,} held out{full_text}{labels}"

    @property
    def files(self) -> dict[str, Any]:
        return {run_folder.LABELS: self.labels} if self.labels else {}


def join_and_cut(tokenizer: Tokenizer, length: int, segments: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Returns the token arrays of one or two texts, cut at their ends to `length` tokens in total."""
    space = length - tokenizer.num_special_tokens(len(segments))
    kept = (space,)
    if len(segments) == 2:
        kept = joining.kept_lengths(len(segments[0]), len(segments[1]), space)
    return joined(tokenizer, *(segment[:size] for segment, size in zip(segments, kept, strict=True)))
