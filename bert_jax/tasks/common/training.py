"""Training data as tasks provide it, by phase and step; its batches on the devices; the step compiled for each shape."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.data.feeder import feed
from bert_jax.objectives.losses import FrozenParams
from bert_jax.parallel import hosts
from bert_jax.parallel.batches import BatchShape, HostBatch, local_rows, to_devices
from bert_jax.parallel.mesh import batch_sharding, batch_shards
from bert_jax.train.step import State, Training

ON_DEVICES = 2  # batches: the one in use, and the next one while it is copied


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps `first_step` to `until_step` - 1, on batches of one shape. Most runs have a single phase.

    The number of an example is a sum over the phases before it, so the step is the only state of the data.
    """

    number: int  # of the phase, from 0
    first_step: int
    until_step: int
    shape: BatchShape
    accumulation_steps: int = 1  # microbatches of a step, one after the other
    first_example: int = 0  # number of the phase's first example

    @property
    def examples(self) -> range:
        """Numbers of the examples of the phase, where each row is one example."""
        return range(self.first_example, self.first_example + (self.until_step - self.first_step) * self.shape.rows)

    def numbers(self, step: int) -> np.ndarray:
        """Returns the numbers of the examples of a step, int64 [rows], where each row is one example."""
        first = self.first_example + (step - self.first_step) * self.shape.rows
        return np.arange(first, first + self.shape.rows)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """Returns the phase that a step is in; the last one for steps after the end of the run."""
    return next((phase for phase in phases if step < phase.until_step), phases[-1])


class TrainingData(Protocol):
    """The batches that a run is trained on, by step."""

    @property
    def summary(self) -> str:
        """Description of the data in one line, for the log."""

    def shares(self, step: int) -> tuple[float, float]:
        """Returns the shares of positions that are read and predicted in a step (see objectives/base.py, `shares`)."""

    @property
    def workers(self) -> int:
        """Number of processes that make batches; 0 for threads of this one."""

    @property
    def prefetch(self) -> int:
        """Number of batches made ahead."""

    def validate(self, shards: int) -> None:
        """Raises UserError if the data is missing or does not fit the run; called before anything is written.

        Args:
          shards: parts that the rows of a microbatch are split into.
        """

    def phases(self, shards: int) -> list[Phase]:
        """Returns the phases of the run, whose shapes may depend on `shards` (see `validate`)."""

    def batch(self, phase: Phase, rows: np.ndarray, step: int) -> HostBatch:
        """Returns these rows of the batch of a step; the result depends on nothing else."""

    def describe(self, step: int) -> str:
        """Returns a text that names the examples of a batch, for messages."""

    def effect_of_batch_size(self, before: int, step: int) -> str:
        """Describes the effect on the examples seen of changing the batch size from `before` to the config's at `step`."""


def training_batches(data: TrainingData, mesh: Mesh, first_step: int) -> Iterator[dict[str, jax.Array]]:
    """Yields global batches [A, B, ...] from a step on, while the next ones are copied to the devices."""
    sharding = batch_sharding(mesh)

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
    training_at: Callable[[int], Training],
    data: TrainingData,
    state: State,
    frozen: FrozenParams,
    first_step: int,
    mesh: Mesh,
) -> Callable[[int, State, dict[str, jax.Array]], tuple[State, Any]]:
    """Returns a function (step, state, batch) -> (state, metrics), compiled for all remaining phases.

    Processes wait for each other here, because compilation times differ, and collectives of the first step time out.

    Args:
      training_at: returns what a step of the run is trained with. Phases with the same, and batches of the same shapes, share a
        program.
      data: of the run.
      state: of the run.
      frozen: parameters of the frozen models.
      first_step: steps done before.
      mesh: of the run.
    """
    sharding, phases = batch_sharding(mesh), data.phases(batch_shards(mesh))
    programs: dict[Any, Any] = {}
    of_phase: dict[int, Any] = {}
    for phase in phases:
        if first_step >= phase.until_step:
            continue
        leading = (phase.accumulation_steps, phase.shape.rows // phase.accumulation_steps)
        row = data.batch(phase, np.arange(1), max(first_step, phase.first_step))
        batch = {
            name: jax.ShapeDtypeStruct((*leading, *array.shape[1:]), array.dtype, sharding=sharding)
            for name, array in row.items()
        }
        training = training_at(phase.first_step)
        key = training.step, tuple((name, array.shape) for name, array in sorted(batch.items()))
        if key not in programs:
            programs[key] = training.jitted_step.lower(state, frozen, batch).compile()
        of_phase[phase.number] = programs[key]
    hosts.meet("training step compiled")
    return lambda step, state, batch: of_phase[phase_at(phases, step).number](state, frozen, batch)
