"""Runs items of many requests together: whatever waits when the devices are free fills the rows of the next batch.

A program is compiled for a few shapes of batches. No timer waits for more requests: while a batch is computed others arrive,
and an idle server starts at once. Requests are taken in the order of their arrival.
"""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from bert_jax.model.build import Params
from bert_jax.parallel.batches import BatchShape
from bert_jax.parallel.mesh import batch_shards, mesh_of
from bert_jax.tasks.common.packing import Item, Output, Rows, filled_rows, unpacked
from bert_jax.tasks.common.prediction import Prediction, most_items, run_batch

logger = logging.getLogger(__name__)
SHORTEST_ROW = 32  # tokens; for a single short text on an idle server
FEWER_ROWS = 4  # how many times fewer rows the next smaller shape has


class Full(Exception):
    """Too much is waiting already; `seconds` is how long that will take."""

    def __init__(self, seconds: float):
        super().__init__(f"the queue is full; try again in {seconds:.0f} s")
        self.seconds = seconds


class Program:
    """A prediction with its parameters, and the shapes of its batches, the smallest first."""

    def __init__(self, prediction: Prediction, params: Params, batch_tokens: int):
        self.prediction, self.params = prediction, params
        self.shapes = batch_shapes(prediction.row_length, batch_tokens, batch_shards(mesh_of(params)))

    def fitting(self, items: Sequence[Item]) -> tuple[Rows, BatchShape]:
        """Returns the rows of a batch that holds the first items, all of them if they fit, and the shape of the batch."""
        lengths = np.array([item.length for item in items])
        most = self.shapes[-1]
        rows = filled_rows(lengths, most.length, most.most)
        if len(rows) == 1:
            is_enough = [shape.length >= lengths.sum() and shape.most >= len(items) for shape in self.shapes]
            return rows, self.shapes[is_enough.index(True)]
        rows = sorted(rows, key=min)[: most.rows]
        is_enough = [shape.rows >= len(rows) and shape.length == most.length for shape in self.shapes]
        return rows, self.shapes[is_enough.index(True)]

    def run(self, items: Sequence[Item], rows: Rows, shape: BatchShape) -> list[Output]:
        """Returns the outputs for the items in the rows, {} for others."""
        pad_id = self.prediction.tokenizer.pad_id
        return unpacked(run_batch(self.prediction.compute, self.params, items, rows, shape, pad_id), items, rows)

    def compile(self, items: Sequence[Item]) -> None:
        """Compiles the program for each shape, with each item on its own: they must lead to all of its variants."""
        for shape in self.shapes:
            for item in items:
                if item.length <= shape.length:
                    self.run([item], [[0]], shape)


def batch_shapes(length: int, batch_tokens: int, shards: int) -> list[BatchShape]:
    """Returns the shapes of batches of rows of `length` tokens, up to about `batch_tokens`, in increasing order."""
    rows = most = max(1, batch_tokens // (length * shards))
    numbers = {1}
    while rows > 1:
        numbers.add(rows)
        rows //= FEWER_ROWS
    assert most in numbers
    shapes = [BatchShape(number * shards, length, most_items(length)) for number in sorted(numbers)]
    if length >= 2 * SHORTEST_ROW and shards == 1:
        shapes.insert(0, BatchShape(1, SHORTEST_ROW, most_items(SHORTEST_ROW)))
    return shapes


@dataclasses.dataclass(eq=False)
class _Job:
    """Items of a request, of which some may have been computed."""

    program: Program
    items: list[Item]
    future: "Future[list[Output]]"
    outputs: list[Output] = dataclasses.field(default_factory=list)
    tokens: int = 0
    remaining: int = 0  # items

    def __post_init__(self):
        self.outputs, self.remaining = [{} for _ in self.items], len(self.items)
        self.tokens = sum(item.length for item in self.items)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What was computed, for the metrics."""

    tokens: int
    slots: int  # tokens that the shape has space for
    seconds: float


class Scheduler:
    """A thread that computes the items of all requests. `submit`, `close` and the properties may be used by any thread."""

    def __init__(self, most_tokens: int, on_batch: Callable[[Batch], None] = lambda batch: None):
        """Starts the thread. At most `most_tokens` wait."""
        self._most_tokens, self._on_batch = most_tokens, on_batch
        self._waiting = collections.deque[tuple[_Job, int]]()
        self._tokens = 0  # of `_waiting`
        self._tokens_per_second = 0.0  # a moving average
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting_tokens(self) -> int:
        return self._tokens

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, program: Program, items: list[Item]) -> "Future[list[Output]]":
        """Queues items. The future gets the output for each; to cancel it drops those that still wait.

        Raises:
          Full: more tokens would wait than allowed, unless nothing waits.
        """
        job = _Job(program, items, Future())
        with self._changed:
            if self._is_closed:
                raise Full(1.0)
            if self._waiting and self._tokens + job.tokens > self._most_tokens:
                raise Full(max(1.0, self._tokens / (self._tokens_per_second or self._tokens)))
            if not items:
                job.future.set_result([])
                return job.future
            self._waiting.extend((job, number) for number in range(len(items)))
            self._tokens += job.tokens
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Computes what waits, and ends the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while chosen := self._wait():
            program, items = chosen[0][0].program, [job.items[number] for job, number in chosen]
            start = time.perf_counter()
            rows, shape = program.fitting(items)
            taken = {number for row in rows for number in row}
            self._put_back([entry for number, entry in enumerate(chosen) if number not in taken])
            try:
                outputs = program.run(items, rows, shape)
            except Exception as error:  # of this batch; the server goes on
                logger.exception("a batch failed")
                for job in {chosen[number][0] for number in taken}:
                    _finish(job.future, error)
                continue
            for number in sorted(taken):
                job, index = chosen[number]
                job.outputs[index] = outputs[number]
                job.remaining -= 1
                if not job.remaining:
                    _finish(job.future, job.outputs)
            tokens = sum(items[number].length for number in taken)
            self._measured(Batch(tokens, shape.rows * shape.length, time.perf_counter() - start))

    def _wait(self) -> list[tuple[_Job, int]]:
        """Waits for items, and takes those of the program of the oldest; none once the scheduler is closed and all is done."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._waiting:
                    break
                if self._is_closed:
                    return []
                self._changed.wait()
            program, chosen, others = self._waiting[0][0].program, list[tuple[_Job, int]](), list[tuple[_Job, int]]()
            most = program.shapes[-1]
            space, places = most.rows * most.length, most.rows * most.most
            while self._waiting and space > 0 and len(chosen) < places:
                entry = self._waiting.popleft()
                if entry[0].program is not program:
                    others.append(entry)
                    continue
                chosen.append(entry)
                space -= _length(entry)
            self._waiting.extendleft(reversed(others))
            self._tokens -= sum(map(_length, chosen))
            return chosen

    def _drop_cancelled(self) -> None:
        kept = [entry for entry in self._waiting if not entry[0].future.done()]  # cancelled, or failed in another batch
        if len(kept) < len(self._waiting):
            self._waiting = collections.deque(kept)
            self._tokens = sum(map(_length, kept))

    def _put_back(self, entries: list[tuple[_Job, int]]) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(entries))
            self._tokens += sum(map(_length, entries))

    def _measured(self, batch: Batch) -> None:
        rate = batch.tokens / max(batch.seconds, 1e-6)
        self._tokens_per_second = 0.9 * self._tokens_per_second + 0.1 * rate if self._tokens_per_second else rate
        self._on_batch(batch)


def _length(entry: tuple[_Job, int]) -> int:
    job, number = entry
    return job.items[number].length


def _finish(future: "Future[Any]", result: Any) -> None:
    """Sets the result or the exception of a future that may have been cancelled."""
    if future.set_running_or_notify_cancel():
        future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)
