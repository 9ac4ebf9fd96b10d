"""Records of reference runs (tools/cramming.py): JSON files, which docs/results.md shows as a table."""

import datetime
import os
import statistics
from collections.abc import Iterable
from pathlib import Path

import jax
import msgspec

from bert_jax.files import read_json
from bert_jax.markdown import table
from tools.lib.processor import processor_name

RECORDS = Path(__file__).resolve().parents[2] / "docs" / "records"
COLUMNS = [
    *("Date", "Machine", "Budget (used)", "Encoder", "Steps, tokens", "Held-out loss, accuracy"),
    *("GLUE", "GLUE, not pretrained", "Commit"),
]


class Record(msgspec.Struct):
    """A finished reference run."""

    date: str  # of the end of pretraining
    machine: str
    budget: str
    budget_seconds: float
    used_seconds: float  # by pretraining: start, compilation, steps, evaluation and checkpoints
    encoder: str
    parameters: int
    steps: int
    tokens: int  # trained on, with repetitions
    corpus_tokens: int
    loss: float
    accuracy: float
    glue: dict[str, list[float]]  # {task: score by seed}; scores as in configs/sheets/transfer.py
    glue_scratch: dict[str, list[float]]  # the same without pretraining
    commit: str
    jax: str


def machine() -> str:
    """Returns the number and kind of jax's devices; for CPUs the model and the number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {processor_name()}"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def read_records(folder: Path = RECORDS) -> list[Record]:
    """Reads the records of a folder by date. Raises UserError if a file is damaged."""
    files = sorted(folder.glob("*.json"))
    return sorted((read_json(path, Record, "remove it") for path in files), key=lambda record: record.date)


def markdown(records: Iterable[Record]) -> list[str]:
    """Returns the lines of a table with a row for each record."""
    return table(COLUMNS, [row(record) for record in records])


def row(record: Record) -> list[str]:
    share = record.used_seconds / record.budget_seconds
    return [
        record.date,
        f"{record.machine}, jax {record.jax}",
        f"{record.budget} ({share:.1%}{', exceeded' if share > 1 else ''})",
        f"{record.encoder}, {record.parameters / 1e6:.1f} M parameters",
        f"{record.steps:,}, {record.tokens / 1e6:,.1f} M of {record.corpus_tokens / 1e6:,.1f} M in the corpus",
        f"{record.loss:.3f}, {record.accuracy:.1%}",
        scores(record.glue),
        scores(record.glue_scratch),
        record.commit[:8] + ("+changes" if record.commit.endswith("+changes") else ""),
    ]


def scores(glue: dict[str, list[float]]) -> str:
    """Returns means over seeds, with deviations if there are several: 'CoLA 0.256 ± 0.007, SST-2 ...; mean 0.7'.

    Returns '-' without tasks.
    """
    if not glue:
        return "-"
    means = {task: statistics.mean(values) for task, values in glue.items()}
    spreads = {task: f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "" for task, values in glue.items()}
    each = ", ".join(f"{task} {mean:.3f}{spreads[task]}" for task, mean in means.items())
    return f"{each}; mean {statistics.mean(means.values()):.3f}"
