"""The GLUE tasks (Wang et al. 2019), in their official folders of TSV files or as TensorFlow datasets.

One table says all that differs between them. Quotes within the files are text. Rows are in the order of the official files
wherever they come from.
"""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bert_jax.data.datasets.tables import tsv_lines
from bert_jax.data.text import read_lines
from bert_jax.errors import UserError, listed

logger = logging.getLogger(__name__)

BOTH = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """What the files of a task are, what is predicted and how it is scored."""

    folder: str  # the official one
    texts: tuple[str, ...]  # columns of the one or two texts
    label: str  # column
    labels: tuple[str, ...]  # as they stand in the TSV files, in the order of the logits; () for a number
    scores: tuple[str, ...]  # see tasks/finetuning/scores.py; the first one chooses the best checkpoint
    tfds: str  # name in the collection glue/
    tfds_texts: tuple[str, ...]
    submissions: tuple[tuple[str, str], ...]  # (split, file of the leaderboard's zip)
    held_out: tuple[str, ...] = ("dev",)  # splits with labels to be measured on
    no_header: tuple[str, ...] = ()  # splits whose columns are `columns`
    columns: tuple[str, ...] = ()
    may_lack_columns: bool = False  # a few rows of the official train and dev are cut short; they are left out


def _test(name: str) -> tuple[tuple[str, str], ...]:
    return (("test", f"{name}.tsv"),)


_SENTENCES = ("sentence1", "sentence2")
TASKS = {
    "CoLA": GlueTask(
        "CoLA", ("sentence",), "label", BOTH, ("matthews", "accuracy"), "cola", ("sentence",), _test("CoLA"),
        no_header=("train", "dev"), columns=("source", "label", "original_mark", "sentence"),
    ),
    "SST-2": GlueTask("SST-2", ("sentence",), "label", BOTH, ("accuracy",), "sst2", ("sentence",), _test("SST-2")),
    "MRPC": GlueTask(
        "MRPC", ("#1 String", "#2 String"), "Quality", BOTH, ("f1", "accuracy"), "mrpc", _SENTENCES, _test("MRPC")
    ),
    "STS-B": GlueTask("STS-B", _SENTENCES, "score", (), ("spearman", "pearson"), "stsb", _SENTENCES, _test("STS-B")),
    "QQP": GlueTask(
        "QQP", ("question1", "question2"), "is_duplicate", BOTH, ("f1", "accuracy"), "qqp", ("question1", "question2"),
        _test("QQP"), may_lack_columns=True,
    ),
    "MNLI": GlueTask(
        "MNLI", _SENTENCES, "gold_label", ("contradiction", "entailment", "neutral"), ("accuracy",), "mnli",
        ("premise", "hypothesis"), (("test_matched", "MNLI-m.tsv"), ("test_mismatched", "MNLI-mm.tsv")),
        held_out=("dev_matched", "dev_mismatched"),
    ),
    "QNLI": GlueTask(
        "QNLI", ("question", "sentence"), "label", ENTAILMENT, ("accuracy",), "qnli", ("question", "sentence"), _test("QNLI")
    ),
    "RTE": GlueTask("RTE", _SENTENCES, "label", ENTAILMENT, ("accuracy",), "rte", _SENTENCES, _test("RTE")),
    "WNLI": GlueTask("WNLI", _SENTENCES, "label", BOTH, ("accuracy",), "wnli", _SENTENCES, _test("WNLI")),
}  # fmt: skip
# The diagnostic set: predicted by a model of MNLI.
AX = GlueTask(
    "AX", _SENTENCES, "label", TASKS["MNLI"].labels, ("matthews",), "ax", ("premise", "hypothesis"), _test("AX")
)
AX_FILES = ("AX/test.tsv", "AX/AX.tsv", "diagnostic/diagnostic.tsv", "AX.tsv", "diagnostic.tsv")


class GlueRow(NamedTuple):
    name: str  # of a test example: the first column, or its number in TFDS
    texts: tuple[str, ...]
    label: str  # '' where the split has none
    place: str  # file and line, for messages


def task_of(name: str) -> GlueTask:
    """The task of a name. Raises UserError for an unknown one."""
    if name not in TASKS:
        raise UserError(f"data.name={name!r} is no GLUE task; there are {', '.join(TASKS)}")
    return TASKS[name]


def read_split(directory: str | Path, task: GlueTask, split: str) -> list[GlueRow]:
    """The rows of a split. Of train and dev, rows that are cut short as in the official files are counted, reported and left
    out; of test sets none may be, for the leaderboard counts them.

    Args:
      directory: with the file `SPLIT.tsv` in the task's folder, which it holds or is; or `tfds` or `tfds:DATA_DIR`, for the
        TensorFlow dataset (see glue_tfds.py).
      task: of the table above.
      split: `train`, `dev`, `test_matched` and so on.

    Raises:
      UserError: no such file, columns that are not the task's, or a row with too few of them; or no such dataset.
    """
    if (data_dir := _tfds_folder(directory)) is not None:
        from bert_jax.data.datasets.glue_tfds import (
            read_rows,  # not above: it takes a second, and configs read the table
        )

        names = task.tfds, task.tfds_texts, task.labels
        found = read_rows(data_dir, *names, split.replace("dev", "validation"))
        return [GlueRow(*row, place=f"glue/{task.tfds}: example {row[0]}") for row in found]
    path = find_split(Path(directory), task, split)
    rows = list(_rows(path, task, split))
    if not rows:
        raise UserError(f"{path}: holds no rows; get the file again")
    return rows


def available(directory: str | Path) -> list[str]:
    """The names of the tasks that a folder of official folders holds; for `tfds`, which prepares what is missing, all."""
    if _tfds_folder(directory) is not None:
        return list(TASKS)
    return [name for name, task in TASKS.items() if (Path(directory) / task.folder / "train.tsv").is_file()]


def _tfds_folder(directory: str | Path) -> str | None:
    """DATA_DIR of `tfds:DATA_DIR`, '' of `tfds`; None for a folder of official files."""
    kind, _, data_dir = str(directory).partition(":")
    return data_dir if kind == "tfds" else None


def find_split(directory: Path, task: GlueTask, split: str) -> Path:
    """The file of a split. Raises UserError where there is none."""
    if task is AX:
        places = [directory / name for name in AX_FILES]
    else:
        places = [directory / task.folder / f"{split}.tsv"]
        # By the labels it is seen whether a file is of this task; those of a test set are not there.
        if directory.name == task.folder or split in ("train", *task.held_out):
            places.append(directory / f"{split}.tsv")
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{places[0]}: no such file; set --config.data.dir to the folder that holds {task.folder}/")


def _rows(path: Path, task: GlueTask, split: str) -> Iterator[GlueRow]:
    lines = tsv_lines(read_lines(path, "get it again"))
    header = list(task.columns) if split in task.no_header else next(lines, (0, []))[1]
    has_label = task.label in header
    wanted = [*task.texts, *([task.label] if has_label else [])]
    if is_labelled := split in ("train", *task.held_out):
        wanted = [*task.texts, task.label]
    if missing := [name for name in wanted if name not in header]:
        raise UserError(f"{path}: has no column {missing[0]!r}, only {listed(header)}; it is not {task.folder}'s")
    places = [header.index(name) for name in wanted]
    may_lack_columns = task.may_lack_columns and is_labelled
    left_out = 0
    for number, line in lines:
        # Some official files have more columns than names, or rows that end early.
        if len(line) <= max(places) or (split in task.no_header and len(line) != len(header)):
            if may_lack_columns:
                left_out += 1
                continue
            raise UserError(f"{path}: line {number} has {len(line)} columns, not {len(header)}; get the file again")
        *texts, last = [line[place] for place in places] + ([] if has_label else [""])
        if is_labelled and task.labels and last not in task.labels:
            known = ", ".join(task.labels)
            raise UserError(
                f"{path}: line {number}: label {last!r} is not one of {known}; it is not {task.folder}'s file"
            )
        yield GlueRow(line[0], tuple(texts), last, f"{path}: line {number}")
    if left_out:
        logger.warning("%s: %d rows left out, which are cut short", path, left_out)
