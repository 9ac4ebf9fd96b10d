"""What all commands share: `run` turns a user's mistakes into one line, `Progress` shows how far a long reading is."""

import sys
import time
from collections.abc import Callable

from absl import app, flags
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from bert_jax.errors import EXIT_USER_ERROR, UserError

_LINE_SECONDS = 10.0  # between two lines when there is no terminal


def run(main: Callable[[], object]) -> None:
    """Parses the flags, calls `main()` and exits; a UserError or a wrong flag is one line and EXIT_USER_ERROR."""

    def parse(arguments: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(arguments)
        except flags.Error as error:
            _fail(error)
        except AttributeError as error:  # what ml_collections raises for an option that a config does not have
            _fail(
                f"{_misspelt(arguments, str(error))}: no such option ({error}); see the config file for those there are"
            )
        if len(rest) > 1:
            _fail(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        return rest

    def guarded(arguments: list[str]) -> None:
        del arguments
        try:
            main()
        except UserError as error:
            _fail(error)

    app.run(guarded, flags_parser=parse)


def _misspelt(arguments: list[str], message: str) -> str:
    """The flag that names an option which `message` says is missing."""
    flag_names = [argument.split("=")[0] for argument in arguments if argument.startswith("--config.")]
    return next((name for name in flag_names if name.split(".")[-1] in message), " ".join(flag_names))


def _fail(error: object) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


class Progress:
    """Counts documents and text, on one live line in a terminal and on a line now and then elsewhere (stderr)."""

    def __init__(self, what: str):
        self._what, self._documents, self._bytes = what, 0, 0
        self._start = self._shown = time.monotonic()
        console = Console(stderr=True)
        self._live = console.is_terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._rich = RichProgress(*columns, console=console, disable=not self._live)
        self._task = self._rich.add_task(what, total=None)

    def __enter__(self) -> "Progress":
        self._rich.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._rich.stop()
        if not self._live and self._documents:
            print(self._text(), file=sys.stderr)

    def __call__(self, text_bytes: int) -> None:
        """Counts one document."""
        self._documents += 1
        self._bytes += text_bytes
        now = time.monotonic()
        if now - self._shown >= (0.1 if self._live else _LINE_SECONDS):
            self._shown = now
            if self._live:
                self._rich.update(self._task, description=self._text())
            else:
                print(self._text(), file=sys.stderr)

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        megabytes = self._bytes / 1e6
        return (
            f"{self._what}: {self._documents:,} documents ({self._documents / seconds:,.0f}/s), "
            f"{megabytes:,.1f} MB ({megabytes / seconds:.1f}/s)"
        )
