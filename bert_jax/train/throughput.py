"""Rates by the clock: tokens and floating-point operations per second, and the time spent waiting for data."""

import time
from collections.abc import Iterator
from typing import Any

from bert_jax.train.writers import Row


class Clock:
    """Rates since the last row: what a step takes, and how much of that is waiting for data."""

    def __init__(self, first_step: int, tokens_per_step: int, flops_per_step: float, peak_flops: float):
        self.tokens_per_step = tokens_per_step
        self.flops_per_step = flops_per_step
        self.peak_flops = peak_flops  # of all devices together
        self.restart(first_step)

    def restart(self, done: int) -> None:
        """Begins a new interval after `done` steps, e.g. after an evaluation."""
        self._start, self._waited, self._done = time.perf_counter(), 0.0, done

    def next_batch(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time it takes counts as waiting for data."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def read(self, done: int) -> Row:
        """Rates over the interval, which ends after `done` steps. FLOP/s are the model's, by formula."""
        seconds, steps = time.perf_counter() - self._start, done - self._done
        flops = self.flops_per_step * steps / seconds
        row = {
            "tokens_per_second": self.tokens_per_step * steps / seconds,
            "data_wait_seconds": self._waited / steps,  # a step
            "model_flops_per_second": flops,
            "flops_utilization": flops / self.peak_flops,
        }
        self.restart(done)
        return row
