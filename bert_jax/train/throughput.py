"""Rates by the clock: tokens and floating-point operations per second, and the time spent waiting for data."""

from collections.abc import Callable

from bert_jax.train.ledger import Ledger
from bert_jax.train.writers.base import Row


class Throughput:
    """Rates over the steps since the last row, by the seconds that a ledger counts as training and waiting."""

    def __init__(
        self, first_step: int, flops_per_token: Callable[[int, int], float], peak_flops: float, ledger: Ledger
    ):
        """Begins to measure.

        Args:
          first_step: steps done before.
          flops_per_token: of the model, from the step and the length of a row.
          peak_flops: FLOP/s of all devices together.
          ledger: of the run.
        """
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._ledger = ledger
        self._restart(first_step)

    def _restart(self, done: int) -> None:
        self._trained, self._waited = self._ledger.seconds("training"), self._ledger.seconds("waiting")
        self._done, self._tokens, self._flops = done, 0, 0.0

    def count(self, step: int, shape: tuple[int, int, int]) -> None:
        """Counts a step on a batch of this shape: microbatches, rows, tokens of a row."""
        microbatches, rows, length = shape
        tokens = microbatches * rows * length
        self._tokens += tokens
        self._flops += tokens * self._flops_per_token(step, length)

    def read(self, done: int) -> Row:
        """Returns the rates over the interval, which ends after `done` steps. FLOP/s are the model's, by formula."""
        waited = self._ledger.seconds("waiting") - self._waited
        seconds, steps = self._ledger.seconds("training") - self._trained + waited, done - self._done
        row = {
            "tokens_per_second": self._tokens / seconds,
            "data_wait_seconds": waited / steps,  # a step
            "model_flops_per_second": self._flops / seconds,
            "flops_utilization": self._flops / seconds / self._peak_flops,
        }
        self._restart(done)
        return row
