"""Placeholder until the schedules are merged."""

from typing import NamedTuple


class RatePiece(NamedTuple):
    first_step: int
    until_step: int
    learning_rate: float
    warmup_steps: int
    schedule: str
