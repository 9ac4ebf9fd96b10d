"""Shows the progress of a command on stderr: a live bar in a terminal, otherwise a line every few seconds."""

import logging
import sys
import time

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0  # without a terminal


class Progress:
    """Progress through documents: their number, bytes of text, and speed."""

    def __init__(self, what: str, of: str = "documents"):
        from rich import progress as bars  # lazy import: commands without a bar start faster
        from rich.console import Console

        self._what, self._of = what, of
        self._documents, self._bytes, self._share = 0, 0, 0.0
        self._start = self._shown = time.monotonic()
        console = Console(stderr=True)
        self._live = console.is_terminal
        # Without a known total the bar pulses and shows no remaining time.
        numbers = bars.TextColumn("{task.description}")
        columns = (bars.TextColumn(what), bars.BarColumn(), numbers, bars.TimeRemainingColumn())
        self._bar = bars.Progress(*columns, console=console, disable=not self._live)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._show()
        self._bar.stop()

    def count(self, text_bytes: int = 0) -> None:
        """Counts one document and, if known, its size."""
        self._documents += 1
        self._bytes += text_bytes
        if time.monotonic() - self._shown >= (0.1 if self._live else SECONDS_BETWEEN_LINES):
            self._show()

    def reach(self, share: float) -> None:
        """Sets the fraction that has been read, 0 to 1."""
        self._share = share

    def _show(self) -> None:
        self._shown = time.monotonic()
        seconds = max(self._shown - self._start, 1e-9)
        counts = f"{self._documents:,} {self._of} ({self._documents / seconds:,.0f}/s)"
        if megabytes := self._bytes / 1e6:
            counts += f", {megabytes:,.1f} MB ({megabytes / seconds:.1f}/s)"
        if self._live:
            total = 1.0 if self._share else None
            self._bar.update(self._task, description=counts, completed=self._share, total=total)
        elif self._documents:
            of_all = f"{self._share:.0%} of the source, " if self._share else ""
            print(f"{self._what}: {of_all}{counts}", file=sys.stderr)


class TrainingProgress:
    """Progress of training: completed steps and the last loss."""

    def __init__(self, first_step: int, num_steps: int, is_first: bool):
        """Starts at `first_step`; only the first process (`is_first`) shows anything."""
        from rich import progress as bars
        from rich.console import Console

        console = Console(stderr=True)
        self._num_steps, self._shown = num_steps, time.monotonic()
        self._prints_lines = is_first and not console.is_terminal
        has_bar = is_first and console.is_terminal
        loss = bars.TextColumn("{task.fields[loss]}")
        columns = (bars.TextColumn("training"), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
        self._bar = bars.Progress(*columns, loss, console=console, disable=not has_bar)
        self._task = self._bar.add_task("", total=num_steps, completed=first_step, loss="")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, done: int, loss: float) -> None:
        """Shows the number of completed steps and the loss of the last one."""
        self._bar.update(self._task, completed=done, loss=f"loss {loss:.4f}")
        if self._prints_lines and time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            logger.info("step %d of %d, loss %.4f", done, self._num_steps, loss)
