"""What the time of a run is spent on: times.jsonl, to which lines are only added, so that lost steps stay in it.

The first line of a start says when its process began; each further one has the steps done and, by kind, the seconds since the
line before. run_folder/goodput.py adds them up.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from bert_jax.errors import UserError
from bert_jax.files import read_lines

TIMES = "times.jsonl"
# Waiting: for data. Evaluating and saving: as long as they keep the devices from training.
KINDS = ("starting", "compiling", "waiting", "training", "evaluating", "saving")


def process_start() -> float:
    """Returns when this process began, in seconds since the epoch; now, where the system does not say it."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), as two come before the ")"
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
    except (OSError, AttributeError):
        return time.time()


class Ledger:
    """Counts seconds by kind. Every moment since the process began, or since its last run ended, belongs to one kind."""

    _free_since: float | None = None  # end of the last run of this process, which may train several

    def __init__(self):
        """Begins to count, as starting."""
        self.began = Ledger._free_since or process_start()
        self._since = time.perf_counter() - (time.time() - self.began)
        self._kind = "starting"
        self._seconds, self._written = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
        self._file: TextIO | None = None

    @contextlib.contextmanager
    def opened(self, workdir: Path, first_step: int) -> Iterator[None]:
        """Writes to the run folder while open, beginning with the line of this start after `first_step` steps.

        A ledger that is not opened, as in all but the first process, only counts.
        """
        path = workdir / TIMES
        whole = b"".join(_whole_lines(path))
        with path.open("ab") as file:
            file.truncate(len(whole))  # without a line that was cut off when its process was killed
        with path.open("a", encoding="utf-8", buffering=1) as self._file:
            self._write({"began": self.began, "step": first_step})
            try:
                yield
            finally:
                self._file, Ledger._free_since = None, time.time()

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Counts the time spent in it as of this kind, except for what is spent in others inside it."""
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    @property
    def kind(self) -> str:
        """What the current time is spent on."""
        return self._kind

    def _switch(self, kind: str) -> str:
        before, now = self._kind, time.perf_counter()
        self._seconds[before] += now - self._since
        self._since, self._kind = now, kind
        return before

    def seconds(self, kind: str) -> float:
        """Returns the seconds of a kind so far."""
        self._switch(self._kind)
        return self._seconds[kind]

    def write(self, step: int) -> None:
        """Writes a line, after `step` steps. Raises UserError if the disk does not take it."""
        self._switch(self._kind)
        spent = {kind: round(self._seconds[kind] - self._written[kind], 6) for kind in KINDS}
        self._written = dict(self._seconds)
        self._write(
            {"time": time.time(), "step": step, "seconds": {kind: value for kind, value in spent.items() if value}}
        )

    def _write(self, line: dict[str, object]) -> None:
        if self._file:
            try:
                self._file.write(json.dumps(line) + "\n")
            except OSError as error:
                message = f"{self._file.name}: cannot be written ({error.strerror}); free some space and start again"
                raise UserError(message) from error


def _whole_lines(path: Path) -> Iterator[bytes]:
    yield from (line for line in (read_lines(path) if path.exists() else ()) if line.endswith(b"\n"))
