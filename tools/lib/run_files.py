"""Reads the files of run folders for tools: their types, and a history of metrics in bounded memory."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from rich.text import Text

from bert_jax.errors import UserError, plain
from bert_jax.files import as_form, decode_json, open_regular, read_json, read_lines
from bert_jax.run_folder.folder import CONFIG, flattened, read_config
from bert_jax.train.writers.jsonl import METRICS, read_rows

NOTES, UNIGRAM = "notes.json", "unigram.json"
Row = dict[str, float | None]  # None: not finite
LARGEST_COUNT = 1 << 53  # numbers up to here are exact in JSON, in Python and in numpy
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_MOST_POINTS = 1 << 16  # kept per metric; a plot shows fewer
_MOST_METRICS = 1000
_TAIL = 1 << 12  # bytes


class _Model(msgspec.Struct):
    num_layers: Count
    hidden_size: Count
    num_heads: Count
    vocab_size: Count


class _Train(msgspec.Struct):
    num_steps: Count
    batch_size: Count


class _Data(msgspec.Struct):
    sequence_length: Count


class Phase(msgspec.Struct):
    until_step: Count
    batch_size: Count = 0  # 0: that of the run, as of the length
    sequence_length: Count = 0


class RunConfig(msgspec.Struct):
    """Options of a run that the report shows."""

    task: str
    model: _Model
    train: _Train
    data: _Data
    parallel: dict[str, int]
    objectives: list[str] | None = None
    phases: list[Phase] = msgspec.field(default_factory=list)

    def tokens(self, step: int) -> int:
        """Returns how many tokens were trained on after `step` steps, padding included."""
        total = first = 0
        for phase in (*self.phases, Phase(step)):
            rows, length = phase.batch_size or self.train.batch_size, phase.sequence_length or self.data.sequence_length
            total += max(0, min(step, phase.until_step) - first) * rows * length
            first = max(first, phase.until_step)
        return total


class Unigram(msgspec.Struct):
    """Held-out scores of tools/unigram_baseline.py."""

    accuracy: Share
    loss: float


class Replay(msgspec.Struct):
    """Comparison of an interrupted run with its replay without interruption; `losses` of the replay by step."""

    start: Count = msgspec.field(name="from")
    compared: Count
    identical: Count
    losses: Annotated[dict[Count, float], msgspec.Meta(min_length=1)]


class Guess(msgspec.Struct):
    token: str
    probability: Share


class Filled(msgspec.Struct):
    """A text with masks, and the most probable tokens for the first one."""

    text: str
    tokens: list[Guess]


class Comparison(msgspec.Struct):
    """Held-out scores of several models on a task."""

    title: str
    note: str
    rows: Annotated[list[tuple[str, Share]], msgspec.Meta(max_length=50)]
    metric: str = "F1"


class Prediction(msgspec.Struct):
    """A sentence, and which words are code: `marked` by its authors, and `predicted` by a model."""

    words: list[str]
    marked: list[bool]
    predicted: list[bool]

    def __post_init__(self):
        """Raises ValueError, which msgspec reports with the place in the file."""
        if not len(self.words) == len(self.marked) == len(self.predicted):
            raise ValueError("differing numbers of words and marks")


class Notes(msgspec.Struct):
    """Additional contents of a report, written by tools/quickstart.py."""

    meshes: list[tuple[Count, float, float]] = []  # step, loss on one device, loss on the mesh
    stopped: Count | None = None
    replay: Replay | None = None
    fill_mask: list[Filled] = []
    task: Comparison | None = None
    predictions: list[Prediction] = []
    seconds: dict[str, float] = {}


def read_run_config(workdir: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Reads the options shown in the report, and all options by name. Raises UserError if the config is invalid."""
    config = read_config(workdir)
    shown = as_form(config, RunConfig, workdir / CONFIG, "restore it or start a new run")
    return shown, flattened(config)


def read_result(path: Path, form: Any, default: Any) -> Any:
    """Reads a JSON file that a command can write again; returns the default if it does not exist."""
    return read_json(path, form, "remove it, and run the command that wrote it again") if path.exists() else default


def read_json_lines(path: Path, form: Any) -> Iterator[Any]:
    """Yields the values in a JSON-lines file. Raises UserError if a line is invalid or of another type."""
    for number, line in enumerate(read_lines(path), 1):
        try:
            yield decode_json(line, form)
        except ValueError as error:
            problem = f"line {number} is damaged, or not what is expected ({error})"
            raise UserError(f"{path}: {problem}; remove the line") from None


def metric_rows(workdir: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields (step, finite metrics) of each row of metrics.jsonl. Raises UserError as `read_rows`."""
    path = workdir / METRICS
    for row in read_rows(path):
        step = int(row.pop("step"))
        if not 0 <= step <= LARGEST_COUNT:
            raise UserError(f"{path}: damaged: invalid step {step}; remove the line")
        yield step, row


def tail(path: Path) -> list[bytes]:
    """Returns the last lines of a file; the first one may be incomplete."""
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read(_TAIL).splitlines()


def relative_difference(one: float, other: float) -> float:
    """Returns |one - other| / |one|."""
    return abs(one - other) / (abs(one) or 1.0)


def literal(value: object) -> Text:
    """Returns text that rich prints literally, without markup, emoji codes and terminal escapes."""
    return Text(plain(str(value)))


class Points:
    """Steps and values of a metric: all or, if there are many, every second, fourth, ... one."""

    def __init__(self):
        self.steps, self.values = array("q"), array("d")
        self._stride, self._count = 1, 0

    def add(self, step: int, value: float) -> None:
        if self._count % self._stride == 0:
            self.steps.append(step)
            self.values.append(value)
        self._count += 1
        if len(self.steps) == _MOST_POINTS:
            self.steps, self.values, self._stride = self.steps[::2], self.values[::2], 2 * self._stride


class History:
    """The metrics of a run by name, read once. Raises UserError if there are too many."""

    def __init__(self, rows: Iterable[tuple[int, dict[str, float]]]):
        self.last_step = 0
        self.last_evaluation: dict[str, float] = {}  # names without 'eval/'
        self._points: dict[str, Points] = {}
        for step, row in rows:
            self.last_step = max(step, self.last_step)
            if held_out := {name.removeprefix("eval/"): row[name] for name in row if name.startswith("eval/")}:
                self.last_evaluation = held_out
            for name, value in row.items():
                self._points.setdefault(name, Points()).add(step, value)
            if len(self._points) > _MOST_METRICS:
                raise UserError(f"{METRICS}: has more than {_MOST_METRICS:,} metrics; it is not from a run")

    @property
    def names(self) -> list[str]:
        return list(self._points)

    def points(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps, int64 [n], and values, float64 [n]; empty for unknown metrics."""
        points = self._points.get(name, Points())
        return np.array(points.steps, np.int64), np.array(points.values, np.float64)
