"""Classification (one or several labels) and regression of your own texts or pairs, from JSON lines, TSV or CSV.

The labels are those in the training file and are kept in the run folder.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np

from bert_jax.data.datasets.tables import numbered_rows
from bert_jax.errors import UserError
from bert_jax.tasks.finetuning.labels import balanced_weights, check_classes, in_order, is_multi_hot, weights_in_order
from bert_jax.tasks.finetuning.loss_terms import PROBLEMS
from bert_jax.tasks.finetuning.options import FineTuningConfig, labels_for, split_path, temperature_for, tokenizer_for
from bert_jax.tasks.finetuning.task import TRAIN
from bert_jax.tasks.finetuning.texts import LabelledText, TextTask

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
    label_field: str = "label"  # for multi_label a list in .jsonl, or labels separated by commas
    sequence_length: int = 128  # tokens, including special tokens; longer texts are cut at their ends


@dataclasses.dataclass(frozen=True)
class Config(FineTuningConfig):
    task: str = "text"
    data: DataConfig = DataConfig()
    problem: str = "classification"  # or 'multi_label', 'regression'
    # Weights in the loss, by name ('rare=2.5,other=1', or JSON; the default is 1), in the order of the labels ('1,2.5'), or
    # 'balanced' for weights that make up for the frequencies of the classes. '': equal weights.
    class_weights: str = ""


@dataclasses.dataclass(frozen=True)
class Task(TextTask):
    """Task on texts (see finetuning/texts.py)."""

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        check_options(config)
        tokenizer = tokenizer_for(config, workdir)
        if config.problem == "regression":
            return cls(config, tokenizer, temperature_for(workdir), [])
        labels = labels_for(workdir, config.data.train)
        if not labels or config.class_weights == "balanced":
            row_labels = [row.label for row in read_rows(config, TRAIN)]
            if not labels:
                is_single = config.problem == "classification"
                labels = in_order(row_labels if is_single else itertools.chain.from_iterable(row_labels))
                check_classes(config.data.train, labels)
            if config.class_weights == "balanced":  # resolved here: evaluation does not have the training file
                numbers = np.array([labels.index(label) for label in row_labels if label in labels])
                balanced = dict(zip(labels, balanced_weights(numbers, len(labels)), strict=True))
                config = dataclasses.replace(config, class_weights=json.dumps(balanced, ensure_ascii=False))
        weights = weights_in_order(config.class_weights, labels)
        if len(labels) < (2 if config.problem == "classification" else 1):
            number = f"a single label, {labels[0]}" if labels else "no label"
            raise UserError(f"{config.data.train}: has {number}; there is nothing to classify")
        return cls(config, tokenizer, temperature_for(workdir), labels, weights)

    @property
    def problem(self) -> str:
        return self.raw_config.problem

    @property
    def score_names(self) -> tuple[str, ...]:
        return SCORE_NAMES[self.problem]

    @property
    def input_fields(self) -> tuple[str, ...]:
        data = self.raw_config.data
        return (data.text_field, data.second_field) if data.second_field else (data.text_field,)

    def read(self, split: str) -> list[LabelledText]:
        return read_rows(self.raw_config, split)


def check_options(config: Config) -> None:
    """Raises UserError for options that exclude each other."""
    if config.problem not in PROBLEMS:
        raise UserError(f"problem={config.problem!r} is not one of {', '.join(PROBLEMS)}")
    data = config.data
    if len({data.text_field, data.second_field, data.label_field}) < 3:
        raise UserError("data.text_field, data.second_field and data.label_field must be different fields")
    if config.class_weights and config.problem != "classification":
        raise UserError(f"class_weights: problem={config.problem} has no classes; leave it out")
    if config.calibrated and config.problem == "regression":
        raise UserError("calibrated: problem=regression has no probabilities; leave it out")


def read_rows(config: Config, split: str) -> list[LabelledText]:
    """Reads the rows of a split's file."""
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
                f"{place}: {lists[0]!r} is a list; give a single value, or use --config.problem=multi_label for lists of "
                "label names"
            )
        parts = label if isinstance(label, list) else label.split(",") if is_multi_label else [label]
        if is_multi_label and isinstance(label, str) and label.startswith("[") and label.endswith("]"):
            raise UserError(f"{place}: {label[:40]!r} is a list written as text; separate labels only by commas")
        parts = [part.strip() for part in parts]
        if not is_multi_label and not parts[0]:
            raise UserError(f"{place}: field {data.label_field!r} is empty; give the text a label")
        label = [part for part in parts if part] if is_multi_label else parts[0]
        labelled.append(LabelledText(tuple(row[field] for field in text_fields), label, place))
    if is_multi_label and is_multi_hot([row.label for row in labelled]):
        raise UserError(
            f"{path}: labels are 0 or 1 for each class, such as {labelled[0].label}; list the names of the classes instead"
        )
    return labelled
