"""Options of the phases of a pretraining run, and the steps that each of them takes."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from bert_jax.errors import UserError

ROUNDING = 1e-6  # of a sum of shares


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """Options of a phase; 0, '' and () stand for those of the run.

    A phase with a `corpus` of its own has just its own `mixture`.
    """

    until_step: int = 0  # the phase ends after this step of the run ...
    share: float = 0.0  # ... or takes this share of its steps; all phases of a run say the same of the two
    batch_size: int = 0  # sequences of a step
    accumulation_steps: int = 0  # microbatches of a step
    sequence_length: int = 0  # tokens of an example, special tokens included
    corpus: str = ""  # folder of a corpus
    mixture: tuple[str, ...] = ()  # further corpora, 'SHARE:FOLDER'
    # Of `mlm`. With the second one the probability goes linearly from the first one to it, over the phase.
    mlm_probability: float = 0.0
    mlm_probability_end: float = 0.0  # the share at the end of the phase
    # Rotary base of layers that attend globally. `model.rope_theta` is that of the last phase, and of the trained model.
    rope_theta: float = 0.0
    # The learning rate of the phase: a warm-up from 0, counted from its first step, then the schedule over its own steps.
    schedule: str = ""
    learning_rate: float = 0.0  # the peak, at the end of warm-up
    warmup_steps: int = 0  # steps of the phase in which the rate rises from 0

    def __post_init__(self):
        for field in ("until_step", "batch_size", "accumulation_steps", "sequence_length", "warmup_steps"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")
        for field in ("share", "mlm_probability", "mlm_probability_end"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"{field}={getattr(self, field)} must be from 0 to 1")
        for field in ("rope_theta", "learning_rate"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")
        if not self.schedule and (self.learning_rate or self.warmup_steps):
            raise ValueError("learning_rate and warmup_steps of a phase need its schedule, e.g. 'constant'")


def with_steps(phases: Sequence[PhaseConfig], num_steps: int) -> tuple[PhaseConfig, ...]:
    """Returns phases that all say where they end; a single one if there are none.

    Raises:
      UserError: they do not follow one another up to `num_steps`, a share is less than one step, or some have a share and
        others a step.
    """
    if not phases:
        return (PhaseConfig(until_step=num_steps),)
    with_share = [phase for phase in phases if phase.share]
    if with_share and (len(with_share) < len(phases) or any(phase.until_step for phase in phases)):
        raise UserError("phases: some have a share and some until_step; use one of them for all")
    if with_share:
        ends = list(itertools.accumulate(phase.share for phase in phases))
        if abs(ends[-1] - 1.0) > ROUNDING:
            shares = " + ".join(f"{phase.share:g}" for phase in phases)
            raise UserError(f"phases: their shares are {shares} = {ends[-1]:g} of the steps; they must add up to 1")
        until = [round(end / ends[-1] * num_steps) for end in ends]
        for phase, start, end in zip(phases, [0, *until], until, strict=False):
            if start == end:
                raise UserError(
                    f"phases: a share of {phase.share:g} of {num_steps} steps is less than one step; use more steps"
                )
        phases = [
            dataclasses.replace(phase, until_step=end, share=0.0) for phase, end in zip(phases, until, strict=True)
        ]
    until = [phase.until_step for phase in phases]
    listed_ends = f"phases: until_step is {', '.join(map(str, until))}"
    if [0, *until] != sorted({0, *until}):
        raise UserError(f"{listed_ends}; each phase must end after the one before it")
    if until[-1] != num_steps:
        raise UserError(
            f"{listed_ends}, and train.num_steps={num_steps}; let the last phase and the run end at the same step"
        )
    return tuple(phases)


def batch_warmup(phase: PhaseConfig, first: int, number: int, multiple: int) -> tuple[PhaseConfig, ...]:
    """Cuts a phase with a share into `number` (2 or more) equal ones, whose batches grow evenly to the size of the phase.

    Each size is a program of its own, compiled at the start.

    Args:
      phase: without a mask rate or a schedule that changes in its course, which would begin anew in each part.
      first: sequences of the first batches.
      number: of parts.
      multiple: of the sizes, which must divide over devices and microbatches.
    """
    assert not (phase.schedule or phase.mlm_probability_end) and number > 1
    sizes = np.linspace(first, phase.batch_size, number) / multiple
    return tuple(
        dataclasses.replace(phase, share=phase.share / number, batch_size=multiple * round(size)) for size in sizes
    )
