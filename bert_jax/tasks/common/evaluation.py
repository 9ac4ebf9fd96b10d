"""Evaluation of a task on its held-out data, during training or afterwards."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.config import to_dict
from bert_jax.model.build import Params
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives.losses import FrozenParams, Losses
from bert_jax.parallel import hosts
from bert_jax.parallel.batches import local_rows, to_devices
from bert_jax.parallel.mesh import batch_sharding, batch_shards, replicated
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.default_checkpoint import Selection, chosen_params
from bert_jax.tasks.base import Evaluator, Task, TaskConfig
from bert_jax.train.step import EvalStep, State, make_eval_step
from bert_jax.train.writers.base import Row
from bert_jax.train.writers.jsonl import METRICS, evaluations


class HeldOut:
    """Evaluates parameters on the held-out data of a task."""

    def __init__(self, task: Task, losses: Losses, frozen: FrozenParams, mesh: Mesh):
        self._task, self._losses, self._frozen, self._mesh = task, losses, frozen, mesh
        self._sharding = batch_sharding(mesh)
        self._batch_size = -(-task.config.train.eval_batch_size // batch_shards(mesh)) * batch_shards(mesh)
        self._rows = local_rows(self._batch_size, 1, self._sharding)
        self._eval_step = functools.cache(self._jitted)

    def compile(self, first_step: int, params: Params) -> None:
        """Compiles the programs of all evaluations after `first_step`, so that none is compiled in the course of a run."""
        config, phases = self._task.config, self._task.training.phases(batch_shards(self._mesh))
        remaining = [phase.first_step for phase in phases if first_step < phase.until_step]
        steps = remaining if config.train.eval_every else remaining[-1:]
        for model in dict.fromkeys(map(config.model_at, steps)):
            for evaluator in (self._task.evaluator, *self._task.evaluator.others.values()):
                row = next(evaluator.batches(np.arange(1), self._batch_size))
                batch = {
                    name: jax.ShapeDtypeStruct(
                        (1, self._batch_size, *array.shape[1:]), array.dtype, sharding=self._sharding
                    )
                    for name, array in row.items()
                }
                self._eval_step(model).lower(params, self._frozen, batch).compile()  # jax keeps it for calls

    def scores(self, step: int, params: Params, tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Returns the held-out metrics after `step` steps, and files for the run folder.

        The files are those of tasks/base.py, `Evaluator.score_outputs`. Metrics on further held-out data are 'NAME/metric'.
        """
        evaluator = self._task.evaluator
        row, outputs = self._metrics(step, params, evaluator)
        scores, files = evaluator.score_outputs(outputs, tunes)
        for name, other in evaluator.others.items():
            row |= {f"{name}/{metric}": value for metric, value in self._metrics(step, params, other)[0].items()}
        return row | scores, files

    def _metrics(self, step: int, params: Params, evaluator: Evaluator) -> tuple[Row, list[dict[str, Any]]]:
        batches = (
            to_devices(batch, self._rows, self._batch_size, 1, self._sharding)
            for batch in evaluator.batches(self._rows, self._batch_size)
        )
        eval_step = self._eval_step(self._task.config.model_at(max(0, step - 1)))
        return mean_metrics(eval_step, params, self._frozen, batches, self._losses)

    def _jitted(self, model: EncoderConfig) -> Any:
        """Returns the step of evaluation for options of the model, replicated, as each process reads all outputs."""
        return jax.jit(make_eval_step(self._losses.for_model(model)), out_shardings=replicated(self._mesh))


@dataclasses.dataclass(frozen=True)
class TrainingEvaluation:
    """Evaluates the state of a run and selects the best evaluation (see train/loop.py, `Evaluation`)."""

    held_out: HeldOut
    selection: Selection
    params: str  # key of the state's entry that is evaluated
    workdir: Path

    @classmethod
    def resume(cls, held_out: HeldOut, config: TaskConfig, workdir: Path, first_step: int) -> "TrainingEvaluation":
        """Continues after `first_step` with the evaluations in the run folder, if any."""
        before = [(step, row) for step, row in evaluations(workdir / METRICS) if step <= first_step]
        selection = Selection(config.checkpoint.best_metric, config.train.patience, before)
        return cls(held_out, selection, chosen_params(to_dict(config)), workdir)

    @property
    def is_over(self) -> bool:
        return self.selection.is_over

    def compile(self, first_step: int, state: State) -> None:
        """Compiles what `measure` needs after `first_step`."""
        self.held_out.compile(first_step, state[self.params])

    def measure(self, step: int, state: State) -> tuple[Row, dict[str, Any]]:
        return self.held_out.scores(step, state[self.params], tunes=True)

    def select(self, step: int, row: Row, files: dict[str, Any]) -> bool:
        is_best = self.selection.add(step, row)
        if is_best and hosts.is_first():
            run_folder.write_files(self.workdir, files)
        return is_best


def mean_metrics(
    eval_step: EvalStep, params: Params, frozen: FrozenParams, batches: Iterable[Any], losses: Losses
) -> tuple[Row, list[dict[str, Any]]]:
    """Computes the means over batches of '<term>/<metric>', weighted by predictions, and the total 'loss'.

    Args:
      eval_step: see train/step.py, `make_eval_step`.
      params: of the model.
      frozen: parameters of the frozen models.
      batches: global batches.
      losses: the weights of the terms in the total, and the metrics derived from means.

    Returns:
      The metrics, and the outputs of each batch.
    """
    sums: Row = {}
    counts: Row = {}
    objective_of: dict[str, str] = {}
    outputs = []
    for batch in batches:
        means, normalizers, row_outputs = jax.device_get(eval_step(params, frozen, batch))
        outputs.append(row_outputs)
        in_batch = {term: float(n) for terms in normalizers.values() for term, n in terms.items()}
        objective_of |= {term: objective for objective, terms in normalizers.items() for term in terms}
        for term, number in in_batch.items():
            counts[term] = counts.get(term, 0.0) + number
        for name, mean in means.items():
            if name != "loss":
                sums[name] = sums.get(name, 0.0) + float(mean) * in_batch[name.split("/")[0]]
    row = {name: value / (counts[name.split("/")[0]] or 1.0) for name, value in sums.items()}
    objectives = losses.objectives
    loss = sum(objectives[name].weight_of(term) * row[f"{term}/loss"] for term, name in objective_of.items())
    return {"loss": loss, **row, **losses.derived(row)}, outputs
