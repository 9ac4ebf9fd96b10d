"""Training steps of a task on a mesh: batches on the devices, and the step compiled for each of their shapes."""

import collections
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.data.feeder import feed
from bert_jax.objectives.losses import FrozenParams
from bert_jax.parallel import hosts
from bert_jax.parallel.batches import local_rows, to_devices
from bert_jax.parallel.mesh import batch_sharding, batch_shards
from bert_jax.tasks.base import Phase, Task
from bert_jax.train.step import State, Training

ON_DEVICES = 2  # batches: the one in use, and the next one while it is copied


def training_batches(task: Task, mesh: Mesh, first_step: int) -> Iterator[dict[str, jax.Array]]:
    """Yields global batches [A, B, ...] from a step on, while the next ones are copied to the devices."""
    data, sharding = task.training, batch_sharding(mesh)

    def batches(phase: Phase) -> Iterator[dict[str, jax.Array]]:
        rows = local_rows(phase.shape.rows, phase.accumulation_steps, sharding)
        start = max(first_step, phase.first_step)
        for batch in feed(partial(data.batch, phase, rows), start, phase.until_step, data.workers, data.prefetch):
            yield to_devices(batch, rows, phase.shape.rows, phase.accumulation_steps, sharding)

    phases = data.phases(batch_shards(mesh))
    return ahead(itertools.chain.from_iterable(batches(phase) for phase in phases if first_step < phase.until_step))


def ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields the batches after taking ON_DEVICES of them ahead."""
    waiting = collections.deque(itertools.islice(batches, ON_DEVICES))
    while waiting:
        yield waiting.popleft()
        waiting.extend(itertools.islice(batches, 1))


def compile_step(
    training: Training,
    task: Task,
    state: State,
    frozen: FrozenParams,
    first_step: int,
    mesh: Mesh,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Any]]:
    """Returns the training step, compiled for the batches of all remaining phases.

    Processes wait for each other here, because compilation times differ, and collectives of the first step time out.
    """
    sharding = batch_sharding(mesh)
    programs: dict[tuple[int, ...], Any] = {}
    for phase in task.training.phases(batch_shards(mesh)):
        leading = (phase.accumulation_steps, phase.shape.rows // phase.accumulation_steps)
        shape = (*leading, phase.shape.length)
        if first_step < phase.until_step and shape not in programs:
            row = task.training.batch(phase, np.arange(1), max(first_step, phase.first_step))
            batch = {
                name: jax.ShapeDtypeStruct((*leading, *array.shape[1:]), array.dtype, sharding=sharding)
                for name, array in row.items()
            }
            programs[shape] = training.step.lower(state, frozen, batch).compile()
    hosts.meet("training step compiled")
    return lambda state, batch: programs[batch["input_ids"].shape](state, frozen, batch)
