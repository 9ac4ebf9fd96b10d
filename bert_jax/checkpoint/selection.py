"""Which of a run's evaluations is the best, and when there has been no better one for long enough to stop."""

import math
import re
from collections.abc import Iterable

from bert_jax.errors import UserError, listed

Row = dict[str, float]
LOWEST_IS_BEST = re.compile("loss|error|perplexity")  # in the name of a score


def sign(metric: str) -> float:
    """1 for scores of which more is better, -1 for losses and errors."""
    return -1.0 if LOWEST_IS_BEST.search(metric) else 1.0


class Selection:
    """The best of the evaluations so far."""

    def __init__(self, metric: str, patience: int, evaluations: Iterable[tuple[int, Row]] = ()):
        """Begins with the evaluations of a resumed run.

        Args:
          metric: the score to compare by.
          patience: evaluations without a better one after which to stop; 0: never.
          evaluations: (step, scores), in their order.
        """
        self._metric, self._patience, self._since = metric, patience, 0
        self.best: tuple[int, Row] | None = None
        for step, row in evaluations:
            if metric in row:  # the run may have had another metric then
                self.add(step, row)

    def add(self, step: int, row: Row) -> bool:
        """Counts one more evaluation: is it better than all before?

        Raises:
          UserError: the score is not measured.
        """
        if self._metric not in row:
            raise UserError(f"checkpoint.best_metric={self._metric!r} is not measured; there are {listed(list(row))}")
        gain, value = sign(self._metric), row[self._metric]
        is_better = self.best is None or gain * value > gain * self.best[1][self._metric]
        if is_better and math.isfinite(value):  # one that is not finite would be the best for ever
            self.best, self._since = (step, row), 0
            return True
        self._since += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether there was no better one for `patience` evaluations."""
        return bool(self._patience) and self._since >= self._patience
