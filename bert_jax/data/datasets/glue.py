"""Reads the GLUE tasks (Wang et al. 2019) from their official TSV files or from TensorFlow Datasets.

One table has all differences between tasks. Quotes in the files have no meaning. Rows are always in the order of the
official files.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bert_jax.data.datasets.tables import tsv_lines
from bert_jax.data.text import read_text_lines
from bert_jax.errors import UserError, listed

logger = logging.getLogger(__name__)

BOTH = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")


class GlueTask(NamedTuple):
    """Files, columns, labels and scores of a task."""

    folder: str  # official name
    texts: tuple[str, ...]  # columns of the one or two texts
    label: str  # column
    labels: tuple[str, ...]  # as in the TSV files, in the order of the logits; () for regression
    scores: tuple[str, ...]  # see tasks/finetuning/scores.py; the first selects the best checkpoint
    tfds_texts: tuple[str, ...] = ()  # names in TFDS, if they are others
    held_out: tuple[str, ...] = ("dev",)  # splits with labels for evaluation
    other_submissions: tuple[tuple[str, str], ...] = ()  # see `submissions`
    no_header: tuple[str, ...] = ()  # splits without header, whose columns are `columns`
    columns: tuple[str, ...] = ()
    may_lack_columns: bool = False  # a few rows of the official train and dev files are truncated; they are skipped

    @property
    def submissions(self) -> tuple[tuple[str, str], ...]:
        """Pairs (split, file of the leaderboard's zip)."""
        return self.other_submissions or (("test", f"{self.folder}.tsv"),)


_SENTENCES, _PREMISE = ("sentence1", "sentence2"), ("premise", "hypothesis")
_INFERENCE = ("contradiction", "entailment", "neutral")
TASKS = {
    "CoLA": GlueTask(
        "CoLA", ("sentence",), "label", BOTH, ("matthews", "accuracy"),
        no_header=("train", "dev"), columns=("source", "label", "original_mark", "sentence"),
    ),
    "SST-2": GlueTask("SST-2", ("sentence",), "label", BOTH, ("accuracy",)),
    "MRPC": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", BOTH, ("f1", "accuracy"), _SENTENCES),
    "STS-B": GlueTask("STS-B", _SENTENCES, "score", (), ("spearman", "pearson")),
    "QQP": GlueTask("QQP", ("question1", "question2"), "is_duplicate", BOTH, ("f1", "accuracy"), may_lack_columns=True),
    "MNLI": GlueTask(
        "MNLI", _SENTENCES, "gold_label", _INFERENCE, ("accuracy",), _PREMISE, ("dev_matched", "dev_mismatched"),
        (("test_matched", "MNLI-m.tsv"), ("test_mismatched", "MNLI-mm.tsv")),
    ),
    "QNLI": GlueTask("QNLI", ("question", "sentence"), "label", ENTAILMENT, ("accuracy",)),
    "RTE": GlueTask("RTE", _SENTENCES, "label", ENTAILMENT, ("accuracy",)),
    "WNLI": GlueTask("WNLI", _SENTENCES, "label", BOTH, ("accuracy",)),
}  # fmt: skip
# The diagnostic set, predicted with a model for MNLI.
AX = GlueTask("AX", _SENTENCES, "label", _INFERENCE, ("matthews",), _PREMISE)
AX_FILES = ("AX/test.tsv", "AX/AX.tsv", "diagnostic/diagnostic.tsv", "AX.tsv", "diagnostic.tsv")


class GlueRow(NamedTuple):
    name: str  # the first column, or the index in TFDS
    texts: tuple[str, ...]
    label: str  # '' if the split has no labels
    place: str  # file and line, for messages


def task_of(name: str) -> GlueTask:
    """Returns a task by name. Raises UserError for an unknown name."""
    if name not in TASKS:
        raise UserError(f"data.name={name!r} is not a GLUE task; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def read_split(directory: str | Path, task: GlueTask, split: str) -> list[GlueRow]:
    """Reads the rows of a split: `train`, `dev`, `test_matched` ...

    Truncated rows, which the official train and dev files have, are skipped with a warning. Test files must be complete.

    Args:
      directory: the task's folder with `SPLIT.tsv`, or its parent; or `tfds` or `tfds:DATA_DIR` (see glue_tfds.py).
      task: an entry of `TASKS`, or `AX`.

    Raises:
      UserError: the file or dataset is missing, columns are not those of the task, or a row is truncated.
    """
    if (data_dir := _tfds_folder(directory)) is not None:
        from bert_jax.data.datasets import glue_tfds  # takes a second, and configs import this module

        name, texts = task.folder.lower().replace("-", ""), task.tfds_texts or task.texts
        examples = glue_tfds.read_examples(data_dir, name, texts, task.labels, split.replace("dev", "validation"))
        return [GlueRow(*row, place=f"glue/{name}: example {row[0]}") for row in examples]
    path = find_split(Path(directory), task, split)
    rows = list(_rows(path, task, split))
    if not rows:
        raise UserError(f"{path}: contains no rows; get the file again")
    return rows


def available(directory: str | Path) -> list[str]:
    """Returns the names of the tasks in a folder of official folders; for `tfds`, which downloads on demand, all."""
    if _tfds_folder(directory) is not None:
        return list(TASKS)
    return [name for name, task in TASKS.items() if (Path(directory) / task.folder / "train.tsv").is_file()]


def _tfds_folder(directory: str | Path) -> str | None:
    """Returns DATA_DIR for `tfds:DATA_DIR`, '' for `tfds`, and None for a folder of official files."""
    kind, _, data_dir = str(directory).partition(":")
    return data_dir if kind == "tfds" else None


def find_split(directory: Path, task: GlueTask, split: str) -> Path:
    """Returns the file of a split. Raises UserError if it is missing."""
    if task is AX:
        places = [directory / name for name in AX_FILES]
    else:
        places = [directory / task.folder / f"{split}.tsv"]
        # Labels show whether a file belongs to this task; test files have none, so the folder's name must.
        if directory.name == task.folder or split in ("train", *task.held_out):
            places.append(directory / f"{split}.tsv")
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{places[0]}: no such file; set --config.data.dir to the folder with {task.folder}/")


def _rows(path: Path, task: GlueTask, split: str) -> Iterator[GlueRow]:
    lines = tsv_lines(read_text_lines(path, "get it again"))
    header = list(task.columns) if split in task.no_header else next(lines, (0, []))[1]
    is_labelled = split in ("train", *task.held_out)
    has_label = is_labelled or task.label in header
    wanted = [*task.texts, task.label] if has_label else task.texts
    remedy = f"it is not a file of {task.folder}"
    if missing := [name for name in wanted if name not in header]:
        raise UserError(f"{path}: has no column {missing[0]!r}, only {listed(header)}; {remedy}")
    places = [header.index(name) for name in wanted]
    skipped = 0
    for number, line in lines:
        # Some official files have more columns than names, or rows that end early.
        if len(line) <= max(places) or (split in task.no_header and len(line) != len(header)):
            if task.may_lack_columns and is_labelled:
                skipped += 1
                continue
            raise UserError(f"{path}: line {number} has {len(line)} columns, not {len(header)}; get the file again")
        *texts, label = [line[place] for place in places] + ([] if has_label else [""])
        if is_labelled and task.labels and label not in task.labels:
            known = ", ".join(task.labels)
            raise UserError(f"{path}: line {number}: label {label!r} is not one of {known}; {remedy}")
        yield GlueRow(line[0], tuple(texts), label, f"{path}: line {number}")
    if skipped:
        logger.warning("%s: skipped %d truncated rows", path, skipped)
