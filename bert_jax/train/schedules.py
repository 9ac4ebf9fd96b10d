"""Learning rates by step: a warm-up, then one of several decays, for the whole run or for pieces of it.

The rate is a function of the step within the one program of a training step, so a change of it compiles nothing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.errors import UserError

# Decays: the share of the peak rate, from the progress (0 as the decay begins, 1 at its end) and the option `power`.
DECAYS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "linear": lambda progress, power: 1.0 - progress,
    "cosine": lambda progress, power: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "sqrt": lambda progress, power: 1.0 - jnp.sqrt(progress),  # Hägele et al. 2024 (2405.18392)
    "polynomial": lambda progress, power: (1.0 - progress) ** power,  # fairseq polynomial_decay_schedule.py
}
SCHEDULES = ("constant", *DECAYS, "linear_from_start", "inverse_sqrt", "wsd")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Options of the learning rate. The defaults are BERT's (Devlin et al. 2019, appendix A.2)."""

    learning_rate: float = 1e-4  # the peak, at the end of warm-up
    warmup_steps: int = 10_000  # steps in which the rate rises from 0
    schedule: str = "linear_from_start"  # one of SCHEDULES
    # The value that decays end at. That of inverse_sqrt never ends: it approaches this value.
    end_learning_rate: float = 0.0
    power: float = 1.0  # of polynomial
    decay_steps: int = 0  # of wsd, the last ones
    decay_shape: str = "sqrt"  # of wsd, one of DECAYS

    def __post_init__(self):
        for field in ("learning_rate", "warmup_steps", "end_learning_rate", "decay_steps"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"optimizer.{field}={getattr(self, field)} must be at least 0")
        if not self.power > 0:
            raise ValueError(f"optimizer.power={self.power} must be above 0")
        if self.decay_shape not in DECAYS:
            raise ValueError(f"optimizer.decay_shape={self.decay_shape!r} is not one of {', '.join(DECAYS)}")


class RatePiece(NamedTuple):
    """Steps `first_step` to `until_step` - 1 with a peak, a warm-up and a schedule of their own, all within these steps."""

    first_step: int
    until_step: int
    learning_rate: float  # the peak
    warmup_steps: int
    schedule: str  # one of SCHEDULES

    @property
    def num_steps(self) -> int:
        return self.until_step - self.first_step


def whole_run(config: ScheduleConfig, num_steps: int) -> RatePiece:
    """Returns the piece of a run that has only one."""
    return RatePiece(0, num_steps, config.learning_rate, config.warmup_steps, config.schedule)


def learning_rate(
    config: ScheduleConfig, num_steps: int, pieces: Sequence[RatePiece] = ()
) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate by step (from 0) of a run of `num_steps` steps.

    Step t of the warm-up has t / warmup_steps of the peak; with no warm-up the first step has the full rate. Steps in none of
    the pieces have the rate that the whole run's schedule has for them.

    The optimizer counts its updates itself; as each step is one, its count equals the state's `step`.

    Args:
      config: options.
      num_steps: of the run.
      pieces: in the order of their steps.

    Raises:
      UserError: an unknown schedule, options that contradict each other, or pieces that overlap.
    """
    run = whole_run(config, num_steps)
    _check(run, config, "optimizer.")
    end = 0
    for piece in pieces:
        steps = f"the learning rate of steps {piece.first_step} to {piece.until_step}"
        if not end <= piece.first_step < piece.until_step:
            raise UserError(f"{steps}: these must be at least one step, and come after step {end}")
        _check(piece, config, f"{steps}: ")
        end = piece.until_step

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        value = _rate_in(run, config, step)
        for piece in pieces:
            is_inside = (step >= piece.first_step) & (step < piece.until_step)
            value = jnp.where(is_inside, _rate_in(piece, config, step - piece.first_step), value)
        return value

    return rate


def _rate_in(piece: RatePiece, config: ScheduleConfig, step: jax.Array) -> jax.Array:
    """Returns the rate of a step that is counted from the first one of the piece."""
    peak, end = piece.learning_rate, config.end_learning_rate
    warmup = peak * (step / max(piece.warmup_steps, 1))
    return jnp.where(step < piece.warmup_steps, warmup, end + (peak - end) * _share(piece, config, step))


def _share(piece: RatePiece, config: ScheduleConfig, step: jax.Array) -> jax.Array:
    """Returns the share of the peak rate, above `end_learning_rate`, at a step after the warm-up."""

    def decay(shape: str, first_step: int) -> jax.Array:
        progress = (step - first_step) / max(piece.num_steps - first_step, 1)
        return DECAYS[shape](jnp.clip(progress, 0.0, 1.0), config.power)

    match piece.schedule:
        case "constant":
            return jnp.ones_like(step)
        case "linear_from_start":
            # google-research/bert optimization.py decays from step 0: the rate drops by (1 - warmup/total) as warm-up ends.
            return decay("linear", 0)
        case "inverse_sqrt":
            # Vaswani et al. 2017, section 5.3, with the peak as an option instead of one that follows from the model's size.
            first_step = max(piece.warmup_steps, 1)
            return jnp.sqrt(first_step / jnp.maximum(step, first_step))
        case "wsd":
            # Warm-up, stable, decay, as in ModernBERT (Warner et al. 2024, 2412.13663).
            return decay(config.decay_shape, piece.num_steps - config.decay_steps)
        case shape:
            return decay(shape, piece.warmup_steps)


def _check(piece: RatePiece, config: ScheduleConfig, place: str) -> None:
    """Raises UserError for options that do not fit a piece; `place` says whose they are."""
    if piece.schedule not in SCHEDULES:
        raise UserError(f"{place}schedule={piece.schedule!r} is not one of {', '.join(SCHEDULES)}")
    for field in ("learning_rate", "warmup_steps"):
        if not getattr(piece, field) >= 0:
            raise UserError(f"{place}{field}={getattr(piece, field)} must be at least 0")
    if config.end_learning_rate > piece.learning_rate:
        end = f"optimizer.end_learning_rate={config.end_learning_rate}"
        raise UserError(f"{place}learning_rate={piece.learning_rate} is below {end}; set that to at most this rate")
    if piece.schedule == "wsd":
        most = piece.num_steps - piece.warmup_steps
        if not 1 <= config.decay_steps <= most:
            remedy = f"set --config.optimizer.decay_steps to 1 up to {most}" if most > 0 else "use fewer warmup_steps"
            raise UserError(
                f"{place}schedule='wsd' has optimizer.decay_steps={config.decay_steps} of {piece.num_steps} steps, "
                f"{piece.warmup_steps} of them warm-up; {remedy}"
            )
