"""Numbers on their way out: metrics.jsonl, TensorBoard, rates by the clock, means over an evaluation."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from bert_jax.errors import UserError
from bert_jax.files import decode_json, read_lines, whole_file

Row = dict[str, float]
METRICS = "metrics.jsonl"


class _Step(TypedDict):
    step: int


class MetricsWriter:
    """Writes rows to `metrics.jsonl` and TensorBoard in a run folder. Only the first process has one that writes."""

    def __init__(self, workdir: Path, first_step: int, enabled: bool):
        """Opens the files. Rows of steps after `first_step`, left by a run that went further, are taken out."""
        self._enabled = enabled
        if not enabled:
            return
        from tensorboard.compat.proto import event_pb2, summary_pb2  # lazy import: predict starts without them
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._path = workdir / METRICS
        with whole_file(self._path, binary=True) as file:
            for line in _whole_lines(self._path):
                if _decoded(self._path, line, _Step)["step"] <= first_step:
                    file.write(line)
        self._file = self._path.open("a", buffering=1)  # a line at a time: nothing is lost when the process is killed
        (workdir / "tensorboard").mkdir(exist_ok=True)
        # By the time, for TensorBoard reads them in this order. Not its EventFileWriter: that has a thread, which would not
        # tell of a full disk.
        path = workdir / "tensorboard" / f"events.out.tfevents.{time.time():.6f}"
        self._events = RecordWriter(path.open("wb"))
        self._write_event(file_version="brain.Event:2")
        # TensorBoard forgets later steps of the run before.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write_event(step=first_step + 1, session_log=start)

    def write(self, step: int, row: Row) -> None:
        """Writes one row; floats in full precision. Raises UserError where the disk does not take it."""
        if not self._enabled:
            return
        try:
            finite = {name: value if math.isfinite(value) else None for name, value in row.items()}  # JSON has no NaN
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            for name, value in row.items():
                number = self._summary.Value(tag=name, simple_value=value)
                self._write_event(step=step, summary=self._summary(value=[number]))
            self._events.flush()
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); free some space and start again"
            ) from error

    def _write_event(self, **content: Any) -> None:
        self._events.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._enabled:
            with contextlib.suppress(OSError):  # of a line that the disk did not take, which `write` has told of
                self._file.close()
            with contextlib.suppress(OSError):
                self._events.close()


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
    found = [(int(row["step"]), {name: row[name] for name in row if name.startswith("eval/")}) for row in rows]
    return [(step, row) for step, row in found if row]


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
