"""Converts a time budget to a number of training steps, by short runs of the same config on this machine.

The number of steps is decided before a run starts: it determines the schedule of the learning rate, and a run that is resumed
reads the same examples.
"""

import logging
import shutil
import statistics
import time
from pathlib import Path

import msgspec
from ml_collections import ConfigDict

from bert_jax.errors import UserError
from bert_jax.run import run_training
from bert_jax.train.writers.jsonl import METRICS, read_rows

logger = logging.getLogger(__name__)
FIRST_STEPS = 5  # of the first run, which shows how many steps the second one takes
SHARE, LONGEST = 0.05, 60.0  # of the second run: share of the budget, and seconds at most
MARGIN = 0.03  # share of the budget that is not planned, for steps slower than the measured ones
CHECKPOINT_SECONDS = 600.0  # between checkpoints


class Rates(msgspec.Struct):
    """Seconds that a run takes on this machine."""

    step: float  # data included
    rest: float  # start, compilation, evaluation and checkpoint at the end


def measure(config: ConfigDict, folder: Path, budget: float) -> Rates:
    """Returns the rates of a config from two short runs, of which the second takes a share of the budget, in seconds."""
    first = trial(config, folder, FIRST_STEPS)
    seconds = min(SHARE * budget, LONGEST)
    return trial(config, folder, max(FIRST_STEPS, round(seconds / first.step)))


def trial(config: ConfigDict, folder: Path, num_steps: int) -> Rates:
    """Trains for some steps in a folder, which is then deleted, and returns the rates."""
    shutil.rmtree(folder, ignore_errors=True)
    values = config.copy_and_resolve_references()
    values.train.update(num_steps=num_steps, log_every=1)
    start = time.monotonic()
    run_training(values.lock(), folder)
    seconds = time.monotonic() - start
    rates = [row["tokens_per_second"] for row in read_rows(folder / METRICS) if "tokens_per_second" in row]
    shutil.rmtree(folder)
    # The first step waits for its batch.
    step = statistics.mean(tokens_per_step(config) / rate for rate in rates[1:])
    return Rates(step, seconds - num_steps * step)


def tokens_per_step(config: ConfigDict) -> int:
    return config.train.batch_size * config.data.sequence_length


def steps_within(rates: Rates, budget: float) -> int:
    """Returns how many steps fit into a budget in seconds. Raises UserError if none does."""
    steps = int(((1 - MARGIN) * budget - rates.rest) / rates.step)
    if steps < 1:
        needed = (rates.rest + rates.step) / (1 - MARGIN)
        problem = f"starting and evaluating take {rates.rest:.1f} s, and a step {rates.step:.2f} s"
        raise UserError(f"--budget: {problem}; a budget of at least {needed:.0f}s is needed")
    return steps


def steps_between_checkpoints(rates: Rates) -> int:
    return max(1, int(CHECKPOINT_SECONDS / rates.step))
