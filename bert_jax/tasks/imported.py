"""An encoder that came from elsewhere with heads that no task here trains: to be fine-tuned or used as a library."""

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
    """There is nothing to train, evaluate or predict."""

    @classmethod
    def create(cls, config: Config, workdir: Path) -> Any:
        del config
        raise UserError(
            f"{workdir}: an imported encoder without a head for this; give it to another run as --config.init_from, "
            f"or use bert_jax.load('{workdir}')"
        )
