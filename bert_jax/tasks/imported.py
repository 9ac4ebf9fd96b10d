"""Imported encoders whose heads belong to no task: to be fine-tuned, or loaded with `bert_jax.load`."""

import dataclasses
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.base import TaskConfig


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    task: str = "imported"


class Task:
    """Task without training, evaluation or prediction."""

    @classmethod
    def create(cls, config: Config, workdir: Path) -> Any:
        del config
        remedy = f"fine-tune it with --config.init_from={workdir}, or use bert_jax.load('{workdir}')"
        raise UserError(f"{workdir}: an imported encoder without a head for this; {remedy}")
