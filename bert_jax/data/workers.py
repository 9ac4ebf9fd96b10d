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
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields function(item) for all items in their order; with several workers, that many processes compute them.

    At most 2 * workers items are read ahead. `function` must be one of a module, or a partial of one.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # `spawn`, because this process may run threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pending = deque[Future[Result]]()
    with ProcessPoolExecutor(workers, context, end_with_parent) as pool:
        for item in items:
            with block_interrupts():
                pending.append(pool.submit(function, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)


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
