"""Classification (one or several labels) and regression of your own texts or pairs, from JSON lines, TSV or CSV.

The labels are those in the training file and are kept in the run folder.
"""

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert_jax.data.datasets.tables import numbered_rows
from bert_jax.errors import UserError, listed
from bert_jax.files import decode_json
from bert_jax.tasks.finetuning import options
from bert_jax.tasks.finetuning.loss_terms import PROBLEMS
from bert_jax.tasks.finetuning.task import TRAIN
from bert_jax.tasks.finetuning.texts import LabelledText, TextTask

logger = logging.getLogger(__name__)
SCORE_NAMES = {
    "classification": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1", "exact"),
    "regression": ("spearman", "pearson", "mean_squared_error"),
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train: str = ""  # .jsonl, or .tsv or .csv with a header
    validation: str = ""  # held-out texts, in the same format
    text_field: str = "text"  # of the text
    second_field: str = ""  # of the second text, for tasks on pairs
    label_field: str = "label"  # for multi_label a list in .jsonl, or labels separated by commas
    sequence_length: int = 128  # tokens, including special tokens; longer texts are cut at their ends


@dataclasses.dataclass(frozen=True)
class Config(options.FineTuningConfig):
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
        tokenizer, temperature = options.tokenizer_for(config, workdir), options.temperature_for(workdir)
        problem, scores = config.problem, SCORE_NAMES[config.problem]
        if problem == "regression":
            return cls(config, tokenizer, temperature, problem, scores, [])
        labels = options.labels_for(workdir, config.data.train)
        if not labels or config.class_weights == "balanced":
            row_labels = [row.label for row in read_rows(config, TRAIN)]
            if not labels:
                is_single = problem == "classification"
                labels = options.in_order(row_labels if is_single else itertools.chain.from_iterable(row_labels))
                check_classes(config.data.train, labels)
            if config.class_weights == "balanced":  # resolved here: evaluation does not have the training file
                numbers = np.array([labels.index(label) for label in row_labels if label in labels])
                balanced = dict(zip(labels, balanced_weights(numbers, len(labels)), strict=True))
                config = dataclasses.replace(config, class_weights=json.dumps(balanced, ensure_ascii=False))
        weights = weights_in_order(config.class_weights, labels)
        if len(labels) < (2 if problem == "classification" else 1):
            number = f"a single label, {labels[0]}" if labels else "no label"
            raise UserError(f"{config.data.train}: has {number}; there is nothing to classify")
        return cls(config, tokenizer, temperature, problem, scores, labels, weights)

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
    path = options.split_path(data, split)
    text_fields = [field for field in (data.text_field, data.second_field) if field]
    is_multi_label = config.problem == "multi_label"
    labelled = []
    for number, row in numbered_rows(path, [*text_fields, data.label_field]):
        label, place = row[data.label_field], f"{path}: line {number}"
        single = text_fields if is_multi_label else [*text_fields, data.label_field]
        if lists := [field for field in single if isinstance(row[field], list)]:
            remedy = "give a single value, or use --config.problem=multi_label for lists of label names"
            raise UserError(f"{place}: {lists[0]!r} is a list; {remedy}")
        parts = label if isinstance(label, list) else label.split(",") if is_multi_label else [label]
        if is_multi_label and isinstance(label, str) and label.startswith("[") and label.endswith("]"):
            raise UserError(f"{place}: {label[:40]!r} is a list written as text; separate labels only by commas")
        parts = [part.strip() for part in parts]
        if not is_multi_label and not parts[0]:
            raise UserError(f"{place}: field {data.label_field!r} is empty; give the text a label")
        label = [part for part in parts if part] if is_multi_label else parts[0]
        labelled.append(LabelledText(tuple(row[field] for field in text_fields), label, place))
    if is_multi_label and is_multi_hot([row.label for row in labelled]):
        remedy = "list the names of the classes instead"
        raise UserError(f"{path}: labels are 0 or 1 for each class, such as {labelled[0].label}; {remedy}")
    return labelled


def check_classes(path: str, labels: Sequence[str]) -> None:
    """Warns of classes that look like regression targets. Raises UserError if a number is written in two ways."""
    if twice := [label for label in labels if f"{label}.0" in labels]:
        raise UserError(f"{path}: has the labels {twice[0]} and {twice[0]}.0; write the number in one way")
    decimals = [label for label in labels if options.is_number(label) and not float(label).is_integer()]
    if decimals and all(map(options.is_number, labels)):
        message = "%s: labels are numbers such as %s, used as %d classes; to predict numbers, set problem=regression"
        logger.warning(message, path, decimals[0], len(labels))


def is_multi_hot(labels: Sequence[Sequence[str]]) -> bool:
    """Returns whether labels are lists of 0 or 1 for several classes, instead of lists of names."""
    sizes = set(map(len, labels))
    return len(sizes) == 1 and sizes.pop() > 1 and {part for label in labels for part in label} <= {"0", "1"}


def balanced_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Returns N / (C * number of examples) for each class, as scikit-learn's class_weight='balanced'."""
    counts = np.bincount(labels, minlength=num_classes)
    return tuple((len(labels) / (num_classes * np.maximum(counts, 1))).tolist())


def weights_in_order(text: str, labels: Sequence[str]) -> tuple[float, ...]:
    """Returns the class weight of each label, 1 for labels that are not named; none for an empty text.

    The text is '1,2.5', in the order of the labels; 'name=2.5,other=1'; or '{"name": 2.5}', JSON, for names with commas.

    Raises:
      UserError: another form, a weight that is not a finite number above 0, an unknown name, or too few or many weights.
    """
    if not text:
        return ()
    weights = _parsed_weights(text)
    if isinstance(weights, dict):
        if unknown := [name for name in weights if name not in labels]:
            raise UserError(f"class_weights: {unknown[0]!r} is not among the labels {listed(labels)}; name one of them")
        return tuple(weights.get(label, 1.0) for label in labels)
    if len(weights) != len(labels):
        raise UserError(f"class_weights={text}: the labels are {', '.join(labels)}; give one weight for each")
    return tuple(weights)


def _parsed_weights(text: str) -> dict[str, float] | list[float]:
    try:
        weights: dict[str, float] | list[float]
        if text.startswith("{"):
            weights = decode_json(text, dict[str, float])
        elif "=" in text:
            pairs = [part.rpartition("=") for part in text.split(",")]
            weights = {name.strip(): float(weight) for name, _, weight in pairs}
            if "" in weights or len(weights) < len(pairs):
                raise ValueError("missing or repeated name")
        else:
            weights = list(map(float, text.split(",")))
        numbers = weights.values() if isinstance(weights, dict) else weights
        if not all(0 < weight < math.inf for weight in numbers):
            raise ValueError("not a finite number above 0")
        return weights
    except ValueError:
        remedy = "give them by name ('name=2.5,other=1'), or one for each label in their order"
        raise UserError(f"class_weights={text!r} is neither 'balanced' nor numbers above 0: {remedy}") from None
