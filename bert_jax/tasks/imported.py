"""Imported encoders whose heads belong to no task: to be fine-tuned, or loaded with `bert_jax.load`."""

import dataclasses
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Config:
    task: str = "imported"
    model: EncoderConfig = EncoderConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    init_from: str = ""


class Task:
    """Task without training, evaluation or prediction."""

    @classmethod
    def create(cls, config: Config, workdir: Path) -> Any:
        del config
        raise UserError(
            f"{workdir}: an imported encoder without a head for this; fine-tune it with --config.init_from={workdir}, or use "
            f"bert_jax.load('{workdir}')"
        )
