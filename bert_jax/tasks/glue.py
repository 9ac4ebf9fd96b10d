"""The tasks of GLUE from their official files; all of them are texts with classes or, STS-B, a number."""

import dataclasses
from pathlib import Path

import numpy as np

from bert_jax.data import glue
from bert_jax.errors import UserError
from bert_jax.tasks.finetuning.options import FineTuningConfig
from bert_jax.tasks.finetuning.texts import HELD_OUT, LabelledText, TextTask
from bert_jax.train.metrics import Row

FIELDS = ("text", "second_text")  # what the texts are called in the inputs of predict


@dataclasses.dataclass(frozen=True)
class DataConfig:
    name: str = ""  # CoLA, SST-2, ...: see data/glue.py
    dir: str = ""  # folder with the official folders CoLA/, SST-2/ and so on; or tfds, or tfds:DATA_DIR
    sequence_length: int = 128  # tokens, special tokens counted in; longer texts are cut at their end


@dataclasses.dataclass(frozen=True)
class Config(FineTuningConfig):
    task: str = "glue"
    data: DataConfig = DataConfig()


@dataclasses.dataclass(frozen=True)
class Task(TextTask):
    """See tasks/base.py. The held-out data is the development set; MNLI's is both of its own, one after the other."""

    @classmethod
    def create(cls, config: Config, workdir: Path) -> "Task":
        task = glue.task_of(config.data.name)
        problem = "classification" if task.labels else "regression"
        return cls.build(config, workdir, problem, list(task.labels), task.scores)

    @property
    def glue_task(self) -> glue.GlueTask:
        return glue.task_of(self.config.data.name)

    @property
    def input_fields(self) -> tuple[str, ...]:
        return FIELDS[: len(self.glue_task.texts)]

    def score(self, gold: np.ndarray, predicted: np.ndarray) -> Row:
        """Of several development sets the scores of each; the first one's have no other name."""
        first, *others = self.glue_task.held_out
        sizes = [len(glue.read_split(self.config.data.dir, self.glue_task, split)) for split in (first, *others)]
        cuts = np.cumsum(sizes)[:-1]
        parts = zip(
            ("", *(f"{split}/" for split in others)), np.split(gold, cuts), np.split(predicted, cuts), strict=True
        )
        return {
            f"{name}{score}": value for name, *pair in parts for score, value in super(Task, self).score(*pair).items()
        }

    def read(self, split: str) -> list[LabelledText]:
        if not self.config.data.dir:
            raise UserError("data.dir is empty; set it to the folder with GLUE's official folders, or to tfds")
        splits = self.glue_task.held_out if split == HELD_OUT else (split,)
        rows = [row for name in splits for row in glue.read_split(self.config.data.dir, self.glue_task, name)]
        return [LabelledText(row.texts, row.label) for row in rows]
