"""Puts a task, a mesh, an optimizer and a run folder together: what the commands call."""

import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from bert_jax.cli.progress import TrainingProgress
from bert_jax.config import to_dict
from bert_jax.errors import UserError
from bert_jax.init_from import check_origin, inherited
from bert_jax.model.build import Params, count
from bert_jax.parallel import hosts
from bert_jax.parallel.batches import BatchShape, local_rows, to_devices
from bert_jax.parallel.mesh import (
    ParallelConfig,
    batch_sharding,
    batch_shards,
    make_mesh,
    replicated,
    shardings,
    with_shardings,
)
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.default_checkpoint import Selection, chosen_params, default_evaluation, default_step
from bert_jax.run_folder.provenance import write_start
from bert_jax.run_folder.resuming import check_same_run, locked_by_job, warn_of_changes
from bert_jax.tasks import base as tasks
from bert_jax.train.evaluation import evaluate
from bert_jax.train.flops import flops_per_token, measured_matmul_flops, peak_flops
from bert_jax.train.loop import EXIT_STOPPED, Hooks, Stopped, train
from bert_jax.train.placement import check_placement, largest_arrays
from bert_jax.train.state import State
from bert_jax.train.step import make_eval_step
from bert_jax.train.throughput import Clock
from bert_jax.train.training import Training
from bert_jax.train.writers import MetricsWriter, Row, evaluations

logger = logging.getLogger(__name__)
CACHE = Path("~/.cache/bert_jax/compiled")


def train_command(values: Any, workdir: Path) -> None:
    """`run_training` for the commands: a run that was told to stop ends with EXIT_STOPPED."""
    try:
        run_training(values, workdir)
    except Stopped:
        sys.exit(EXIT_STOPPED)


def run_training(values: Any, workdir: Path) -> Row:
    """Trains the task of a ConfigDict, resuming the folder's run; returns the evaluation of its default checkpoint.

    Raises:
      Stopped: told to stop; the state is saved.
      UserError: whatever of the config, the data or the folder does not fit.
    """
    task = tasks.create(values, workdir)
    config = task.config
    mesh = make_mesh(config.parallel)
    resolved = to_dict(config)
    check_same_run(workdir, resolved)
    use_compilation_cache(config.train.compilation_cache)

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        # Errors are found before anything is written.
        check_placement(task.losses.model, mesh)
        held_out = held_out_evaluation(task, mesh)
        training_batches(task, mesh, 0)
        check_folder = stack.enter_context(locked_by_job(workdir))
        store = CheckpointStore(workdir, config.checkpoint)
        training = Training.of(task.losses, config, mesh)
        first_step, state = starting_state(task, training, store, mesh)
        warn_of_changes(workdir, resolved, task.meaning_of_batch_size, first_step)
        batches = training_batches(task, mesh, first_step)
        done = [(step, row) for step, row in evaluations(workdir / "metrics.jsonl") if step <= first_step]
        selection = Selection(config.checkpoint.best_metric, config.train.patience, done)
        stop = hosts.stop_signal()
        if stop.requested():  # since the run before this one, of several seeds or tasks
            raise Stopped(first_step)
        is_complete = first_step >= config.train.num_steps or selection.is_over
        if hosts.is_first() and not (run_folder.exists(workdir) and is_complete):  # else it is as it was made
            claim_folder(task, workdir, resolved)
            write_start(workdir, first_step)
        axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        logger.info("%s", task.summary)
        parameters, steps = f"{count(state['params']):,}", config.train.num_steps
        logger.info("%s parameters, from step %d of %d, on %s", parameters, first_step, steps, axes)

        for line in largest_arrays(task.losses.model, mesh) if hosts.is_first() else ():
            logger.info("%s", line)

        train_step, batches = compiled(training.step, state, batches)
        progress = TrainingProgress(first_step, config.train.num_steps, hosts.is_first())
        hooks = Hooks(
            check_folder=check_folder,
            evaluate=lambda state: held_out(state[chosen_params(resolved)], tunes=True),
            is_best=selection.add,
            write_files=lambda files: run_folder.write_files(workdir, files) if hosts.is_first() else None,
            is_over=lambda: selection.is_over,
            save=lambda step, state, metrics: store.save(step, state, resolved, metrics),
            wait_for_saves=store.wait,
            should_stop=stop.requested,
            describe_batch=task.describe_batch,
            last_checkpoint=lambda: max(store.steps(), default=None),
            progress=lambda done, row: progress.update(done, row["loss"]),
            profile_directory=str(workdir / "profile"),
        )
        clock = make_clock(task, mesh, first_step)
        writer = stack.enter_context(MetricsWriter(workdir, first_step, enabled=hosts.is_first()))
        with progress, hosts.interrupts_stop():
            train(config.train, config.checkpoint.every, train_step, state, first_step, batches, writer, clock, hooks)
    step, evaluation = default_evaluation(workdir, resolved)
    logger.info("%s: %s", workdir, ended(config.train.num_steps, evaluations(workdir / "metrics.jsonl")))
    measured = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.items() if not name.endswith("/loss"))
    logger.info("held out, at step %d: %s", step, measured)
    return evaluation


def run_evaluation(
    values: Any, workdir: Path, steps: list[int] | None, output: Path, tunes: bool = False
) -> dict[int, Row]:
    """Held-out metrics of a run's checkpoints.

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
        held_out = held_out_evaluation(task, mesh)
        if steps is not None:
            rows = {}
            wanted: list[int | None] = [*steps] or [default_step(workdir, to_dict(task.config), store.steps())]
            for step, params in (restore_params(task, store, mesh, step) for step in wanted):
                rows[step], files = held_out(params, tunes)
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
                results[step], _ = held_out(restore_params(task, store, mesh, step)[1], tunes=False)
            except UserError as error:  # the others can be evaluated all the same
                logger.warning("%s", error)
        if not results:
            raise UserError(f"{workdir}: holds no sound checkpoint; train first")
        return results


def load_predictor(values: Any, workdir: Path, step: int | None) -> tuple[tasks.Task, Params]:
    """The task of a run and its parameters, of the checkpoint of `step` or the default one."""
    task = tasks.create(values, workdir)
    mesh = available_mesh(task)
    store = CheckpointStore(workdir)
    step = default_step(workdir, to_dict(task.config), store.steps()) if step is None else step
    return task, restore_params(task, store, mesh, step)[1]


def ended(num_steps: int, found: Sequence[tuple[int, Row]]) -> str:
    """How a run with these evaluations came to its end."""
    last_step = found[-1][0] if found else num_steps
    if last_step < num_steps:
        return f"stopped early, at step {last_step} of {num_steps}, as it got no better"
    return f"complete, {num_steps} steps"


# ----------------------------------------------------------------------------------------------------------------------
# The pieces
# ----------------------------------------------------------------------------------------------------------------------


def use_compilation_cache(enabled: bool) -> None:
    """Keeps compiled programs for later processes, unless the environment already names a folder for them."""
    if enabled and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(CACHE.expanduser()))
        # The default is 1 s: predict's programs take less, and are most of its start-up time.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def starting_state(task: tasks.Task, training: Training, store: CheckpointStore, mesh: Mesh) -> tuple[int, State]:
    """Returns the steps done, and the state of the newest checkpoint or a fresh one."""
    if store.steps():
        return store.restore(with_shardings(jax.eval_shape(training.make_state), training.placed))
    inherits = task.config.init_from and task.inherited
    if inherits:
        check_origin(task)  # before anything is compiled
    state = training.make_state()
    return 0, state | (inherited(task, state, mesh) if inherits else {})


def available_mesh(task: tasks.Task) -> Mesh:
    """Returns the mesh of a run, or plain data parallelism without the devices for it. Raises UserError as check_placement."""
    try:
        mesh = make_mesh(task.config.parallel)
    except UserError:
        return make_mesh(ParallelConfig())
    check_placement(task.losses.model, mesh)
    return mesh


def restore_params(task: tasks.Task, store: CheckpointStore, mesh: Mesh, step: int | None) -> tuple[int, Params]:
    """The step and the parameters to evaluate, of the newest sound checkpoint for None: the average where there is one."""
    model = task.losses.model
    abstract = with_shardings(model.abstract, shardings(model.abstract, model.axes, mesh))
    name = chosen_params(to_dict(task.config))
    step, restored = store.restore({name: abstract}, step)
    return step, restored[name]


def claim_folder(task: tasks.Task, workdir: Path, resolved: dict[str, Any]) -> None:
    """Writes all but what training itself writes."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not run_folder.exists(workdir):  # what lies there now is left from a start that did not come to the config
        tasks.save_tokenizer(task.tokenizer, workdir)
    run_folder.write_files(workdir, task.files)
    run_folder.write_config(workdir, resolved)


def training_batches(task: tasks.Task, mesh: Mesh, first_step: int) -> Iterator[dict[str, jax.Array]]:
    """Global batches [A, B, ...] from a step on."""
    accumulation_steps, sharding = task.config.train.accumulation_steps, batch_sharding(mesh)
    shape = batch_shape(task, mesh)
    rows = local_rows(shape.rows, accumulation_steps, sharding)
    batches = task.training_batches(shape, rows, first_step)  # now, and not at the first batch: it finds what is wrong
    return (to_devices(batch, rows, shape.rows, accumulation_steps, sharding) for batch in batches)


def batch_shape(task: tasks.Task, mesh: Mesh) -> BatchShape:
    """The shape of the training batches, whose rows microbatches and devices share."""
    return task.batch_shape(task.config.train.accumulation_steps * batch_shards(mesh))


def compiled(train_step: Any, state: State, batches: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    """The step compiled for the first of the batches, and the batches.

    Processes that compile for unequal times meet here: a first collective in the step would not wait for long.
    """
    for first in batches:
        step = train_step.lower(state, first).compile()
        hosts.meet("training step compiled")
        return step, itertools.chain([first], batches)
    return train_step, batches


class Evaluation(Protocol):
    def __call__(self, params: Params, tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Held-out metrics of parameters, and files for the run folder (see tasks/base.py, `results`)."""


def held_out_evaluation(task: tasks.Task, mesh: Mesh) -> Evaluation:
    """A function that evaluates parameters on the task's held-out data."""
    sharding = batch_sharding(mesh)
    batch_size = -(-task.config.train.eval_batch_size // batch_shards(mesh)) * batch_shards(mesh)
    rows = local_rows(batch_size, 1, sharding)
    eval_step = jax.jit(make_eval_step(task.losses), out_shardings=replicated(mesh))  # every host reads all outputs
    loss_weights = {name: objective.options.weight for name, objective in task.losses.objectives.items()}
    task.evaluation_batches(rows, batch_size)  # finds what is wrong now, and not when there is much to lose

    def run(params: Params, tunes: bool) -> tuple[Row, dict[str, Any]]:
        local = task.evaluation_batches(rows, batch_size)
        batches = (to_devices(batch, rows, batch_size, 1, sharding) for batch in local)
        row, outputs = evaluate(eval_step, params, batches, loss_weights)
        scores, files = task.results(outputs, tunes)
        return row | scores, files

    return run


def make_clock(task: tasks.Task, mesh: Mesh, first_step: int) -> Clock:
    """Rates in tokens and in the model's FLOP/s, against the devices' peak or, where none is known, a measured product."""
    config = task.config
    shape = batch_shape(task, mesh)
    tokens = shape.rows * shape.length
    device = jax.local_devices()[0]
    peak = peak_flops(device)
    if peak is None:
        # Virtual CPU devices share the cores, and the product uses all of them.
        peak = measured_matmul_flops(config.model.dtype) * jax.process_count()
    else:
        peak *= jax.device_count()
    return Clock(first_step, tokens, tokens * flops_per_token(config.model, shape.length, task.predicted_share), peak)
