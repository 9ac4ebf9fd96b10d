"""What tools read in the folders of runs: each file with its form, and a history of metrics that takes little memory."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from rich.text import Text

from bert_jax.errors import UserError, plain
from bert_jax.files import as_form, decode_json, open_regular, read_json, read_lines
from bert_jax.run_folder import folder as run_folder
from bert_jax.train.writers import jsonl as metrics

NOTES, UNIGRAM = "notes.json", "unigram.json"
Row = dict[str, float | None]  # None: it was not finite
LARGEST_COUNT = 1 << 53  # numbers up to here are exact in JSON, in Python and in numpy
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_MOST_POINTS = 1 << 16  # of a metric that are kept: a plot shows fewer
_MOST_METRICS = 1000
_TAIL = 1 << 12  # bytes


# ----------------------------------------------------------------------------------------------------------------------
# Forms
# ----------------------------------------------------------------------------------------------------------------------


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
    """What the report says of a run's config.json."""

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
    """Held-out scores of the frequencies of tokens; tools/unigram_baseline.py writes them."""

    accuracy: Share
    loss: float


class Replay(msgspec.Struct):
    """How many losses of a run are the same without its interruption, and the losses without it by step."""

    start: Count = msgspec.field(name="from")
    compared: Count
    identical: Count
    losses: Annotated[dict[Count, float], msgspec.Meta(min_length=1)]


class Guess(msgspec.Struct):
    """A token in the place of a mask."""

    token: str
    probability: Share


class Filled(msgspec.Struct):
    """A text with masks, and the likeliest tokens for the first of them."""

    text: str
    found: list[Guess]


class Comparison(msgspec.Struct):
    """A task, and the held-out F1 of several ways to do it."""

    title: str
    note: str
    rows: Annotated[list[tuple[str, Share]], msgspec.Meta(max_length=50)]


class Prediction(msgspec.Struct):
    """A sentence, and which of its words are code: according to its authors and to a model."""

    words: list[str]
    marked: list[bool]
    found: list[bool]

    def __post_init__(self):
        """Raises ValueError, which msgspec tells with the place."""
        if not len(self.words) == len(self.marked) == len(self.found):
            raise ValueError("differing numbers of words and marks")


class Notes(msgspec.Struct):
    """What a report shows in addition to the run; tools/quickstart.py writes it."""

    meshes: list[tuple[Count, float, float]] = []  # step, loss on one device, loss on the mesh
    stopped: Count | None = None
    replay: Replay | None = None
    fill_mask: list[Filled] = []
    task: Comparison | None = None
    predictions: list[Prediction] = []
    seconds: dict[str, float] = {}


def read_config(workdir: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Returns what the report says of a config, and all options by their names. Raises UserError: no config of a run."""
    config = run_folder.read_config(workdir)
    known = as_form(config, RunConfig, workdir / run_folder.CONFIG, "restore it or start a new run")
    return known, run_folder.flattened(config)


def read_known(path: Path, form: Any, default: Any) -> Any:
    """Returns what a file holds that a command can write again, or the default where there is none."""
    return read_json(path, form, "remove it, and run again what wrote it") if path.exists() else default


def read_rows(path: Path, form: Any) -> Iterator[Any]:
    """Yields the lines of a JSON-lines file.

    Raises:
      UserError: a line that is not of the form.
    """
    for number, line in enumerate(read_lines(path), 1):
        try:
            yield decode_json(line, form)
        except ValueError as error:
            what = f"line {number} is damaged, or not what is expected ({error})"
            raise UserError(f"{path}: {what}; remove the line") from None


def metric_rows(workdir: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields (step, finite metrics) of each row of metrics.jsonl. Raises UserError as `metrics.read_rows` does."""
    path = workdir / metrics.METRICS
    for row in metrics.read_rows(path):
        step = int(row.pop("step"))
        if not 0 <= step <= LARGEST_COUNT:
            raise UserError(f"{path}: damaged: a line of step {step}; remove the line")
        yield step, row


def tail(path: Path) -> list[bytes]:
    """Returns the last lines of a file, of which the first may be cut off."""
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read(_TAIL).splitlines()


def relative_difference(one: float, other: float) -> float:
    """Returns |one - other| / |one|."""
    return abs(one - other) / (abs(one) or 1.0)


def literal(value: object) -> Text:
    """Returns text that rich prints as it stands: no markup in it, no emoji codes and no terminal escapes."""
    return Text(plain(str(value)))


# ----------------------------------------------------------------------------------------------------------------------
# A history
# ----------------------------------------------------------------------------------------------------------------------


class Points:
    """Steps and values of a metric: all of them or, where they are many, every second, fourth, ... one."""

    def __init__(self):
        self.steps, self.values = array("q"), array("d")
        self._stride, self._count = 1, 0

    def add(self, step: int, value: float) -> None:
        """Adds a point, which may be left out."""
        if self._count % self._stride == 0:
            self.steps.append(step)
            self.values.append(value)
        self._count += 1
        if len(self.steps) == _MOST_POINTS:
            self.steps, self.values, self._stride = self.steps[::2], self.values[::2], 2 * self._stride


class History:
    """The metrics of a run by name, read once."""

    def __init__(self, rows: Iterable[tuple[int, dict[str, float]]]):
        """Raises UserError if there are more metrics than any run has."""
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
                raise UserError(f"{metrics.METRICS}: has more than {_MOST_METRICS:,} metrics; it is not of a run")

    @property
    def names(self) -> list[str]:
        """The metrics that some row has."""
        return list(self._points)

    def points(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps, int64 [n], and values, float64 [n]; none of a metric that is not there."""
        points = self._points.get(name, Points())
        return np.array(points.steps, np.int64), np.array(points.values, np.float64)
