"""Batches made ahead of the training, by a thread of this process or by processes of their own."""

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator

from absl import flags

from bert_jax.data.joining import HostBatch
from bert_jax.data.workers import end_with_parent


def feed(
    make: Callable[[int], HostBatch], first_step: int, until_step: int, workers: int, prefetch: int
) -> Iterator[HostBatch]:
    """Yields make(step) for each step from `first_step` to `until_step` - 1, in order.

    Args:
      make: makes the batch of a step; it is sent to the workers, so it must pickle.
      first_step: first step.
      until_step: step after the last one.
      workers: number of processes, which take turns; 0 for a thread of this process.
      prefetch: number of batches made ahead.
    """
    import grain  # lazy import: it is slow, and only training needs it

    grain.config.update("py_traceback_filtering", "off")  # it would add lines to the messages of errors
    batches = grain.MapDataset.range(first_step, until_step).map(make)
    if not workers:
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)))
    if not flags.FLAGS.is_parsed():  # grain reads some of its own; there are none to parse where no command was started
        flags.FLAGS.mark_as_parsed()
    each = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-prefetch // workers))
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    # Through pipes: shared memory, made anew for each array, takes more time, and containers have little of it.
    through_pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    return iter(grain.experimental.WithOptionsIterDataset(dataset, through_pipes).mp_prefetch(each, _start_worker))


def _start_worker(index: int, count: int) -> None:
    """Prepares a worker process: its parent ends it on Ctrl-C, it ends with its parent, and it keeps its memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # Else each array of a batch is given back to the kernel and fetched again: half of the time goes there.
        for parameter, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD of glibc's malloc.h
            libc.mallopt(parameter, value)
