"""TensorBoard's event files."""

import contextlib
import time
from pathlib import Path
from typing import Any

from bert_jax.train.writers.base import Row


class Writer:
    """See base.py."""

    def __init__(self, workdir: Path, first_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2  # lazy import: predict starts without them
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        (workdir / "tensorboard").mkdir(exist_ok=True)
        # By the time, for TensorBoard reads them in this order. Not its EventFileWriter: that has a thread, which would not
        # tell of a full disk.
        self._path = workdir / "tensorboard" / f"events.out.tfevents.{time.time():.6f}"
        self._events = RecordWriter(self._path.open("wb"))
        self._write_event(file_version="brain.Event:2")
        # TensorBoard forgets later steps of the run before.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write_event(step=first_step + 1, session_log=start)

    def write(self, step: int, row: Row) -> None:
        try:
            for name, value in row.items():
                number = self._summary.Value(tag=name, simple_value=value)
                self._write_event(step=step, summary=self._summary(value=[number]))
            self._events.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._events.close()

    def _write_event(self, **content: Any) -> None:
        self._events.write(self._event(wall_time=time.time(), **content).SerializeToString())
