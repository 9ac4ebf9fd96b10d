"""Batches made ahead of the training, by threads of this process or by processes of their own."""

from collections.abc import Callable, Iterator

import numpy as np

THREADS = 2  # that make batches where no processes do
HostBatch = dict[str, np.ndarray]


def feed(
    make: Callable[[int], HostBatch], first_step: int, until_step: int, workers: int, prefetch: int
) -> Iterator[HostBatch]:
    """Yields make(step) for each step from `first_step` to `until_step` - 1, in order.

    Args:
      make: makes the batch of a step; it is sent to the workers, so it must pickle.
      first_step: of the batches.
      until_step: after the last one.
      workers: processes; 0: threads of this process.
      prefetch: batches made ahead.
    """
    import grain  # lazy import: it is slow, and only training needs it

    steps = grain.MapDataset.range(first_step, until_step).map(make)
    if not workers:
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=prefetch)))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, prefetch // workers))
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(steps.to_iter_dataset(reading).mp_prefetch(options))
