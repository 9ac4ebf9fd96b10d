"""Evaluation of a task on its held-out data, in the middle of training or afterwards."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bert_jax.model.build import Params
from bert_jax.objectives.losses import FrozenParams, Losses
from bert_jax.parallel import hosts
from bert_jax.parallel.batches import local_rows, to_devices
from bert_jax.parallel.mesh import batch_sharding, batch_shards, replicated
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.default_checkpoint import Selection
from bert_jax.tasks.base import Task
from bert_jax.train.evaluation import mean_metrics
from bert_jax.train.state import State
from bert_jax.train.step import make_eval_step
from bert_jax.train.writers.base import Row


class HeldOut:
    """Evaluates parameters of a task."""

    def __init__(self, task: Task, losses: Losses, frozen: FrozenParams, mesh: Mesh):
        self._task, self._frozen, self._sharding = task, frozen, batch_sharding(mesh)
        self._batch_size = -(-task.config.train.eval_batch_size // batch_shards(mesh)) * batch_shards(mesh)
        self._rows = local_rows(self._batch_size, 1, self._sharding)
        # Every host reads all outputs.
        self._eval_step = jax.jit(make_eval_step(losses), out_shardings=replicated(mesh))
        self._loss_weights = {name: objective.options.weight for name, objective in losses.objectives.items()}

    def scores(self, params: Params, tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Computes the held-out metrics, and files for the run folder (see tasks/base.py, `Evaluator.scores`)."""
        batches = (
            to_devices(batch, self._rows, self._batch_size, 1, self._sharding)
            for batch in self._task.evaluator.batches(self._rows, self._batch_size)
        )
        row, outputs = mean_metrics(self._eval_step, params, self._frozen, batches, self._loss_weights)
        scores, files = self._task.evaluator.scores(outputs, tunes)
        return row | scores, files


@dataclasses.dataclass(frozen=True)
class TrainingEvaluation:
    """Evaluates the state of a run, and keeps which evaluation is the best (see train/loop.py, `Evaluation`)."""

    held_out: HeldOut
    selection: Selection
    params: str  # entry of the state that is evaluated
    workdir: Path

    @property
    def is_over(self) -> bool:
        return self.selection.is_over

    def measure(self, state: State) -> tuple[Row, dict[str, Any]]:
        return self.held_out.scores(state[self.params], tunes=True)

    def select(self, step: int, row: Row, files: dict[str, Any]) -> bool:
        is_best = self.selection.add(step, row)
        if is_best and hosts.is_first():
            run_folder.write_files(self.workdir, files)
        return is_best
