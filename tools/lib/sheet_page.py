"""A sheet of experiments as Markdown, CSV and one HTML page with plots; see tools/experiment_sheet.py."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from bert_jax.conversion.markdown import table
from bert_jax.files import write_text
from tools import report
from tools.lib import report_plots as plots
from tools.lib.run_files import Row

NO_ENCODER = "-"  # of ways without one
NOTE = "Means over n seeds ± their standard deviation; the minutes are those of one seed, data and evaluation included."


class Result(NamedTuple):
    task: str
    encoder: str
    way: str
    seed: int
    score: str  # the one to show
    highest: float  # that score of perfect predictions
    scores: Row  # that of `score` is a number
    seconds: float | None  # None where the experiment was interrupted


class Summary(NamedTuple):
    """All seeds of one way to use one encoder on one task."""

    mean: float
    std: float  # of a sample; 0 of one seed
    num_seeds: int
    minutes: float | None  # the median of a seed

    def __str__(self) -> str:
        spread = f" ± {self.std:.3f}" if self.num_seeds > 1 else ""
        minutes = f", {self.minutes:.1f} min" if self.minutes is not None else ""
        return f"{self.mean:.3f}{spread} (n={self.num_seeds}{minutes})"


def write(output: Path, results: Sequence[Result]) -> None:
    """Writes sheet.md, sheet.csv and sheet.html."""
    output.mkdir(parents=True, exist_ok=True)
    for name, content in (("md", markdown(results)), ("csv", comma_separated(results)), ("html", page(results))):
        write_text(output / f"sheet.{name}", content)


def summaries(results: Sequence[Result]) -> dict[str, dict[str, Summary]]:
    """{task: {'way, encoder': summary}}, in their order; scores as shares of the highest."""
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        column = result.way if result.encoder == NO_ENCODER else f"{result.way}, {result.encoder}"
        groups.setdefault(f"{result.task} ({result.score})", {}).setdefault(column, []).append(result)
    return {task: {column: summary(found) for column, found in of_task.items()} for task, of_task in groups.items()}


def summary(results: Sequence[Result]) -> Summary:
    """Mean, deviation and time of one experiment, from the results of its seeds."""
    values = [score / result.highest for result in results if (score := result.scores[result.score]) is not None]
    seconds = [result.seconds for result in results if result.seconds is not None]
    return Summary(
        statistics.mean(values),
        statistics.stdev(values) if len(values) > 1 else 0.0,
        len(values),
        statistics.median(seconds) / 60 if seconds else None,
    )


def columns_of(found: dict[str, dict[str, Summary]]) -> list[str]:
    """Every column once, in the order of the first task that has it."""
    return list(dict.fromkeys(column for of_task in found.values() for column in of_task))


def markdown(results: Sequence[Result]) -> str:
    """A table: a line for each task, a column for each way and encoder."""
    found = summaries(results)
    columns = columns_of(found)
    rows = [[task, *(str(of_task.get(column, "")) for column in columns)] for task, of_task in found.items()]
    return "\n".join([*table(["Task (score)", *columns], rows), "", NOTE, ""])


def comma_separated(results: Sequence[Result]) -> str:
    """A line for each score of each experiment."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["task", "encoder", "way", "seed", "score", "value", "seconds"])
    for result in results:
        for name, value in result.scores.items():
            writer.writerow([result.task, result.encoder, result.way, result.seed, name, value, result.seconds])
    return file.getvalue()


def page(results: Sequence[Result]) -> str:
    """The table, and a plot of each task."""
    found = summaries(results)
    columns = columns_of(found)
    rows = []
    for task, of_task in found.items():
        best = max(entry.mean for entry in of_task.values())
        is_best = {column: entry.mean == best for column, entry in of_task.items()}
        cells = [
            Markup("<b>{}</b>" if is_best.get(column) else "{}").format(of_task.get(column, "")) for column in columns
        ]
        rows.append([task, *cells])
    figures = Markup().join(
        plots.spreads(task, {column: (entry.mean, entry.std) for column, entry in of_task.items()})
        for task, of_task in found.items()
    )
    content = Markup(
        "<header><h1>Experiments</h1><p>{}</p></header><section>{}</section>"
        '<section><div class="grid">{}</div></section>'
    ).format(NOTE, report.table(["Task (score)", *columns], rows), figures)
    return report.page("Experiments", content, Markup("td { white-space: nowrap; } main { max-width: 1200px; }"))
