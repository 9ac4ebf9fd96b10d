"""The default checkpoint of a run: the newest, or the best if its config prefers that; and which parameters of it are used:
their moving average if the run keeps one.

Configs are read as stored in the run folder; older ones lack some of these options.
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError, listed
from bert_jax.run_folder import folder as run_folder
from bert_jax.train.writers.base import Row
from bert_jax.train.writers.jsonl import evaluations

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


def chosen_step(workdir: Path, config: dict[str, Any], steps: Sequence[int]) -> int | None:
    """The best of the checkpoints of these steps of a run with this config, or None for the newest."""
    if not config["checkpoint"].get("prefer_best"):
        return None
    there = [(step, row) for step, row in evaluations(workdir / "metrics.jsonl") if step in steps]
    best = Selection(config["checkpoint"]["best_metric"], 0, there).best
    return best[0] if best else None


def chosen_params(config: dict[str, Any]) -> str:
    """Returns the entry of a run's state that evaluation, prediction and `init_from` use: 'ema' if there is one."""
    return "ema" if config["train"]["ema_decay"] else "params"


def chosen_evaluation(workdir: Path, config: dict[str, Any] | None = None) -> tuple[int | None, Row]:
    """Step and held-out metrics, by names without 'eval/', of the evaluation of a run's default checkpoint.

    Before the first evaluation they are None and nothing.
    """
    checkpoint = (config or run_folder.read_config(workdir))["checkpoint"]
    found = evaluations(workdir / "metrics.jsonl")
    if not found:
        return None, {}
    best = Selection(checkpoint["best_metric"], 0, found).best if checkpoint.get("prefer_best") else None
    step, row = best or found[-1]
    return step, {name.removeprefix("eval/"): value for name, value in row.items()}
