"""Where the time of a run went, from its times.jsonl (see train/ledger.py).

Goodput is the share of the time that was training of steps that were kept.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from bert_jax.errors import UserError
from bert_jax.files import decode_json, read_lines
from bert_jax.train.ledger import KINDS, TIMES

# Lost: steps that were not in a checkpoint when their process ended, and what else was done between them.
# Down: between the last line of a start and the beginning of the next one, mostly without a process.
ALL_KINDS = (*KINDS, "lost", "down")
_Seconds = Annotated[float, msgspec.Meta(ge=0.0)]
_Step = Annotated[int, msgspec.Meta(ge=0)]


class _Line(msgspec.Struct):
    """A line of the file: of the beginning of a start, or of what was done since the line before."""

    step: _Step
    began: _Seconds | None = None
    time: _Seconds | None = None
    seconds: dict[str, _Seconds] = msgspec.field(default_factory=dict)


class Interval(NamedTuple):
    """Seconds by kind until `step` steps were done."""

    step: int
    time: float  # of its end, in seconds since the epoch
    seconds: dict[str, float]


class Start(NamedTuple):
    """One process, or one job of several, that trained the run."""

    began: float  # in seconds since the epoch
    first_step: int  # steps done before
    intervals: list[Interval]

    @property
    def ended(self) -> float:
        """When its last line was written."""
        return self.intervals[-1].time if self.intervals else self.began

    @property
    def step(self) -> int:
        """Steps done at its last line."""
        return self.intervals[-1].step if self.intervals else self.first_step


def read_times(workdir: Path) -> list[Start]:
    """Returns the starts of a run, in order; none if it has no times.jsonl, as runs of older versions.

    Raises:
      UserError: the file is damaged, other than by a last line that was cut off.
    """
    starts = list[Start]()
    for line in _lines(workdir / TIMES):
        if line.began is not None:
            starts.append(Start(line.began, line.step, []))
        elif line.time is not None and starts:
            starts[-1].intervals.append(Interval(line.step, line.time, line.seconds))
        else:
            raise _damaged(workdir / TIMES, "a line without a start")
    return starts


def _lines(path: Path) -> Iterator[_Line]:
    for content in read_lines(path) if path.exists() else ():
        if content.endswith(b"\n"):
            try:
                yield decode_json(content, _Line)
            except ValueError as error:
                raise _damaged(path, error) from None


def _damaged(path: Path, what: object) -> UserError:
    return UserError(f"{path}: damaged ({what}); remove it, which loses only these times")


def spent(starts: list[Start]) -> dict[str, float]:
    """Returns the seconds of each kind in ALL_KINDS, which sum to the time from the first beginning to the last line."""
    total = dict.fromkeys(ALL_KINDS, 0.0)
    for start, following in itertools.zip_longest(starts, starts[1:]):
        kept_until = following.first_step if following else start.step
        before = start.first_step
        for interval in start.intervals:
            lost = _lost_share(before, interval.step, kept_until)
            before = interval.step
            for kind, seconds in interval.seconds.items():
                # What precedes the first step was needed, whatever became of the steps.
                lost_here = 0.0 if kind in ("starting", "compiling") else lost * seconds
                total["lost"] += lost_here
                total[kind] = total.get(kind, 0.0) + seconds - lost_here
        if following:
            total["down"] += max(0.0, following.began - start.ended)
    return total


def _lost_share(first: int, last: int, kept_until: int) -> float:
    """Returns which share of what was done between two steps is after the steps that were kept."""
    if last <= kept_until:
        return 0.0
    return (last - max(first, kept_until)) / (last - first) if last > first else 1.0


def goodput(total: dict[str, float]) -> float:
    """Returns the share of the time that was training of steps that were kept."""
    return total["training"] / max(sum(total.values()), 1e-9)


def seconds_per_step(start: Start, most: int = 20) -> float | None:
    """Returns the seconds of a step with all that is done between steps, over the last intervals; None without a step."""
    intervals = start.intervals[-most:]
    first = start.intervals[-most - 1].step if len(start.intervals) > most else start.first_step
    seconds = sum(
        value for of in intervals for kind, value in of.seconds.items() if kind not in ("starting", "compiling")
    )
    steps = start.step - first
    return seconds / steps if steps > 0 else None
