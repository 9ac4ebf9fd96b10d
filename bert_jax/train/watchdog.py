"""Ends a process whose step does not end, as when another process of the job is gone; launchers then start it again.

Without it, a job whose collective waits for a lost process holds its machines until somebody looks.
"""

import collections
import contextlib
import faulthandler
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXIT_HUNG = 70  # EX_SOFTWARE of sysexits.h
STACKS = "stacks"
_TICK = 1.0  # seconds
_MOST_STEPS = 100  # of the median


class Watchdog:
    """A thread that is told of each step, and measures how long the current one takes."""

    def __init__(self, folder: Path, number: int, factor: float, least_seconds: float, is_watched: Callable[[], bool]):
        """Prepares to watch.

        Args:
          folder: of the run; stacks are written to a folder in it.
          number: of this process in its job.
          factor: a step hangs if it takes so many times the median of those before.
          least_seconds: and at least so long.
          is_watched: whether the process is at a step; an evaluation may take any time.
        """
        self._folder, self._number, self._factor, self._least = folder, number, factor, least_seconds
        self._is_watched = is_watched
        self._steps = 0  # beats so far
        self._seconds = collections.deque[float](maxlen=_MOST_STEPS)
        self._over = threading.Event()

    def beat(self, done: int, loss: float) -> None:
        """Tells that a step has ended."""
        self._steps += 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches while it is open, unless the factor is 0."""
        if not self._factor:
            yield
            return
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        steps, waited = self._steps, 0.0
        last = time.perf_counter()
        while not self._over.wait(_TICK):
            now = time.perf_counter()
            # A process that was stopped (SIGSTOP) or whose machine slept has not waited meanwhile.
            waited, last = waited + min(now - last, 2 * _TICK), now
            if self._steps > steps:
                self._seconds.append(waited / (self._steps - steps))
            if self._steps > steps or not self._is_watched():
                steps, waited = self._steps, 0.0
            elif self._seconds and waited > max(self._least, self._factor * statistics.median(self._seconds)):
                self._end(waited)

    def _end(self, waited: float) -> None:
        usual = statistics.median(self._seconds)
        folder = self._folder / STACKS
        path = folder / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_process_{self._number}.txt"
        message = (
            f"error: process {self._number}: a step has taken {waited:.0f} s, usually {usual:.2g} s; it hangs, or waits"
        )
        message += f" for a process that does; the stacks of its threads are in {path}; start again"
        os.write(2, f"{message}\n".encode(errors="replace"))
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        os._exit(EXIT_HUNG)  # the main thread does not come back
