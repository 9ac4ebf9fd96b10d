"""Worker processes."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection
from typing import Any


class Workers:
    """Processes that share some work; with one, it is done in this process. A context manager."""

    def __init__(self, number: int, start: Callable[[], object] | None = None):
        """Calls `start` in each process that works, which must be a function of a module, or a partial of one."""
        self._number, self._pool = number, None
        if number == 1:
            if start:
                start()
            return
        # `spawn`, because this process may run threads (of tokenizers, array_record, jax), which do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(number, context, _start_worker, (start,))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)  # after an error nothing else is begun

    def in_order(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yields function(item) for each item, in order; 2 items of each process are read ahead."""
        if self._pool is None:
            yield from map(function, items)
            return
        pending = deque[Future[Any]]()
        for item in items:
            with block_interrupts():
                pending.append(self._pool.submit(function, item))
            if len(pending) >= 2 * self._number:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _start_worker(start: Callable[[], object] | None) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    if start:
        start()
    end_with_parent()


@contextlib.contextmanager
def block_interrupts() -> Iterator[None]:
    """Blocks SIGINT in processes started within; Ctrl-C sends it to all processes, but the parent stops its workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Ends this process when the process that started it has ended, even if that was killed."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
