"""The only training loop: pretraining and fine-tuning run through it. It reads from top to bottom."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.errors import UserError
from bert_jax.train.throughput import Clock
from bert_jax.train.writers import MetricsWriter, Row

logger = logging.getLogger(__name__)
EXIT_STOPPED = 75  # exit code of a run that was told to stop and saved: EX_TEMPFAIL of sysexits.h, "try again"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_steps: int = 1_000_000
    batch_size: int = 256  # sequences of a step, over all devices and microbatches
    accumulation_steps: int = 1  # microbatches of a step, one after the other
    seed: int = 0  # of initialisation, data order, masks and dropout
    ema_decay: float = 0.0  # of a moving average of the parameters, then used by evaluation; 0: none
    log_every: int = 100  # steps between rows of metrics.jsonl
    eval_every: int = 5000  # steps between evaluations; there is always one at the end; 0: only there
    patience: int = 0  # stop early after so many evaluations without a better checkpoint.best_metric; 0: never
    eval_batch_size: int = 256
    eval_examples: int = 10_000  # the most examples of an evaluation
    profile_steps: tuple[int, int] = (0, 0)  # from, to: a trace of these steps for TensorBoard or Perfetto
    compilation_cache: bool = True  # keep compiled programs, so that a resumed run starts at once

    def __post_init__(self):
        for field in ("batch_size", "accumulation_steps", "log_every", "eval_batch_size", "eval_examples"):
            if getattr(self, field) < 1:
                raise ValueError(f"train.{field}={getattr(self, field)} must be at least 1")
        for field in ("num_steps", "seed", "eval_every", "patience"):
            if getattr(self, field) < 0:
                raise ValueError(f"train.{field}={getattr(self, field)} must not be negative")
        if self.patience and not self.eval_every:
            raise ValueError(f"train.patience={self.patience} counts evaluations; set train.eval_every")
        if len(self.profile_steps) != 2 or not all(isinstance(step, int) for step in self.profile_steps):
            raise ValueError(f"train.profile_steps={self.profile_steps} must be two numbers: from, to")


class Stopped(Exception):
    """The run was told to stop, and its state is saved."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls and does not know."""

    check_folder: Callable[[], None]  # before something is written: raises UserError if the run folder is gone
    evaluate: Callable[[Any], tuple[Row, dict[str, Any]]]  # state -> held-out metrics, files of the best evaluation
    is_best: Callable[[int, Row], bool]  # step, metrics of an evaluation -> is it the best so far
    write_files: Callable[[dict[str, Any]], None]
    is_over: Callable[[], bool]  # whether evaluations say that there is nothing more to gain
    save: Callable[[int, Any, Row], None]  # (steps done, state, metrics of an evaluation that is the best so far)
    wait_for_saves: Callable[[], None]
    should_stop: Callable[[], bool]  # asked after each step
    describe_batch: Callable[[int], str]  # step -> its examples, for messages
    last_checkpoint: Callable[[], int | None]
    progress: Callable[[int, Row], None]  # after each step
    profile_directory: str


def train(
    config: TrainConfig,
    checkpoint_every: int,
    train_step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
    state: Any,
    first_step: int,
    batches: Iterator[Any],
    writer: MetricsWriter,
    clock: Clock,
    hooks: Hooks,
) -> Any:
    """Trains from `first_step` to `config.num_steps`, or until the evaluations say so; returns the state.

    Raises:
      Stopped: told to stop; the state is saved.
      UserError: the loss is no longer finite, a batch has nothing to predict, or something could not be written.
    """
    pending: tuple[int, dict[str, jax.Array]] | None = None
    trace = Trace(config.profile_steps, hooks.profile_directory)

    def settle() -> None:
        # Metrics are looked at one step late: while the host waits for them, the devices are at the next step.
        nonlocal pending
        if pending is None:
            return
        done, metrics = pending
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        check_predictions(done - 1, row, hooks)
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(row[name]):
                raise UserError(not_finite(done - 1, f"{name} is {row[name]}", hooks))
        hooks.progress(done, row)
        if done % config.log_every == 0 or done == config.num_steps:
            hooks.check_folder()
            writer.write(done, row | clock.read(done))
        pending = None

    for step in range(first_step, first_step if hooks.is_over() else config.num_steps):
        # -------------------------------------------------------------------------------------------------- one step
        trace.start_before(step)
        batch = clock.next_batch(batches)
        state, metrics = train_step(state, batch)
        settle()
        done = step + 1
        pending = (done, metrics)

        # ---------------------------------------------------------------------- now and then: evaluate, save, stop
        is_last = done == config.num_steps
        stop = hooks.should_stop()
        trace.end_after(done, state, is_last or stop)
        evaluates = is_last or (config.eval_every and done % config.eval_every == 0)
        saves = is_last or stop or done % checkpoint_every == 0
        if evaluates or saves:
            settle()  # a loss that is not finite must be reported first
        evaluation, is_best = Row(), False
        if evaluates:
            evaluation, is_best = evaluated(state, done, writer, hooks)
            is_last |= hooks.is_over()
            saves |= is_best or is_last
        if saves:
            if not jax.device_get(all_finite(state)):  # the loss is of the parameters before this step
                raise UserError(not_finite(step, "the state is not finite", hooks))
            hooks.check_folder()
            hooks.save(done, state, evaluation if is_best else {})
        if evaluates or saves:
            clock.restart(done)
        if stop and not is_last:
            hooks.wait_for_saves()
            logger.info("told to stop: saved at step %d", done)
            raise Stopped(done)
        if is_last:
            trace.end_after(done, state, is_last)
            break

    hooks.wait_for_saves()
    return state


class Trace:
    """A trace of some of the steps for TensorBoard or Perfetto."""

    def __init__(self, steps: tuple[int, int], directory: str):
        """Of the steps from the first number on, up to the second; of none where that is not more."""
        self._steps, self._directory, self._is_on = steps, directory, False

    def start_before(self, step: int) -> None:
        """Begins, where it is time to."""
        if step == self._steps[0] < self._steps[1]:
            jax.profiler.start_trace(self._directory)
            self._is_on = True

    def end_after(self, done: int, state: Any, must_end: bool) -> None:
        """Ends when all of its steps are done, or no more will be."""
        if self._is_on and (must_end or done == self._steps[1]):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._is_on = False


def evaluated(state: Any, done: int, writer: MetricsWriter, hooks: Hooks) -> tuple[Row, bool]:
    """The metrics after a step, and whether they are the best so far; then the files that go with them are written."""
    scores, files = hooks.evaluate(state)
    evaluation = {f"eval/{name}": value for name, value in scores.items()}
    hooks.check_folder()
    writer.write(done, evaluation)
    try:
        is_best = hooks.is_best(done, evaluation)
    except UserError:  # a score that is not measured must not cost what was trained
        hooks.save(done, state, {})
        hooks.wait_for_saves()
        raise
    if is_best:
        hooks.write_files(files)
    return evaluation, is_best


@jax.jit
def all_finite(state: Any) -> jax.Array:
    """Whether all floating-point numbers of a state are finite."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.array([jnp.isfinite(x).all() for x in leaves], bool).all()


def not_finite(step: int, what: str, hooks: Hooks) -> str:
    """Returns one line about a loss, gradient or state that is not finite."""
    return failed(step, what, "lower optimizer.learning_rate or clip, and start again", hooks)


def check_predictions(step: int, row: Row, hooks: Hooks) -> None:
    """Removes '<objective>/predictions' from a row. Raises UserError if one is 0: there would be no loss to learn from."""
    remedy = (
        "inspect them with tools/inspect_batch.py: probably all their tokens are special or unknown to the tokenizer, "
        "or they have no labels"
    )
    for name in [name for name in row if name.endswith("/predictions")]:
        if row.pop(name) == 0:
            raise UserError(failed(step, f"nothing to predict for {name.split('/')[0]}", remedy, hooks))


def failed(step: int, what: str, remedy: str, hooks: Hooks) -> str:
    """Returns one line about a step after which a run cannot continue."""
    hooks.wait_for_saves()
    last = hooks.last_checkpoint()
    saved = "no checkpoint is saved yet" if last is None else f"the last good checkpoint is of step {last}"
    return f"{what} in step {step + 1}, examples {hooks.describe_batch(step)}; {saved}; {remedy}"
