"""Batches in order, from a thread and from processes: the same results, errors where they belong, no process left behind."""

import gc
import itertools
import multiprocessing
import os
import time

import numpy as np
import pytest

from bert_jax.data.feeder import feed
from bert_jax.errors import UserError


def make(step: int) -> dict[str, np.ndarray]:
    if step == 7:
        raise UserError("seven is damaged; copy it again")
    time.sleep(0.01 * (step % 3))  # so that others finish first
    return {"step": np.array([step]), "process": np.array([os.getpid()])}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order(workers):
    batches = list(feed(make, 1, 7, workers, prefetch=4))
    assert [int(batch["step"][0]) for batch in batches] == list(range(1, 7))
    processes = {int(batch["process"][0]) for batch in batches}
    assert processes == {os.getpid()} if not workers else os.getpid() not in processes and len(processes) == workers


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_where_its_batch_would_have(workers):
    batches = feed(make, 0, 100, workers, prefetch=5)
    assert [int(batch["step"][0]) for batch in itertools.islice(batches, 7)] == list(range(7))
    with pytest.raises(UserError, match=r"^seven is damaged; copy it again$"):
        next(batches)


def test_no_process_is_left():
    batches = feed(make, 10, 1 << 40, workers=2, prefetch=4)
    next(batches)
    assert len(multiprocessing.active_children()) >= 2
    del batches
    gc.collect()
    for process in multiprocessing.active_children():
        process.join(20)
    assert not multiprocessing.active_children()
