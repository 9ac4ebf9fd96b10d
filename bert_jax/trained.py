"""Runs that have been trained: held-out metrics of their checkpoints, and their parameters for prediction."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

from bert_jax.config import to_dict
from bert_jax.errors import UserError
from bert_jax.frozen_models import with_frozen_models
from bert_jax.model.build import Params
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import ParallelConfig, make_mesh, shardings, with_shardings
from bert_jax.run import use_compilation_cache
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.default_checkpoint import chosen_params, default_step
from bert_jax.tasks import base as tasks
from bert_jax.tasks.common.evaluation import HeldOut
from bert_jax.train.placement import check_placement
from bert_jax.train.writers.base import Row

logger = logging.getLogger(__name__)


def run_evaluation(
    values: Any, workdir: Path, steps: list[int] | None, output: Path, tunes: bool = False
) -> dict[int, Row]:
    """Computes held-out metrics of a run's checkpoints.

    Args:
      values: config.
      workdir: of the run.
      steps: of the checkpoints; none for the default one, None for all.
      output: folder for the predictions of the default one; those of others go to evaluations/ in it.
      tunes: choose what prediction needs besides the parameters by these data, and keep it in the run; for one checkpoint.

    Raises:
      UserError: no sound checkpoint, data that do not fit, or nothing to tune.
    """
    task = tasks.create(values, workdir)
    use_compilation_cache(task.config.train.compilation_cache)
    mesh = available_mesh(task)
    store = CheckpointStore(workdir)
    with jax.set_mesh(mesh):
        losses, frozen = with_frozen_models(task, mesh, workdir)
        held_out = HeldOut(task, losses, frozen, mesh)
        if steps is not None:
            rows = {}
            wanted: list[int | None] = [*steps] or [default_step(workdir, to_dict(task.config), store.steps())]
            for step, params in (restore_params(task, store, mesh, step) for step in wanted):
                rows[step], files = held_out.scores(step, params, tunes)
                tuned = {name: files.pop(name) for name in run_folder.TUNED & files.keys()}
                if tunes and not tuned:
                    raise UserError("nothing to tune: set config.calibrated=True, or give questions without an answer")
                if hosts.is_first():
                    run_folder.write_files(workdir, tuned)
                    run_folder.write_files(output / "evaluations" / f"step_{step}" if steps else output, files)
            return rows
        results: dict[int, Row] = {}
        for step in store.steps():
            try:
                results[step], _ = held_out.scores(step, restore_params(task, store, mesh, step)[1], tunes=False)
            except UserError as error:  # the others can be evaluated all the same
                logger.warning("%s", error)
        if not results:
            raise UserError(f"{workdir}: holds no sound checkpoint; train first")
        return results


def load_predictor(values: Any, workdir: Path, step: int | None) -> tuple[tasks.Task, Params]:
    """Loads the task of a run and its parameters, from the checkpoint of `step` or the default one.

    Each process of a job has the parameters on its own devices, so that it can predict by itself.
    """
    task = tasks.create(values, workdir)
    mesh = available_mesh(task, jax.local_devices())
    store = CheckpointStore(workdir)
    step = default_step(workdir, to_dict(task.config), store.steps()) if step is None else step
    step, params = restore_params(task, store, mesh, step)
    model = task.config.model_at(max(0, step - 1))
    if model != task.config.model:  # of a phase of pretraining before the last one
        task = dataclasses.replace(cast(Any, task), losses=task.losses.for_model(model))
    return task, params


def available_mesh(task: tasks.Task, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of a run over `devices` (all by default), or plain data parallelism where they do not suffice for it.

    Raises:
      UserError: as check_placement.
    """
    try:
        mesh = make_mesh(task.config.parallel, devices)
    except UserError:
        return make_mesh(ParallelConfig(), devices)
    check_placement(task.losses.model, mesh)
    return mesh


def restore_params(task: tasks.Task, store: CheckpointStore, mesh: Mesh, step: int | None) -> tuple[int, Params]:
    """Returns the step and the parameters to evaluate (the EMA if there is one); for None of the newest intact checkpoint."""
    model = task.losses.model
    abstract = with_shardings(model.abstract, shardings(model.abstract, model.axes, mesh))
    name = chosen_params(to_dict(task.config))
    step, restored = store.restore({name: abstract}, step)
    return step, restored[name]
