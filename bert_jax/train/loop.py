"""The only training loop: pretraining and fine-tuning run through it. It reads from top to bottom."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bert_jax.errors import UserError
from bert_jax.train.ledger import Ledger
from bert_jax.train.throughput import Throughput
from bert_jax.train.writers.base import Row, Writers

logger = logging.getLogger(__name__)
# Ends the names of metrics that the loop checks and does not report: the number of predictions of a term, in a batch.
PREDICTIONS = "/predictions"
LOWER_THE_RATE = "lower optimizer.learning_rate or clip, and start again"
EXIT_STOPPED = 75  # exit code of a run that was told to stop and saved: EX_TEMPFAIL of sysexits.h, "try again"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_steps: int = 1_000_000  # steps of the whole run, resumed ones included
    batch_size: int = 256  # sequences of a step, over all devices and microbatches
    accumulation_steps: int = 1  # microbatches of a step, one after the other
    seed: int = 0  # of initialisation, data order, masks and dropout
    ema_decay: float = 0.0  # of a moving average of the parameters, then used by evaluation; 0: none
    log_every: int = 100  # steps between rows of metrics
    hash_batches: bool = False  # adds `batch_hash` to the metrics: the same for the same batch, on any devices
    writers: tuple[str, ...] = ("jsonl", "tensorboard")  # where they go: files of train/writers/
    eval_every: int = 5000  # steps between evaluations; there is always one at the end; 0: only there
    patience: int = 0  # stop early after so many evaluations without a better checkpoint.best_metric; 0: never
    eval_batch_size: int = 256  # sequences of a batch of an evaluation
    eval_examples: int = 10_000  # the most examples of an evaluation
    profile_steps: tuple[int, int] = (0, 0)  # from, to: a trace of these steps for TensorBoard or Perfetto
    hang_factor: float = 100.0  # a step of so many times the median time hangs, and ends the process; 0: never
    hang_seconds: float = 300.0  # seconds that it takes at least
    compilation_cache: bool = True  # keep compiled programs, so that a resumed run starts at once

    def __post_init__(self):
        for field in ("batch_size", "accumulation_steps", "log_every", "eval_batch_size", "eval_examples"):
            if getattr(self, field) < 1:
                raise ValueError(f"train.{field}={getattr(self, field)} must be at least 1")
        for field in ("num_steps", "seed", "eval_every", "patience", "hang_factor", "hang_seconds"):
            if getattr(self, field) < 0:
                raise ValueError(f"train.{field}={getattr(self, field)} must not be negative")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"train.ema_decay={self.ema_decay} must be from 0 to below 1")
        if self.patience and not self.eval_every:
            raise ValueError(f"train.patience={self.patience} counts evaluations; set train.eval_every")
        if len(self.profile_steps) != 2 or not all(isinstance(step, int) for step in self.profile_steps):
            raise ValueError(f"train.profile_steps={self.profile_steps} must be two numbers: from, to")
        if self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"train.profile_steps={self.profile_steps}: the trace must not end before it begins")


class Stopped(Exception):
    """The run was told to stop, and its state is saved."""


class Evaluation(Protocol):
    """The held-out data of a run, and which of its evaluations is the best."""

    @property
    def is_over(self) -> bool:
        """Whether the evaluations so far say that there is nothing more to gain."""

    def measure(self, step: int, state: Any) -> tuple[Row, dict[str, Any]]:
        """Returns metrics of the state after `step` steps, and files to keep if it is the best evaluation so far."""

    def select(self, step: int, row: Row, files: dict[str, Any]) -> bool:
        """Returns whether an evaluation is the best so far; then its files are written.

        Raises:
          UserError: the metric to compare by is not among those measured.
        """


class Checkpoints(Protocol):
    """Where the state of a run is saved."""

    @property
    def every(self) -> int:
        """Steps between checkpoints."""

    def check_folder(self) -> None:
        """Raises UserError if the run folder is gone; called before something is written."""

    def save(self, step: int, state: Any, metrics: Row) -> None:
        """Saves the state after `step` steps in the background, with the metrics of an evaluation that is the best so far."""

    def wait(self) -> None:
        """Returns when everything is written."""

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint."""


class Report(NamedTuple):
    """What a run tells of its steps."""

    writers: Writers
    throughput: Throughput
    ledger: Ledger
    listeners: Sequence[Callable[[int, float], None]]  # (steps done, loss), called after each step


class Results:
    """What comes of the steps: metrics, evaluations and checkpoints.

    Metrics are read one step late: while the host waits for them, the devices are at the next step.
    """

    def __init__(
        self,
        config: TrainConfig,
        describe_batch: Callable[[int], str],
        evaluation: Evaluation,
        checkpoints: Checkpoints,
        report: Report,
    ):
        self._config, self._describe_batch = config, describe_batch
        self._evaluation, self._checkpoints, self._report = evaluation, checkpoints, report
        self._pending: tuple[int, tuple[int, int, int], dict[str, jax.Array]] | None = None

    def add(self, step: int, shape: tuple[int, int, int], metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step on a batch of this shape (microbatches, rows, tokens), and settles those before."""
        self.settle()
        self._pending = step, shape, metrics

    def settle(self) -> None:
        """Reads what was added last, and reports it. Raises UserError if the run cannot continue after it."""
        if self._pending is None:
            return
        step, shape, metrics = self._pending
        self._pending = None
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        predictions = {name: row.pop(name) for name in list(row) if name.endswith(PREDICTIONS)}
        if problem := problem_of(row, predictions):
            raise self.failure(step, *problem)
        done = step + 1
        self._report.throughput.count(step, shape)
        for listener in self._report.listeners:
            listener(done, row["loss"])
        if done % self._config.log_every == 0 or done == self._config.num_steps:
            self._checkpoints.check_folder()
            self._report.writers.write(done, row | self._report.throughput.read(done))
            self._report.ledger.write(done)

    def evaluate(self, done: int, state: Any) -> Row:
        """Measures the state after `done` steps; returns the metrics if they are the best so far, else none.

        Raises:
          UserError: as `Evaluation.select`; then the state is saved.
        """
        with self._report.ledger.spending("evaluating"):
            scores, files = self._evaluation.measure(done, state)
        row = {f"eval/{name}": value for name, value in scores.items()}
        self._checkpoints.check_folder()
        self._report.writers.write(done, row)
        try:
            return row if self._evaluation.select(done, row, files) else Row()
        except UserError:  # a score that is not measured must not cost what was trained
            self.save(done, state, Row())
            self._checkpoints.wait()
            raise

    def save(self, done: int, state: Any, best: Row) -> None:
        """Saves the state after `done` steps. Raises UserError if it is not finite, or as `Checkpoints`."""
        with self._report.ledger.spending("saving"):
            if not jax.device_get(all_finite(state)):  # the loss is of the parameters before the last step
                raise self.failure(done - 1, "the state is not finite", LOWER_THE_RATE)
            self._checkpoints.check_folder()
            self._checkpoints.save(done, state, best)

    def finish(self, done: int) -> None:
        """Returns when everything is written."""
        with self._report.ledger.spending("saving"):
            self._checkpoints.wait()
        self._report.ledger.write(done)

    def failure(self, step: int, what: str, remedy: str) -> UserError:
        """Returns one line about a step after which a run cannot continue."""
        self._checkpoints.wait()
        last = self._checkpoints.latest()
        saved = "no checkpoint is saved yet" if last is None else f"the last good checkpoint is of step {last}"
        return UserError(f"{what} in step {step + 1}, examples {self._describe_batch(step)}; {saved}; {remedy}")


def train(
    config: TrainConfig,
    first_step: int,
    state: Any,
    run_step: Callable[[int, Any, Any], tuple[Any, dict[str, jax.Array]]],
    batches: Iterator[Any],
    describe_batch: Callable[[int], str],
    evaluation: Evaluation,
    checkpoints: Checkpoints,
    report: Report,
    stop_requested: Callable[[], bool],
    profile_directory: str,
) -> Any:
    """Trains from `first_step` to `config.num_steps`, or until the evaluations say so; returns the state.

    Raises:
      Stopped: told to stop; the state is saved.
      UserError: the loss is no longer finite, a batch has nothing to predict, or something could not be written.
    """
    results = Results(config, describe_batch, evaluation, checkpoints, report)
    trace = Trace(config.profile_steps, profile_directory)

    done = first_step
    for step in range(first_step, first_step if evaluation.is_over else config.num_steps):
        # -------------------------------------------------------------------------------------------------- one step
        trace.start_before(step)
        with report.ledger.spending("waiting"):
            batch = next(batches)
        state, metrics = run_step(step, state, batch)
        results.add(step, batch["input_ids"].shape, metrics)

        # ---------------------------------------------------------------------- now and then: evaluate, save, stop
        done = step + 1
        stop, is_last = stop_requested(), done == config.num_steps
        trace.end_after(done, state, is_last or stop)
        evaluates = is_last or (config.eval_every and done % config.eval_every == 0)
        saves = is_last or stop or done % checkpoints.every == 0
        if evaluates or saves:
            results.settle()  # a loss that is not finite must be reported first
        best = results.evaluate(done, state) if evaluates else Row()
        is_last |= evaluation.is_over
        if saves or best or is_last:
            results.save(done, state, best)
        if evaluates or saves:
            report.ledger.write(done)
        if is_last:
            trace.end_after(done, state, is_last)
            break
        if stop:
            results.finish(done)
            logger.info("told to stop: saved at step %d", done)
            raise Stopped(done)

    results.finish(done)
    return state


def problem_of(row: Row, predictions: Row) -> tuple[str, str] | None:
    """Returns why a run cannot continue after a step with these metrics and numbers of predictions, and the remedy."""
    for name, number in predictions.items():
        if number == 0:
            remedy = (
                "inspect them with tools/inspect_batch.py: probably all their tokens are special or unknown to the "
                "tokenizer, or they have no labels"
            )
            return f"nothing to predict for {name.split('/')[0]}", remedy
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(row[name]):
            return f"{name} is {row[name]}", LOWER_THE_RATE
    return None


class Trace:
    """A trace of some of the steps for TensorBoard or Perfetto."""

    def __init__(self, steps: tuple[int, int], directory: str):
        """Takes the first step to trace, and the one to stop at; no trace if it is not later."""
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


@jax.jit
def all_finite(state: Any) -> jax.Array:
    """Returns whether all floating-point numbers of a state are finite."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.array([jnp.isfinite(x).all() for x in leaves], bool).all()
