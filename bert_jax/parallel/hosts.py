"""Processes: starting several as one job, and stopping all of them at the same step when one is told to end."""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from bert_jax.errors import LONGEST_MESSAGE, UserError
from bert_jax.lock import locked

# How long a process that ends waits for the others to end. One that fails may wait for others that wait for it, in a step.
_SHUTDOWN_SECONDS = 60
# For mallopt, as numbered in glibc's malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TOP_PAD (bytes), M_TRIM_THRESHOLD (-1: never).
_KEEP_MEMORY = {-8: 1, -4: 0, -2: 1 << 28, -1: -1}


def start(distributed: str) -> None:
    """Joins this process to its job, and on CPU keeps its memory; to be called before anything else touches jax.

    Args:
      distributed: '' for a single process; 'auto' where the cluster says who is who (TPU pods, Slurm, Kubernetes, MPI);
        'HOST:PORT,COUNT,NUMBER' to say it: process NUMBER of COUNT, the first of which listens at HOST:PORT.

    Raises:
      UserError: any other text, no cluster to join, or processes that do not find each other.
    """
    _keep_memory_on_cpu()
    if not distributed:
        return
    try:
        if distributed == "auto":
            jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
        else:
            address, count, number = distributed.split(",")
            jax.distributed.initialize(address, int(count), int(number), shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed={distributed}: {error}; use 'auto' or 'HOST:PORT,COUNT,NUMBER'") from None


def _keep_memory_on_cpu() -> None:
    """Keeps the memory of a step for the next one if the CPU computes: allocating it anew takes a sixth of the time.

    It must be said before XLA starts its threads, so before jax can say what it will run on. With an accelerator the one
    arena would only make the host's threads wait for each other.
    """
    has_accelerator = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    if sys.platform == "linux" and (os.environ.get("JAX_PLATFORMS") == "cpu" or not has_accelerator):
        libc = ctypes.CDLL(None)
        for parameter, value in _KEEP_MEMORY.items() if hasattr(libc, "mallopt") else ():
            libc.mallopt(parameter, value)


def meet(what: str) -> None:
    """Returns when all processes of the job are here; unlike a collective, it may take long (two hours)."""
    if jax.process_count() > 1:
        barrier = ocp.multihost.get_barrier_sync_fn()
        barrier(key=what, timeout_ms=2 * 3600 * 1000)


def is_first() -> bool:
    """Returns whether this process writes the run's logs and reports."""
    return jax.process_index() == 0


def from_first(text: str) -> str:
    """Returns the text that the first process gives, a message of at most LONGEST_MESSAGE bytes, in every process."""
    if jax.process_count() == 1:
        return text
    meet("text from the first process")
    padded = np.zeros(LONGEST_MESSAGE, np.uint8)
    content = text.encode()[:LONGEST_MESSAGE]
    padded[: len(content)] = list(content)
    return bytes(multihost_utils.broadcast_one_to_all(padded)).rstrip(b"\0").decode(errors="replace")


class StopSignal:
    """Hears SIGTERM, which schedulers send before they take a machine back.

    With several processes jax's preemption service receives it, and all processes stop at the same step.
    """

    def __init__(self):
        self._received, self._asked = False, 0
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def requested(self) -> bool:
        """Returns whether to save and stop. With several processes all must ask equally often."""
        self._asked += 1
        return self._received or multihost_utils.reached_preemption_sync_point(self._asked)


@functools.cache
def stop_signal() -> StopSignal:
    """Returns the signal of this process, which may train several runs, one after the other, and listens between them, too."""
    return StopSignal()


@contextlib.contextmanager
def interrupts_stop() -> Iterator[None]:
    """Treats a first SIGINT (Ctrl-C) as SIGTERM; a second one ends this process at once.

    Where SIGINT is ignored, as in the background of a script, it stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # print would not do: the signal may come within another print
            os.write(2, b"stopping after this step, which is then saved; interrupt again to end at once\n")
        os.kill(os.getpid(), signal.SIGTERM)  # which jax's preemption service receives, too

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@contextlib.contextmanager
def locked_by_job(folder: Path, remedy: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of a folder (see lock.py) in the first process of a job; all processes fail if it is taken.

    Raises:
      UserError: another job holds it, or it cannot be locked; the message ends with `remedy`.
    """
    with contextlib.ExitStack() as stack:
        check, problem = _no_check, ""
        if is_first():
            try:
                check = stack.enter_context(locked(folder, f"wait for it, stop it, or {remedy}"))
            except UserError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{error.filename}: cannot be locked ({error.strerror}); {remedy}"
        if problem := from_first(problem):
            raise UserError(problem)
        yield check


def _no_check() -> None:
    pass
