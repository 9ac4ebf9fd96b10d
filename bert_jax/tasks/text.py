"""Your own texts, single or in pairs, from JSON lines, TSV or CSV: classes, several labels at once, or a number.

The labels are those of the training file; they are kept in the run folder.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from bert_jax.data.datasets.tables import numbered_rows
from bert_jax.errors import UserError
from bert_jax.tasks.finetuning.classification import PROBLEMS, balanced_weights
from bert_jax.tasks.finetuning.labels import check_classes, in_order, is_multi_hot, parsed_weights, weights_in_order
from bert_jax.tasks.finetuning.options import (
    FineTuningConfig,
    labels_for,
    split_path,
    temperature_for,
    tokenizer_for,
)
from bert_jax.tasks.finetuning.texts import TRAIN, LabelledText, TextTask

SCORE_NAMES = {
    "classification": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1", "exact"),
    "regression": ("spearman", "pearson", "mean_squared_error"),
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # .jsonl, or .tsv or .csv with a header
    validation: str = ""
    text_field: str = "text"
    second_field: str = ""  # of the second text, for tasks on pairs
    label_field: str = "label"  # for multi_label a list in .jsonl, elsewhere labels separated by commas
    sequence_length: int = 128  # tokens, special tokens counted in; longer texts are cut at their end


@dataclasses.dataclass(frozen=True)
class Config(FineTuningConfig):
    task: str = "text"
    data: DataConfig = DataConfig()
    problem: str = "classification"  # or 'multi_label', 'regression'
    # Of each class in the loss: by name ('rare=2.5,other=1', or JSON; 1 for those not named), in the order of the labels
    # ('1,2.5'), or 'balanced', where each class counts as much as any other, however rare. '': all examples count alike.
    class_weights: str = ""


@dataclasses.dataclass(frozen=True)
class Task(TextTask):
    """See tasks/base.py."""

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        check(config)
        tokenizer = tokenizer_for(config, workdir)
        labels = [] if config.problem == "regression" else labels_for(workdir, config.data.train)
        if config.problem != "regression" and (not labels or config.class_weights == "balanced"):
            found = [row.label for row in read_rows(config, TRAIN)]
            of_all = {part for label in found for part in label} if config.problem == "multi_label" else set(found)
            if not labels:
                labels = in_order(of_all)
                check_classes(config.data.train, labels)
            if config.class_weights == "balanced":  # resolved here: evaluation does not have the training file
                numbers = np.array([labels.index(label) for label in found if label in labels])
                weights = dict(zip(labels, balanced_weights(numbers, len(labels)), strict=True))
                config = dataclasses.replace(config, class_weights=json.dumps(weights, ensure_ascii=False))
        fewest = {"classification": 2, "multi_label": 1, "regression": 0}[config.problem]
        if len(labels) < fewest:
            there = f"a single label, {labels[0]}" if labels else "no label"
            raise UserError(f"{config.data.train}: has {there}; there is nothing to tell apart")
        if config.class_weights:
            weights_in_order(config.class_weights, labels)
        return cls(config, tokenizer, temperature_for(workdir), labels)

    @property
    def problem(self) -> str:
        return self.given.problem

    @property
    def score_names(self) -> tuple[str, ...]:
        return SCORE_NAMES[self.problem]

    @property
    def class_weights(self) -> tuple[float, ...]:
        return weights_in_order(self.given.class_weights, self.labels) if self.given.class_weights else ()

    @property
    def input_fields(self) -> tuple[str, ...]:
        data = self.given.data
        return (data.text_field, data.second_field) if data.second_field else (data.text_field,)

    def read(self, split: str) -> list[LabelledText]:
        return read_rows(self.given, split)


def check(config: Config) -> None:
    """Raises UserError for options that do not go together."""
    if config.problem not in PROBLEMS:
        raise UserError(f"problem={config.problem!r} is not one of {', '.join(PROBLEMS)}")
    data = config.data
    if len({data.text_field, data.second_field, data.label_field}) < 3:
        raise UserError("data.text_field, data.second_field and data.label_field must be different fields")
    if config.class_weights and config.problem != "classification":
        raise UserError(f"class_weights: a {config.problem} has no classes; leave it out")
    if config.calibrated and config.problem == "regression":
        raise UserError("calibrated: a regression has no probabilities; leave it out")
    if config.class_weights not in ("", "balanced"):
        parsed_weights(config.class_weights)


def read_rows(config: Config, split: str) -> list[LabelledText]:
    """The rows of a file of the config."""
    data = config.data
    path = split_path(data, split)
    text_fields = [field for field in (data.text_field, data.second_field) if field]
    is_multi_label = config.problem == "multi_label"
    labelled = []
    for number, row in numbered_rows(path, [*text_fields, data.label_field]):
        label, place = row[data.label_field], f"{path}: line {number}"
        single = text_fields if is_multi_label else [*text_fields, data.label_field]
        if lists := [field for field in single if isinstance(row[field], list)]:
            raise UserError(
                f"{place}: {lists[0]!r} is a list; one label belongs there, or, for several at once, "
                "a list of their names with --config.problem=multi_label"
            )
        parts = label if isinstance(label, list) else label.split(",") if is_multi_label else [label]
        if is_multi_label and isinstance(label, str) and label.startswith("[") and label.endswith("]"):
            raise UserError(f"{place}: {label[:40]!r} is a list written as text; separate labels by commas alone")
        parts = [part.strip() for part in parts]
        if not is_multi_label and not parts[0]:
            raise UserError(f"{place}: field {data.label_field!r} is empty; give the text a label")
        label = [part for part in parts if part] if is_multi_label else parts[0]
        labelled.append(LabelledText(tuple(row[field] for field in text_fields), label, place))
    if is_multi_label and is_multi_hot([row.label for row in labelled]):
        raise UserError(
            f"{path}: its labels are 0 or 1 for each class, such as {labelled[0].label}; list the names of those that apply"
        )
    return labelled
