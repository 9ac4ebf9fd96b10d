"""Rows of `tools/benchmark.py`: what was measured, printed as a table and as one line of JSON."""

import dataclasses
import json
import os
import platform as host
import resource
import statistics
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from tools.lib.processor import processor_name

HEADINGS = ("", "ratio", "ceiling", "memory", "range", "median")
_LINE = "{:34} {:>6} {:>7} {:>9} {:>20}  {}"  # with values of 18 characters as wide as _WIDTH
_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Row:
    """A quantity of which every turn gave a value; without values, `note` says why it could not be measured."""

    name: str
    unit: str = ""
    values: Sequence[float] = ()  # one for each turn
    share: float | None = None  # of the ceiling that was measured in the same process
    base: str = ""  # what `ratios` compare with
    ratios: Sequence[float] = ()  # turn by turn, how many times as fast as `base`
    memory: int | None = None  # bytes that the compiled program allocates, in addition to its arguments
    note: str = ""
    failed: bool = False  # a result is wrong, or could not be measured although it should

    def cells(self) -> tuple[str, ...]:
        """Returns the texts of the columns in HEADINGS."""
        ratio = f"{statistics.median(self.ratios):.2f}" if self.ratios else ""
        share = "" if self.share is None else f"{self.share:.3f}"
        memory = "" if self.memory is None else f"{self.memory / 1e6:,.0f} MB"
        if not self.values:
            return self.name, ratio, share, memory, "", "failed" if self.failed else "skipped"
        low, high = (number(value) for value in (min(self.values), max(self.values)))
        return (
            self.name,
            ratio,
            share,
            memory,
            f"{low} to {high}",
            f"{number(statistics.median(self.values))} {self.unit}",
        )

    def note_line(self) -> str:
        """Returns the line below the columns, '' for none."""
        return "; ".join([*([f"ratio to {self.base}"] if self.ratios else []), *([self.note] if self.note else [])])

    def as_json(self) -> dict[str, Any]:
        """Returns the row as JSON values, without the fields that do not apply."""
        values: dict[str, Any] = {"name": " ".join(self.name.split())}
        if self.values:
            values |= {"unit": self.unit, "turns": len(self.values)} | _spread(self.values)
        if self.ratios:
            values["ratio"] = {"to": self.base} | _spread(self.ratios)
        others = {"share_of_ceiling": self.share, "program_bytes": self.memory, "note": self.note or None}
        others["failed"] = self.failed or None
        return values | {name: value for name, value in others.items() if value is not None}


def rate(name: str, unit: str, amount: float, seconds: Sequence[float], **fields: Any) -> Row:
    """Returns the row of an amount per second, such as tokens/s, from the seconds of each turn."""
    return Row(name, unit, [amount / value for value in seconds], **fields)


def ratios(base: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """Returns how many times as fast as `base` something is, from the seconds of both in each turn."""
    return [slow / fast for slow, fast in zip(base, seconds, strict=True)]


def ratio_row(rival: str, seconds_of_rival: Sequence[float], seconds: Sequence[float]) -> Row:
    """Returns the row that says how many times as fast as a rival bert_jax is."""
    return Row(f"ratio to {rival}", "x", ratios(seconds_of_rival, seconds))


def failed_row(name: str, error: Exception) -> Row:
    """Returns the row of what could not be measured because of an error."""
    return Row(name, note=str(error), failed=True)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def print_rows(suite: str, settings: dict[str, Any], rows: Iterable[Row]) -> bool:
    """Prints rows as they come, then all as one line of JSON; returns whether none of them has failed."""
    about = ", ".join(f"{name}={value}" for name, value in settings.items() if value not in ("", None, False))
    print(_wrapped(f"{suite}: {about}", ""))
    print(_LINE.format(*HEADINGS).rstrip())
    printed = []
    for row in rows:
        printed.append(row)
        note = row.note_line()
        print(_LINE.format(*row.cells()), *([_wrapped(note, "    ")] if note else []), sep="\n", flush=True)
    result = {"suite": suite, "machine": machine(), "settings": settings, "peak_memory_bytes": peak_memory()}
    print(json.dumps(result | {"rows": [row.as_json() for row in printed]}), flush=True)
    return not any(row.failed for row in printed)


def machine() -> dict[str, Any]:
    """Returns the facts about this machine that a figure depends on."""
    device = jax.local_devices()[0]
    facts = {"platform": device.platform, "device": device.device_kind, "devices": jax.device_count()}
    facts |= {"processor": processor_name(), "cores": len(os.sched_getaffinity(0)), "python": host.python_version()}
    return facts | {"jax": jax.__version__}


def peak_memory() -> int:
    """Returns the largest number of bytes that this process held on a device or, on CPUs, in the host's memory."""
    statistic = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if statistic and "peak_bytes_in_use" in statistic:
        return int(statistic["peak_bytes_in_use"])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest  # kilobytes on Linux


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent="    ", break_on_hyphens=False)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
