"""What tasks on whole texts, single or in pairs, have in common, wherever their rows come from.

Shapes: N examples, C classes.
"""

import abc
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from bert_jax.data import joining
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError, listed
from bert_jax.model.build import Params
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.finetuning.classification import Classification
from bert_jax.tasks.finetuning.packing import Item
from bert_jax.tasks.finetuning.scores import SCORES, best_temperature
from bert_jax.tasks.finetuning.task import FineTuning, Output
from bert_jax.train.writers.base import Row

TRAIN, HELD_OUT = "train", "validation"  # the splits


class LabelledText(NamedTuple):
    texts: tuple[str, ...]  # one or two
    label: Any  # a class or a number as text, or a list of classes
    place: str  # file and line, for messages


@dataclasses.dataclass(frozen=True)
class TextTask(FineTuning):
    """A task on texts; one file in tasks/ says where its rows come from (`read`) and what else is its own."""

    labels: list[str]  # in the order of the logits; none of a regression

    @property
    @abc.abstractmethod
    def problem(self) -> str:
        """One of classification.PROBLEMS."""

    @property
    @abc.abstractmethod
    def score_names(self) -> tuple[str, ...]:
        """See scores.py; the first one matters most."""

    @property
    def class_weights(self) -> tuple[float, ...]:
        """Of each label in the loss; none where all count alike."""
        return ()

    @abc.abstractmethod
    def read(self, split: str) -> list[LabelledText]:
        """All rows of a split."""

    @cached_property
    def objectives(self) -> dict[str, Classification]:
        given = self.given
        if given.model.classifier == "pooled" and not given.model.pooler:
            raise UserError(
                "model.classifier='pooled' reads the pooled state; pretrain with model.pooler=True, or set it to 'tanh'"
            )
        num_outputs = max(1, len(self.labels))
        loss = Classification(given.model, self.problem, num_outputs, given.classifier_dropout, self.class_weights)
        return {"classification": loss}

    @property
    def first_score(self) -> str:
        return self.score_names[0]

    # ------------------------------------------------------------------------------------------------------- examples

    @cached_property
    def training_items(self) -> list[Item]:
        return self._labelled_items(TRAIN)

    @cached_property
    def held_out_items(self) -> list[Item]:
        return self._labelled_items(HELD_OUT)

    def _labelled_items(self, split: str) -> list[Item]:
        rows = self.read(split)
        return self._items([row.texts for row in rows], self.targets(rows))

    def _items(self, texts: Sequence[tuple[str, ...]], targets: np.ndarray) -> list[Item]:
        length = self.given.data.sequence_length
        segments = zip(*(self.tokenizer.encode(list(column)) for column in zip(*texts, strict=True)), strict=True)
        tokens = [joined(self.tokenizer, length, of_example) for of_example in segments]
        return [Item(arrays, {"labels": target}) for arrays, target in zip(tokens, targets, strict=True)]

    def targets(self, rows: Sequence[LabelledText]) -> np.ndarray:
        """Class numbers int32 [N], 0 or 1 for each label float32 [N, C], or numbers float32 [N].

        Raises:
          UserError: a label that is not known, or none where a number must be.
        """
        number_of = {label: number for number, label in enumerate(self.labels)}
        found = list[Any]()
        for _, label, place in rows:
            try:
                if self.problem == "regression":
                    found.append(finite(label))
                elif self.problem == "multi_label":
                    found.append(np.isin(np.arange(len(self.labels)), [number_of[part] for part in label]))
                else:
                    found.append(number_of[label])
            except (KeyError, ValueError):
                known = "a number" if self.problem == "regression" else f"among {listed(self.labels)}"
                raise UserError(f"{place}: label {label!r} is not {known}; fix it") from None
        return np.array(found, np.int32 if self.problem == "classification" else np.float32)

    # ----------------------------------------------------------------------------------------- scores and predictions

    def judged(self, outputs: list[Output], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """The scores of the held-out data, and the predictions, a line for each row."""
        gold = np.stack([item.values["labels"] for item in self.held_out_items])
        predicted = self.predicted(outputs)
        row = self.score(gold, predicted)
        named = [str(number) if self.problem == "regression" else self.named(number) for number in predicted]
        files: dict[str, Any] = {f"{run_folder.PREDICTIONS}/validation.txt": "".join(f"{name}\n" for name in named)}
        if tunes and self.given.calibrated:
            logits_NxC = np.stack([output["logits"] for output in outputs])
            row["temperature"] = files[run_folder.TEMPERATURE] = best_temperature(logits_NxC, gold)
        return row, files

    def named(self, predicted: Any) -> str:
        """The label of a class number, or those of several, separated by commas."""
        if self.problem == "classification":
            return self.labels[predicted]
        return ",".join(self.labels[number] for number in np.flatnonzero(predicted))

    def score(self, gold: np.ndarray, predicted: np.ndarray) -> Row:
        """The scores of predictions for examples, both in the form of `targets`."""
        return {name: SCORES[name](gold, predicted) for name in self.score_names}

    def predicted(self, outputs: list[Output]) -> np.ndarray:
        """In the form of `targets`."""
        logits_NxC = np.stack([output["logits"] for output in outputs])
        if self.problem == "regression":
            return logits_NxC[:, 0]
        return logits_NxC.argmax(-1) if self.problem == "classification" else (logits_NxC > 0).astype(np.float32)

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each input {'label' or 'labels', 'probabilities': {label: probability}}, or {'score': number}."""
        texts = [tuple(values[field] for field in self.input_fields) for values in inputs]
        shape = (len(texts), len(self.labels)) if self.problem == "multi_label" else len(texts)
        items = self._items(texts, np.zeros(shape, np.int32 if self.problem == "classification" else np.float32))
        outputs = self.outputs_of(params, items)
        predicted = self.predicted(outputs)
        if self.problem == "regression":
            return [{"score": float(number)} for number in predicted]
        logits_NxC = np.stack([output["logits"] for output in outputs]) / self.temperature
        if self.problem == "classification":
            named = [{"label": self.labels[number]} for number in predicted]
            probabilities_NxC = special.softmax(logits_NxC, axis=-1)
        else:
            named = [{"labels": [self.labels[number] for number in np.flatnonzero(row)]} for row in predicted]
            probabilities_NxC = special.expit(logits_NxC)
        by_label = [dict(zip(self.labels, row, strict=True)) for row in probabilities_NxC.tolist()]
        return [name | {"probabilities": row} for name, row in zip(named, by_label, strict=True)]

    @property
    def summary(self) -> str:
        length = self.given.data.sequence_length
        full = sum(item.length == length for item in (*self.training_items, *self.held_out_items))
        of_full = f"; {full:,} fill the {length} tokens of an example or are cut to them" if full else ""
        of_labels = f"; labels {listed(self.labels)}" if self.labels else ""
        count, held_out = len(self.training_items), len(self.held_out_items)
        return f"{count:,} texts to train on, {held_out:,} held out{of_full}{of_labels}"

    @property
    def files(self) -> dict[str, Any]:
        return {run_folder.LABELS: self.labels} if self.labels else {}


def finite(label: str) -> np.float32:
    """A number. Raises ValueError for what is none, or infinite."""
    number = np.float32(label)
    if not np.isfinite(number):
        raise ValueError(f"{label!r} is no number")
    return number


def joined(tokenizer: Tokenizer, length: int, segments: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """One or two texts as the tokens of an example, cut at their ends to `length`."""
    special_tokens = tokenizer.num_special_tokens(len(segments))
    kept = [min(len(segments[0]), length - special_tokens)]
    if len(segments) == 2:
        kept = list(joining.kept_lengths(len(segments[0]), len(segments[1]), length - special_tokens))
    cut = [segment[:size] for segment, size in zip(segments, kept, strict=True)]
    example = joining.join(tokenizer, special_tokens + sum(kept), *cut)
    return {name: example[name] for name in ("input_ids", "token_type_ids")}
