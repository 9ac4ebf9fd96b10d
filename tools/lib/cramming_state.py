"""The state of a reference run (tools/cramming.py): what is finished, and how long pretraining has taken."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json
from bert_jax.train.writers.base import Row
from bert_jax.train.writers.jsonl import METRICS
from tools.lib.cramming_budget import Rates


class PretrainingAttempt(msgspec.Struct):
    """A start of pretraining, until its end or interruption."""

    start: float  # seconds since the epoch
    seconds: float | None = None  # None while it runs, and if the process was killed


class State(msgspec.Struct):
    """Results of the finished stages."""

    settings: dict[str, Any]  # flags
    rates: Rates | None = None
    num_steps: int = 0
    attempts: list[PretrainingAttempt] = []
    date: str = ""  # at the end of pretraining, as the commit
    commit: str = ""
    held_out: Row = {}
    scores: dict[str, Row] = {}  # of fine-tuned runs, by 'INITIAL_WEIGHTS/task/seed_N'

    @classmethod
    def of(cls, path: Path, settings: dict[str, Any]) -> "State":
        """Reads the state of a run that was started before, or returns a fresh one. Raises UserError for other settings."""
        state = read_json(path, cls, "use another --workdir") if path.exists() else cls(settings)
        if state.settings != settings:
            changes = [
                f"--{name}={state.settings[name]}, not {value}"
                for name, value in settings.items()
                if state.settings.get(name) != value
            ]
            raise UserError(
                f"{path.parent}: started with {'; '.join(changes)}; use the same flags or another --workdir"
            )
        return state

    def save(self, path: Path) -> None:
        write_json(path, self)

    @property
    def used_seconds(self) -> float:
        return sum(attempt.seconds or 0.0 for attempt in self.attempts)

    @contextlib.contextmanager
    def timed(self, path: Path, run: Path) -> Iterator[None]:
        """Adds the time spent in it to the attempts, also if it fails or is stopped, and saves the state before and after."""
        for attempt in self.attempts:
            if attempt.seconds is None:  # killed; its last sign of life is a row of metrics
                metrics = run / METRICS
                attempt.seconds = max(0.0, metrics.stat().st_mtime - attempt.start) if metrics.exists() else 0.0
        attempt = PretrainingAttempt(time.time())
        self.attempts.append(attempt)
        self.save(path)
        start = time.monotonic()
        try:
            yield
        finally:
            attempt.seconds = time.monotonic() - start
            self.save(path)
