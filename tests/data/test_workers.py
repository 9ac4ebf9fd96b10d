"""Work in order, in a thread and in processes: the same results, errors where they belong, nothing left behind."""

import itertools
import multiprocessing
import os
import time

import pytest

from bert_jax.data.workers import in_order
from bert_jax.errors import UserError


def work(state: int, task: int) -> tuple[int, int]:
    if task == 7:
        raise UserError("seven is damaged; copy it again")
    time.sleep(0.01 * (task % 3))  # so that others finish first
    return state * task, os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order(workers):
    results = list(in_order(work, 10, range(7), workers, ahead=4))
    assert [result for result, _ in results] == [10 * task for task in range(7)]
    processes = {process for _, process in results}
    assert processes == {os.getpid()} if not workers else os.getpid() not in processes and len(processes) <= workers


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_where_its_result_would_have(workers):
    results = in_order(work, 1, itertools.count(), workers, ahead=5)
    assert [result for result, _ in itertools.islice(results, 7)] == list(range(7))
    with pytest.raises(UserError, match=r"^seven is damaged; copy it again$"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_begins_before_it_is_asked_for_and_no_process_is_left(workers):
    taken = []
    results = in_order(work, 1, (taken.append(task) or task for task in itertools.count(10)), workers, ahead=3)
    assert not taken
    next(results)
    assert len(taken) == 3
    results.close()
    for process in multiprocessing.active_children():
        process.join(20)
    assert not multiprocessing.active_children()
