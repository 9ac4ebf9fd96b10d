"""Your own texts, single or in pairs, from JSON lines, TSV or CSV: classes, several labels at once, or a number.

The labels are those of the training file; they are kept in the run folder.
"""

import dataclasses
import json
from pathlib import Path

from bert_jax import run_folder
from bert_jax.data.tables import read_table
from bert_jax.errors import UserError
from bert_jax.tasks.finetuning.classification import PROBLEMS
from bert_jax.tasks.finetuning.options import FineTuningConfig
from bert_jax.tasks.finetuning.texts import HELD_OUT, TRAIN, LabelledText, TextTask

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
    class_weights: str = ""  # 'balanced': each class counts as much as any other, however rare


@dataclasses.dataclass(frozen=True)
class Task(TextTask):
    """See tasks/base.py."""

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        if config.problem not in PROBLEMS:
            raise UserError(f"problem={config.problem!r} is none of {', '.join(PROBLEMS)}")
        if config.class_weights not in ("", "balanced"):
            raise UserError(f"class_weights={config.class_weights!r} is neither '' nor 'balanced'")
        if config.class_weights and config.problem != "classification":
            raise UserError(f"class_weights: a {config.problem} has no classes; leave it out")
        labels = known_labels(config, workdir)
        weights = "" if run_folder.exists(workdir) and not Path(config.data.train).is_file() else config.class_weights
        return cls.build(config, workdir, config.problem, labels, SCORE_NAMES[config.problem], weights)

    @property
    def input_fields(self) -> tuple[str, ...]:
        data = self.config.data
        return (data.text_field, data.second_field) if data.second_field else (data.text_field,)

    def read(self, split: str) -> list[LabelledText]:
        return read_rows(self.config, split)


def read_rows(config: Config, split: str) -> list[LabelledText]:
    """The rows of a file of the config."""
    data = config.data
    path = getattr(data, split)
    if not path:
        raise UserError(f"data.{split} is empty; set both to .jsonl, .tsv or .csv files")
    text_fields = [field for field in (data.text_field, data.second_field) if field]
    rows = read_table(path, [*text_fields, data.label_field])
    labelled = []
    for number, row in enumerate(rows, 1):
        label = row[data.label_field]
        single = [*text_fields, *([] if config.problem == "multi_label" else [data.label_field])]
        if lists := [field for field in single if isinstance(row[field], list)]:
            raise UserError(
                f"{path}: row {number}: {lists[0]!r} is a list; only the labels of problem=multi_label may be"
            )
        if config.problem == "multi_label" and not isinstance(label, list):
            label = [part.strip() for part in label.split(",") if part.strip()]
        labelled.append(LabelledText(tuple(row[field] for field in text_fields), label))
    return labelled


def known_labels(config: Config, workdir: Path) -> list[str]:
    """The labels of a run, or for a new one those of the training file, sorted."""
    if config.problem == "regression":
        return []
    known = workdir / run_folder.LABELS
    if known.exists():
        return json.loads(known.read_text())
    labels = [row.label for row in read_rows(config, TRAIN)]
    read_rows(config, HELD_OUT)  # what is wrong with it is found first
    return sorted({part for label in labels for part in label} if config.problem == "multi_label" else set(labels))
