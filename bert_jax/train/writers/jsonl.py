"""metrics.jsonl: one row of numbers a line, in full precision; what reports and resumed runs read."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from bert_jax.errors import UserError
from bert_jax.files import decode_json, read_lines, whole_file
from bert_jax.train.writers.base import Row

METRICS = "metrics.jsonl"


class _Step(TypedDict):
    step: int


class Writer:
    """See base.py."""

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / METRICS
        with whole_file(self._path, binary=True) as file:
            for line in _whole_lines(self._path):
                if _decoded(self._path, line, _Step)["step"] <= first_step:
                    file.write(line)
        self._file = self._path.open("a", buffering=1)  # a line at a time: nothing is lost when the process is killed

    def write(self, step: int, row: Row) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}  # JSON has no NaN
        try:
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a line that the disk did not take, which `write` has told of
            self._file.close()


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a metrics.jsonl, one at a time, without values that are not finite; none if it does not exist.

    Raises:
      UserError: a line is damaged, other than a last one that was cut off while being written.
    """
    for line in _whole_lines(path):
        yield _row(path, line)


def evaluations(path: Path) -> list[tuple[int, Row]]:
    """Returns (step, held-out metrics) of every evaluation in a metrics.jsonl. Raises UserError as `read_rows`."""
    rows = (_row(path, line) for line in _whole_lines(path) if b'"eval/' in line)  # few of many lines
    by_step = [(int(row["step"]), {name: row[name] for name in row if name.startswith("eval/")}) for row in rows]
    return [(step, row) for step, row in by_step if row]


def _whole_lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    for line in read_lines(path):
        if line.endswith(b"}\n"):
            yield line
        elif line.endswith(b"}"):  # the process was killed between the two
            yield line + b"\n"


def _row(path: Path, line: bytes) -> Row:
    row = _decoded(path, line.replace(b": NaN", b": null"), dict[str, float | None])  # NaN: in runs of older versions
    if not isinstance(row.get("step"), float) or not row["step"].is_integer():
        raise UserError(f"{path}: damaged: a line without a step; remove the line")
    finite = {name: value for name, value in row.items() if value is not None}
    return finite | {"step": int(row["step"])}


def _decoded(path: Path, line: bytes, form: Any) -> Any:
    try:
        return decode_json(line, form)
    except ValueError as error:
        raise UserError(
            f"{path}: damaged, in the line {line[:40].decode(errors='replace')!r} ({error}); remove it"
        ) from None
