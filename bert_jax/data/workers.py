"""Work that processes, or a thread of this one, do ahead of its use; the results come in order."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import connection
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_KEEP_MEMORY = {-4: 0, -1: -1}  # M_MMAP_MAX and M_TRIM_THRESHOLD (never), as numbered in glibc's malloc.h

_state: Any  # of a worker process


def in_order(work: Callable[[Any, T], R], state: Any, tasks: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """Yields work(state, task) for each task, in order; an error of one is raised where its result would have come.

    Args:
      work: a function of a module.
      state: what all tasks need; each process gets it once.
      tasks: taken one after the other.
      workers: processes; 0: a thread of this process.
      ahead: tasks begun before their results are asked for.
    """
    pool: Executor = process_pool(workers, state) if workers else ThreadPoolExecutor(1)
    pending = deque[Future[R]]()
    try:
        for task in tasks:
            pending.append(submit(pool, work, task) if workers else pool.submit(work, state, task))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(
            wait=False, cancel_futures=True
        )  # at the end of the program there may be nothing left to wait for


def process_pool(workers: int, state: Any) -> ProcessPoolExecutor:
    """Returns a pool for `submit`, whose processes get the state once and end with this one."""
    # `spawn`: tokenizers, array_record and jax run threads, which a fork would break.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (state,))


def submit(pool: Executor, work: Callable[[Any, T], R], task: T) -> Future[R]:
    """Begins work(state, task) in a process of a `process_pool`."""
    with _without_interrupts():
        return pool.submit(_call, work, task)


def _call(work: Callable[[Any, T], R], task: T) -> R:
    return work(_state, task)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started within do not hear SIGINT, which Ctrl-C sends to all of a command: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(state: Any) -> None:
    global _state
    _state = state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    # A pool's workers outlive a killed parent, waiting for work; this lets them notice.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # Else every large array is given back to the kernel and fetched again, which takes half of the time of a batch.
        for parameter, value in _KEEP_MEMORY.items():
            libc.mallopt(parameter, value)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
