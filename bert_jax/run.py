"""Puts a task, a mesh, an optimizer and a run folder together: what the commands call."""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bert_jax.cli.progress import TrainingProgress
from bert_jax.config import to_dict
from bert_jax.errors import UserError
from bert_jax.frozen_models import keep_frozen_models, with_frozen_models
from bert_jax.init_from import InitialModel, check_origin, inherited_state, open_initial_model
from bert_jax.model.attention.attend import check_attention
from bert_jax.model.build import count
from bert_jax.objectives.losses import Losses
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import batch_shards, make_mesh, with_shardings
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.provenance import write_start
from bert_jax.run_folder.resuming import check_same_run, warn_of_changes
from bert_jax.tasks import base as tasks
from bert_jax.tasks.common.evaluation import HeldOut, TrainingEvaluation
from bert_jax.tasks.common.training import compile_step, training_batches
from bert_jax.train.flops import flops_per_token, measured_matmul_flops, peak_flops
from bert_jax.train.ledger import Ledger
from bert_jax.train.loop import EXIT_STOPPED, Report, Stopped, TrainConfig, train
from bert_jax.train.placement import check_placement, largest_arrays
from bert_jax.train.schedules import whole_run
from bert_jax.train.step import State, Training
from bert_jax.train.throughput import Throughput
from bert_jax.train.watchdog import Watchdog
from bert_jax.train.writers import base as writers
from bert_jax.train.writers.base import Row
from bert_jax.train.writers.jsonl import METRICS, evaluations

logger = logging.getLogger(__name__)
CACHE = Path("~/.cache/bert_jax/compiled")


def train_command(values: Any, workdir: Path) -> None:
    """Calls `run_training` for the commands: a run that was told to stop ends with EXIT_STOPPED."""
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
    ledger = Ledger()
    task = tasks.create(values, workdir)
    config = task.config
    resolved = to_dict(config)
    mesh = make_mesh(config.parallel)
    check_same_run(workdir, resolved)
    use_compilation_cache(config.train.compilation_cache)

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        # ------------------------------------------------------------ mistakes are found before anything is written
        check(task, mesh)
        origin = initial_model(task, workdir)
        losses, frozen = with_frozen_models(task, mesh, workdir)
        training_at = trainings(losses, config, mesh)
        training = training_at(config.train.num_steps - 1)
        check_folder = stack.enter_context(hosts.locked_by_job(workdir, "use another --workdir"))

        # ------------------------------------------------------------------- the state: new, inherited or resumed
        store = CheckpointStore(workdir, config.checkpoint)
        first_step, state = starting_state(task, training, store, mesh, origin)
        warn_of_changes(workdir, resolved, task.training.effect_of_batch_size, first_step)
        evaluation = TrainingEvaluation.resume(HeldOut(task, losses, frozen, mesh), config, workdir, first_step)
        stop = hosts.stop_signal()
        if stop.requested():  # since the run before this one, of several seeds or tasks
            raise Stopped(first_step)
        is_complete = first_step >= config.train.num_steps or evaluation.is_over
        if hosts.is_first() and not (run_folder.exists(workdir) and is_complete):  # else it is as it was made
            claim_folder(task, workdir, resolved)
            write_start(workdir, first_step)
            stack.enter_context(ledger.opened(workdir, first_step))
        keep_frozen_models(losses, frozen, task.tokenizer, workdir)
        log_start(task, state, first_step, mesh)
        if is_complete:
            return log_end(workdir, config.train.num_steps, resolved)

        # ----------------------------------------------------------------------------------------- the training
        with ledger.spending("compiling"):
            evaluation.compile(first_step, state)
            run_step = compile_step(training_at, task.training, state, frozen, first_step, mesh)
        progress = stack.enter_context(TrainingProgress(first_step, config.train.num_steps, hosts.is_first()))
        watchdog = stack.enter_context(watched(workdir, config.train, ledger))
        names = config.train.writers if hosts.is_first() else ()
        opened_writers = stack.enter_context(writers.opened(names, workdir, first_step))
        throughput = Throughput(first_step, partial(model_flops, task), mesh_flops(mesh, config.model.dtype), ledger)
        stack.enter_context(hosts.interrupts_stop())
        stack.enter_context(ledger.spending("training"))
        train(
            config.train,
            first_step,
            state,
            run_step,
            training_batches(task.training, mesh, first_step),
            task.training.describe,
            evaluation,
            Checkpoints(store, resolved, check_folder),
            Report(opened_writers, throughput, ledger, (progress.update, watchdog.beat)),
            stop.requested,
            str(workdir / "profile"),
        )
    return log_end(workdir, config.train.num_steps, resolved)


# ----------------------------------------------------------------------------------------------------------------------
# The pieces
# ----------------------------------------------------------------------------------------------------------------------


def check(task: tasks.Task, mesh: Mesh) -> None:
    """Raises UserError for a model, data or an implementation of attention that does not fit, and for unknown writers."""
    check_placement(task.losses.model, mesh)
    task.evaluator.validate()
    task.training.validate(batch_shards(mesh))
    for shape in {phase.shape for phase in task.training.phases(batch_shards(mesh))}:
        check_attention(task.config.model, shape.length, shape.most > 1)
    writers.check_names(task.config.train.writers)


@contextlib.contextmanager
def watched(workdir: Path, config: TrainConfig, ledger: Ledger) -> Iterator[Watchdog]:
    """Watches the steps of a run, but no evaluations and checkpoints, while it is open."""

    def is_at_a_step() -> bool:
        return ledger.kind in ("training", "waiting")

    watchdog = Watchdog(workdir, jax.process_index(), config.hang_factor, config.hang_seconds, is_at_a_step)
    with watchdog.watching():
        yield watchdog


def use_compilation_cache(enabled: bool) -> None:
    """Keeps compiled programs for later processes, unless the environment already names a folder for them."""
    if enabled and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(CACHE.expanduser()))
        # The default is 1 s: predict's programs take less, and are most of its start-up time.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def initial_model(task: tasks.Task, workdir: Path) -> InitialModel | None:
    """Returns the model that a run starts from; None if it has checkpoints, or starts from fresh parameters.

    Raises:
      UserError: options contradict that model, or it cannot be read.
    """
    if (workdir / "checkpoints").is_dir() and CheckpointStore(workdir).steps():
        return None
    inherits = task.config.init_from and task.initialization.parts
    if not inherits:
        if task.config.init_layers or task.config.init_growth:
            raise UserError(
                "init_layers and init_growth choose what is taken from init_from, and nothing is; "
                "set --config.init_from=RUN_OR_MODEL, or leave both out"
            )
        return None
    origin = open_initial_model(run_folder.origin(task.config.init_from))
    check_origin(task, origin)
    return origin


def starting_state(
    task: tasks.Task, training: Training, store: CheckpointStore, mesh: Mesh, origin: InitialModel | None
) -> tuple[int, State]:
    """Returns the steps done, and the state of the newest checkpoint or a fresh one, with parameters of `origin`.

    Raises:
      UserError: the newest checkpoint is of a step after the end of the run, or as `CheckpointStore.restore`.
    """
    num_steps = task.config.train.num_steps
    if (steps := store.steps()) and steps[-1] > num_steps:
        remedy = "set it to more, or go back with tools/fork_run.py"
        raise UserError(f"train.num_steps={num_steps}: the run has done {steps[-1]} steps; {remedy}")
    if steps:
        return store.restore(with_shardings(jax.eval_shape(training.make_state), training.placed))
    state = training.make_state()
    return 0, state | (inherited_state(task, origin, state, mesh) if origin else {})


def trainings(losses: Losses, config: Any, mesh: Mesh) -> Callable[[int], Training]:
    """Returns a function from a step of the run to what it is trained with; phases may have other options of the model."""
    of_model = functools.cache(lambda model: Training.of(losses.for_model(model), config, mesh))
    return lambda step: of_model(config.model_at(step))


def claim_folder(task: tasks.Task, workdir: Path, resolved: dict[str, Any]) -> None:
    """Writes all but what training itself writes."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not run_folder.exists(workdir):  # what lies there now is left from a start that did not come to the config
        tasks.save_tokenizer(task.tokenizer, workdir)
    run_folder.write_files(workdir, task.files)
    run_folder.write_config(workdir, resolved)


def model_flops(task: tasks.Task, step: int, length: int) -> float:
    """Returns the operations per token of the encoder and its head in a step, without those of a generator or a teacher."""
    read, predicted = task.training.shares(step)
    return flops_per_token(task.config.model, length, predicted, read)


def mesh_flops(mesh: Mesh, dtype: str) -> float:
    """Returns the peak FLOP/s of all devices or, where none is known, what a product of matrices reaches."""
    device = mesh.local_devices[0]
    if (peak := peak_flops(device)) is not None:
        return peak * mesh.size
    # Virtual CPU devices share the cores, and the product uses all of them.
    return measured_matmul_flops(dtype, device) * jax.process_count()


def log_start(task: tasks.Task, state: State, first_step: int, mesh: Mesh) -> None:
    """Logs what is trained, on what, and how it is split over the devices."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    logger.info("%s", task.training.summary)
    parameters, steps = f"{count(state['params']):,}", task.config.train.num_steps
    logger.info("%s parameters, from step %d of %d, on %s", parameters, first_step, steps, axes)
    phases = task.training.phases(batch_shards(mesh))
    for number, phase in enumerate(phases, 1) if len(phases) > 1 else ():
        shape = f"{phase.shape.rows:,} rows of {phase.shape.length:,} tokens"
        logger.info("phase %d of %d, up to step %s: %s", number, len(phases), f"{phase.until_step:,}", shape)
    for piece in task.config.rate_pieces or (whole_run(task.config.optimizer, steps),):
        if piece.warmup_steps > piece.num_steps:
            message = "warmup_steps=%d of %d steps: the learning rate does not reach its peak; lower warmup_steps"
            logger.warning(message, piece.warmup_steps, piece.num_steps)
    for line in largest_arrays(task.losses.model, mesh) if hosts.is_first() else ():
        logger.info("%s", line)


def log_end(workdir: Path, num_steps: int, resolved: dict[str, Any]) -> Row:
    """Logs how a run came to its end; returns the evaluation of its default checkpoint."""
    logger.info("%s: %s", workdir, ended(num_steps, [step for step, _ in evaluations(workdir / METRICS)]))
    step, evaluation = default_evaluation(workdir, resolved)
    measured = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.items() if not name.endswith("/loss"))
    logger.info("held out, at step %d: %s", step, measured)
    return evaluation


def ended(num_steps: int, evaluated_steps: Sequence[int]) -> str:
    """Returns how a run with evaluations after these steps came to its end."""
    last_step = evaluated_steps[-1] if evaluated_steps else num_steps
    if last_step < num_steps:
        return f"stopped early, at step {last_step} of {num_steps}, as it got no better"
    return f"complete, {num_steps} steps"


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, as the loop sees them (see train/loop.py)."""

    store: CheckpointStore
    config: dict[str, Any]
    check_folder: Callable[[], None]

    @property
    def every(self) -> int:
        return self.config["checkpoint"]["every"]

    def save(self, step: int, state: State, metrics: Row) -> None:
        self.store.save(step, state, self.config, metrics)

    def wait(self) -> None:
        self.store.wait()

    def latest(self) -> int | None:
        return max(self.store.steps(), default=None)
