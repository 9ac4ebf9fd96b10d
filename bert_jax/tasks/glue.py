"""The tasks of GLUE from their official files: texts with classes or, for STS-B, a number."""

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np

from bert_jax.data.datasets import glue
from bert_jax.errors import UserError, listed
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks.finetuning.options import FineTuningConfig, temperature_for, tokenizer_for
from bert_jax.tasks.finetuning.task import HELD_OUT
from bert_jax.tasks.finetuning.texts import LabelledText, TextTask
from bert_jax.train.writers.base import Row

FIELDS = ("text", "second_text")  # in the inputs of `predict`


@dataclasses.dataclass(frozen=True)
class DataConfig:
    name: str = ""  # CoLA, SST-2, ... (see data/datasets/glue.py)
    dir: str = ""  # folder with the official folders CoLA/, SST-2/ and so on; or tfds, or tfds:DATA_DIR
    sequence_length: int = 128  # tokens, including special tokens; longer texts are cut at their ends


@dataclasses.dataclass(frozen=True)
class Config(FineTuningConfig):
    task: str = "glue"
    data: DataConfig = DataConfig()
    # For glue.py:all: RTE, MRPC and STS-B start from MNLI (Liu et al. 2019, section 5.1).
    starts_from_mnli: bool = False


@dataclasses.dataclass(frozen=True)
class Task(TextTask):
    """Task on texts (see finetuning/texts.py). The held-out set is the development set or, for MNLI, both of them."""

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        if config.starts_from_mnli:
            raise UserError("starts_from_mnli: is for glue.py:all; for a single task set init_from to MNLI's run")
        labels = logit_labels(workdir, config.data.name)
        if config.calibrated and not labels:
            raise UserError(f"calibrated: {config.data.name} predicts a number, without a probability; leave it out")
        problem, scores = "classification" if labels else "regression", glue.task_of(config.data.name).scores
        return cls(config, tokenizer_for(config, workdir), temperature_for(workdir), problem, scores, labels)

    @property
    def glue_task(self) -> glue.GlueTask:
        return glue.task_of(self.raw_config.data.name)

    @property
    def input_fields(self) -> tuple[str, ...]:
        return FIELDS[: len(self.glue_task.texts)]

    def score(self, gold: np.ndarray, predicted: np.ndarray) -> Row:
        """Returns the scores on each development set; names of all but the first begin with 'SPLIT/'."""
        cuts = np.cumsum([len(rows) for rows in self._held_out])[:-1]
        prefixes = ["", *(f"{split}/" for split in self.glue_task.held_out[1:])]
        scores: Row = {}
        for prefix, *pair in zip(prefixes, np.split(gold, cuts), np.split(predicted, cuts), strict=True):
            scores |= {f"{prefix}{name}": value for name, value in super().score(*pair).items()}
        return scores

    def read(self, split: str) -> list[LabelledText]:
        if split == HELD_OUT:
            return [row for rows in self._held_out for row in rows]
        return self._rows(split)

    @cached_property
    def _held_out(self) -> list[list[LabelledText]]:
        return [self._rows(split) for split in self.glue_task.held_out]

    def _rows(self, split: str) -> list[LabelledText]:
        data = self.raw_config.data
        if not data.dir:
            raise UserError("data.dir is empty; set it to the folder with GLUE's official folders, or to tfds")
        rows = glue.read_split(data.dir, self.glue_task, split)
        return [LabelledText(row.texts, row.label, row.place) for row in rows]


def logit_labels(workdir: Path, name: str) -> list[str]:
    """Returns the labels of a task in the order of the logits, which imported runs define themselves.

    Raises:
      UserError: the run in `workdir` has other labels than the task.
    """
    official = list(glue.task_of(name).labels)
    labels = run_folder.read_value(workdir, run_folder.LABELS, official)
    if sorted(labels) != sorted(official):
        raise UserError(f"{workdir}: its labels are {listed(labels)}, those of {name} {listed(official) or 'a number'}")
    return labels
