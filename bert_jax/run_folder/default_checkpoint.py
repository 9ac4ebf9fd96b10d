"""The default checkpoint of a run: the latest, or the best if `checkpoint.prefer_best`; and its parameters, EMA if it has one.

Configs are read as stored in the run folder; older ones lack some options.
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError, listed
from bert_jax.run_folder.folder import read_config
from bert_jax.train.writers.base import Row
from bert_jax.train.writers.jsonl import METRICS, evaluations

LOWEST_IS_BEST = re.compile("loss|error|perplexity")  # in the name of a metric


def sign(metric: str) -> float:
    """Returns 1 for metrics to maximise, -1 for losses and errors."""
    return -1.0 if LOWEST_IS_BEST.search(metric) else 1.0


class Selection:
    """The best evaluation so far."""

    def __init__(self, metric: str, patience: int, evaluations: Iterable[tuple[int, Row]] = ()):
        """Starts with the evaluations (step, metrics) of a resumed run.

        The run `is_over` after `patience` evaluations without improvement of the metric; never if that is 0.
        """
        self._metric, self._patience, self._since = metric, patience, 0
        self.best: tuple[int, Row] | None = None
        for step, row in evaluations:
            if metric in row:  # the run may have used another metric before
                self.add(step, row)

    def add(self, step: int, row: Row) -> bool:
        """Adds an evaluation; returns whether it is the best so far. Raises UserError if it lacks the metric."""
        if self._metric not in row:
            known = listed(list(row))
            raise UserError(f"checkpoint.best_metric={self._metric!r} is not measured; choose one of {known}")
        gain, value = sign(self._metric), row[self._metric]
        is_better = self.best is None or gain * value > gain * self.best[1][self._metric]
        if is_better and math.isfinite(value):  # infinity could not be beaten
            self.best, self._since = (step, row), 0
            return True
        self._since += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` evaluations brought no improvement."""
        return bool(self._patience) and self._since >= self._patience


def default_step(workdir: Path, config: dict[str, Any], steps: Sequence[int]) -> int | None:
    """Returns which of the checkpoints at `steps` is the default; None for the latest that is undamaged."""
    if not config["checkpoint"].get("prefer_best"):
        return None
    rows = [(step, row) for step, row in evaluations(workdir / METRICS) if step in steps]
    best = Selection(config["checkpoint"]["best_metric"], 0, rows).best
    return best[0] if best else None


def default_or_latest_step(workdir: Path, config: dict[str, Any], steps: Sequence[int]) -> int:
    """Returns the step of the default checkpoint, one of `steps`, which are not empty."""
    step = default_step(workdir, config, steps)
    return steps[-1] if step is None else step


def chosen_params(config: dict[str, Any]) -> str:
    """Returns the entry of the state that evaluation, prediction and `init_from` use: 'ema' or 'params'."""
    return "ema" if config["train"]["ema_decay"] else "params"


def default_evaluation(workdir: Path, config: dict[str, Any] | None = None) -> tuple[int | None, Row]:
    """Returns step and held-out metrics (names without 'eval/') of a run's default checkpoint; before any, None and {}."""
    checkpoint = (config or read_config(workdir))["checkpoint"]
    rows = evaluations(workdir / METRICS)
    if not rows:
        return None, {}
    best = Selection(checkpoint["best_metric"], 0, rows).best if checkpoint.get("prefer_best") else None
    step, row = best or rows[-1]
    return step, {name.removeprefix("eval/"): value for name, value in row.items()}
