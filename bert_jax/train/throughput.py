"""Rates by the clock: tokens and floating-point operations per second, and the time spent waiting for data."""

import contextlib
import time
from collections.abc import Callable, Iterator

from bert_jax.train.writers.base import Row


class Throughput:
    """Rates over the steps since the last row."""

    def __init__(self, first_step: int, flops_per_token: Callable[[int, int], float], peak_flops: float):
        """Begins to measure.

        Args:
          first_step: steps done before.
          flops_per_token: of the model, from the step and the length of a row.
          peak_flops: FLOP/s of all devices together.
        """
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self.restart(first_step)

    def restart(self, done: int) -> None:
        """Begins a new interval after `done` steps, e.g. after an evaluation."""
        self._start, self._done = time.perf_counter(), done
        self._waited, self._tokens, self._flops = 0.0, 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent in it as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, step: int, shape: tuple[int, int, int]) -> None:
        """Counts a step on a batch of this shape: microbatches, rows, tokens of a row."""
        microbatches, rows, length = shape
        tokens = microbatches * rows * length
        self._tokens += tokens
        self._flops += tokens * self._flops_per_token(step, length)

    def read(self, done: int) -> Row:
        """Returns the rates over the interval, which ends after `done` steps. FLOP/s are the model's, by formula."""
        seconds, steps = time.perf_counter() - self._start, done - self._done
        row = {
            "tokens_per_second": self._tokens / seconds,
            "data_wait_seconds": self._waited / steps,  # a step
            "model_flops_per_second": self._flops / seconds,
            "flops_utilization": self._flops / seconds / self._peak_flops,
        }
        self.restart(done)
        return row
