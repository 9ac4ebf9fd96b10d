"""Phases: consecutive steps on batches of one shape. A run has one, or e.g. short sequences first and long ones at the end.

The number of an example is a sum over the phases before it, so the step is the only state of the data.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bert_jax.parallel.batches import BatchShape


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps `first_step` to `until_step` - 1."""

    first_step: int
    until_step: int
    shape: BatchShape
    accumulation_steps: int = 1  # microbatches of a step, one after the other
    first_example: int = 0  # number of the phase's first example

    def numbers(self, step: int) -> np.ndarray:
        """Returns the numbers of the examples of a step, int64 [rows], where each row is one example."""
        first = self.first_example + (step - self.first_step) * self.shape.rows
        return np.arange(first, first + self.shape.rows)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """Returns the phase that a step is in; the last one for steps after the end of the run."""
    return next((phase for phase in phases if step < phase.until_step), phases[-1])
