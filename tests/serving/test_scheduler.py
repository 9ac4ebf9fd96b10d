"""The scheduler: every item gets its own output, whatever shares its batch; what is cancelled makes space; nothing is lost."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.serving.scheduler import Full, Program, Scheduler, batch_shapes
from bert_jax.tasks.common.packing import Item, packed, unpacked

LENGTH = 64


class Sums(Program):
    """Computes the sum of the ids of each item from the packed rows; no model."""

    def __init__(self, rows: int = 4, seconds: float = 0.0):
        self.shapes = batch_shapes(LENGTH, rows * LENGTH, 1)
        self.seconds, self.batches = seconds, []
        self.free = threading.Event()
        self.free.set()

    def run(self, items, rows, shape):
        self.free.wait()
        time.sleep(self.seconds)
        self.batches.append([sorted(int(items[one].tokens["input_ids"][0]) for row in rows for one in row), shape])
        batch = packed(items, rows + [[]] * (shape.rows - len(rows)), shape, pad_id=0)
        assert batch["input_ids"].shape == (shape.rows, shape.length)
        numbers = np.arange(1, shape.most + 1)
        is_own = batch["segment_ids"][:, None] == numbers[None, :, None]
        return unpacked({"sum": np.where(is_own, batch["input_ids"][:, None], 0).sum(-1)}, items, rows)


def item(number: int, length: int = 4) -> Item:
    return Item({"input_ids": np.full(length, number, np.int32)}, {})


@pytest.fixture
def scheduler():
    started = Scheduler(most_tokens=10_000)
    yield started
    started.close()


@settings(max_examples=30, deadline=None)
@given(
    requests=st.lists(
        st.lists(st.tuples(st.integers(1, 99), st.integers(1, LENGTH)), max_size=12), min_size=1, max_size=20
    ),
    rows=st.sampled_from([1, 2, 8]),
)
def test_every_item_gets_its_own_output(requests, rows):
    scheduler, program = Scheduler(10**9), Sums(rows)
    with ThreadPoolExecutor(8) as clients:
        items = [[item(*values) for values in request] for request in requests]
        futures = list(clients.map(lambda one: scheduler.submit(program, one), items))
    for request, future in zip(requests, futures, strict=True):
        assert [int(output["sum"]) for output in future.result(timeout=30)] == [
            number * size for number, size in request
        ]
    scheduler.close()
    assert scheduler.waiting_tokens == 0 and not scheduler.is_alive
    assert all(shape in program.shapes for _, shape in program.batches)


def test_requests_that_wait_share_a_batch_and_an_idle_server_waits_for_nobody(scheduler):
    program = Sums()
    program.free.clear()
    first = scheduler.submit(program, [item(1)])
    time.sleep(0.1)
    others = [scheduler.submit(program, [item(number)]) for number in range(2, 30)]
    program.free.set()
    wait([first, *others], timeout=30)
    assert [numbers for numbers, _ in program.batches] == [[1], list(range(2, 30))]
    assert program.batches[0][1].length < LENGTH, "a short text alone has a short row"


def test_the_oldest_come_first_across_programs(scheduler):
    one, other = Sums(rows=1), Sums(rows=1)
    one.free.clear()
    futures = [scheduler.submit(one, [item(1, LENGTH)])]
    time.sleep(0.1)
    for number in range(2, 8):
        futures.append(scheduler.submit(one if number % 2 else other, [item(number, LENGTH)]))
    done = []
    for number, future in enumerate(futures, 1):
        future.add_done_callback(lambda _, number=number: done.append(number))
    one.free.set()
    wait(futures, timeout=30)
    assert done == list(range(1, 8))


def test_cancelled_requests_are_not_computed(scheduler):
    program = Sums()
    program.free.clear()
    running = scheduler.submit(program, [item(1)])
    time.sleep(0.1)
    cancelled, kept = (scheduler.submit(program, [item(number, 40)]) for number in (2, 3))
    assert scheduler.waiting_tokens == 80 and cancelled.cancel()
    program.free.set()
    wait([running, kept], timeout=30)
    assert [numbers for numbers, _ in program.batches] == [[1], [3]] and scheduler.waiting_tokens == 0


def test_a_full_queue_says_how_long_it_takes(scheduler):
    program = Sums()
    program.free.clear()
    futures = [scheduler.submit(program, [item(1)])]
    time.sleep(0.1)
    futures += [scheduler.submit(program, [item(2, 50)] * 199)]
    with pytest.raises(Full) as full:
        scheduler.submit(program, [item(3, 51)])
    assert full.value.seconds >= 1
    futures.append(scheduler.submit(program, [item(3, 50)]))
    program.free.set()
    wait(futures, timeout=30)
    assert all(future.result() for future in futures)
    assert scheduler.submit(program, [item(4, 50)] * 300).result(timeout=30), "a large request alone is not refused"


def test_closing_computes_what_waits():
    scheduler, program = Scheduler(10_000), Sums(rows=1, seconds=0.02)
    futures = [scheduler.submit(program, [item(number, LENGTH)]) for number in range(1, 9)]
    scheduler.close()
    assert [int(future.result(timeout=0)[0]["sum"]) for future in futures] == [n * LENGTH for n in range(1, 9)]
    with pytest.raises(Full):
        scheduler.submit(program, [item(1)])


def test_a_batch_that_fails_fails_its_requests_alone(scheduler, monkeypatch):
    program = Sums()
    monkeypatch.setattr(program, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        scheduler.submit(program, [item(1)]).result(timeout=30)
    monkeypatch.undo()
    assert int(scheduler.submit(program, [item(2)]).result(timeout=30)[0]["sum"]) == 8


@pytest.mark.parametrize(
    ("length", "tokens", "shards", "rows"),
    [(128, 1024, 1, [1, 1, 2, 8]), (128, 16384, 1, [1, 1, 2, 8, 32, 128]), (384, 1024, 1, [1, 1, 2]), (32, 64, 2, [2])],
)
def test_shapes(length, tokens, shards, rows):
    shapes = batch_shapes(length, tokens, shards)
    assert [shape.rows for shape in shapes] == rows and {shape.length for shape in shapes} <= {32, length}
