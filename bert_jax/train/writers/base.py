"""Where the numbers of a run go: one file of this folder for each kind of writer, named in `config.train.writers`."""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import bert_jax.train.writers
from bert_jax.errors import UserError

Row = dict[str, float]


class Writer(Protocol):
    """Takes rows of numbers, by step; the class `Writer` of each file of this folder."""

    def __init__(self, workdir: Path, first_step: int):
        """Opens its files in a run folder; rows of steps after `first_step`, from a run that went further, no longer count."""

    def write(self, step: int, row: Row) -> None:
        """Writes one row, after `step` steps. Raises OSError if the disk does not take it."""

    def close(self) -> None:
        """Ends the writing."""


def available() -> list[str]:
    """Returns the names of the writers: the files of this folder."""
    return sorted(
        module.name for module in pkgutil.iter_modules(bert_jax.train.writers.__path__) if module.name != "base"
    )


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Sequence[Writer] = ()):
        """Takes the writers; without any, as in all but the first process, rows are dropped."""
        self._writers = writers

    def write(self, step: int, row: Row) -> None:
        """Writes one row to all writers. Raises UserError if the disk does not take it."""
        try:
            for writer in self._writers:
                writer.write(step, row)
        except OSError as error:
            raise UserError(
                f"{error.filename or 'metrics'}: cannot be written ({error.strerror}); free some space and start again"
            ) from error


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for a name without a writer."""
    if unknown := [name for name in names if name not in available()]:
        raise UserError(f"train.writers: no writer {unknown[0]!r}; there are {', '.join(available())}")


@contextlib.contextmanager
def opened(names: Sequence[str], workdir: Path, first_step: int) -> Iterator[Writers]:
    """Opens the named writers of a run, and closes them at the end. Raises UserError as `check_names`."""
    check_names(names)
    with contextlib.ExitStack() as stack:
        writers = list[Writer]()
        for name in names:
            writers.append(importlib.import_module(f"bert_jax.train.writers.{name}").Writer(workdir, first_step))
            stack.callback(writers[-1].close)
        yield Writers(writers)
