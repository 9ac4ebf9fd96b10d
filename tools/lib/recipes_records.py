"""Records of the experiments of tools/compare_recipes.py: a JSON file for each, and the time that is left."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bert_jax.files import read_json, write_json
from tools.lib.recipes_sheet import Experiment
from tools.lib.run_files import Row

REMEDY = "remove it, and the experiment is run again"


class Point(msgspec.Struct):
    """Held-out metrics of a checkpoint."""

    step: int
    metrics: Row


class Record(msgspec.Struct):
    """A finished experiment."""

    name: str
    seed: int
    digest: str
    settings: dict[str, Any]  # of pretraining, those that are not the defaults
    date: str
    commit: str
    versions: dict[str, str]
    cores: int
    seconds: dict[str, float | None]  # CPU time of pretraining and evaluation, time of tasks; None if interrupted
    corpus: str  # its hash
    corpus_tokens: int
    parameters: int  # of the encoder
    steps: int
    tokens_per_step: int  # with padding
    padding: float  # share of these tokens
    flops_per_step: int  # of the matrix products, all models and the optimizer
    curve: list[Point]
    held_out: Row  # at the end, of the recipe's own objectives
    scores: dict[str, Row]  # of each task
    speed: dict[str, float] | None = None  # texts per second, of a student and its teacher

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> int:
        return self.steps * self.flops_per_step

    def points(self, metric: str) -> list[tuple[int, float]]:
        """Returns (step, value) of a held-out metric; empty if it was not measured."""
        values = [(point.step, point.metrics.get(metric)) for point in self.curve]
        return [(step, value) for step, value in values if value is not None]


Records = dict[str, Record]  # by `Experiment.key`


def record_path(folder: Path, experiment: Experiment) -> Path:
    return folder / f"{experiment.key}.json"


def read_records(folder: Path, experiments: Sequence[Experiment]) -> Records:
    """Returns the records of the experiments as they are now, without those of changed recipes.

    Raises:
      UserError: a file is damaged.
    """
    records = {}
    for experiment in experiments:
        path = record_path(folder, experiment)
        if path.exists():
            record = read_json(path, Record, REMEDY)
            if record.digest == experiment.digest:
                records[experiment.key] = record
    return records


def write_record(folder: Path, experiment: Experiment, record: Record) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record_path(folder, experiment), record)


def rounded(row: Mapping[str, float | None]) -> Row:
    """Returns metrics with six digits."""
    return {name: None if value is None else float(f"{value:.6g}") for name, value in row.items()}


def expected_minutes(experiment: Experiment, records: Mapping[str, Record], default: float) -> float:
    """Returns how long an experiment takes: as other seeds of it did, else as others of its kind, else the default."""
    own = [_seconds(record) for record in records.values() if record.name == experiment.name]
    kind = experiment.is_pretrained, experiment.weights != "none"
    alike = [_seconds(record) for record in records.values() if (bool(record.curve), record.steps > 0) == kind]
    measured = [value for value in own if value] or [value for value in alike if value]
    return statistics.median(measured) / 60 if measured else default


def _seconds(record: Record) -> float | None:
    """Returns the time of an experiment that was not interrupted; else None."""
    values = [value for value in record.seconds.values() if value is not None]
    return sum(values) if len(values) == len(record.seconds) else None
