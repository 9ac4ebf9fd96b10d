"""Writes a sheet of experiments as Markdown, CSV and HTML with plots; see tools/experiment_sheet.py."""

import csv
import io
import statistics
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from bert_jax.files import write_text
from bert_jax.markdown import table
from tools.lib import report_html as html
from tools.lib import report_plots as plots
from tools.lib.run_files import Row

NO_ENCODER = "-"  # for ways without an encoder
NOTE = "Means over n seeds ± their standard deviation; minutes per seed, including data and evaluation."


class Result(NamedTuple):
    task: str
    encoder: str
    way: str
    seed: int
    score: str  # name of the score to show
    highest: float  # score of perfect predictions
    scores: Row  # the one named by `score` is finite
    seconds: float | None  # None if the experiment was interrupted


class Summary(NamedTuple):
    """Results of all seeds for one task, encoder and way."""

    mean: float
    std: float  # sample standard deviation; 0 for one seed
    num_seeds: int
    minutes: float | None  # median

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
    """Returns {task: {'way, encoder': summary}}; scores are divided by the highest possible one."""
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        column = result.way if result.encoder == NO_ENCODER else f"{result.way}, {result.encoder}"
        groups.setdefault(f"{result.task} ({result.score})", {}).setdefault(column, []).append(result)
    return {task: {column: summarize(seeds) for column, seeds in of_task.items()} for task, of_task in groups.items()}


def summarize(results: Sequence[Result]) -> Summary:
    """Returns mean, deviation and time of the results of several seeds."""
    values = [score / result.highest for result in results if (score := result.scores[result.score]) is not None]
    seconds = [result.seconds for result in results if result.seconds is not None]
    return Summary(
        statistics.mean(values),
        statistics.stdev(values) if len(values) > 1 else 0.0,
        len(values),
        statistics.median(seconds) / 60 if seconds else None,
    )


def markdown(results: Sequence[Result]) -> str:
    """Returns a table with a row for each task, and a column for each way and encoder."""
    tasks = summaries(results)
    columns = list(dict.fromkeys(chain(*tasks.values())))  # of all tasks, without duplicates
    rows = [[task, *(str(of_task.get(column, "")) for column in columns)] for task, of_task in tasks.items()]
    return "\n".join([*table(["Task (score)", *columns], rows), "", NOTE, ""])


def comma_separated(results: Sequence[Result]) -> str:
    """Returns CSV with a line for each score of each experiment."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["task", "encoder", "way", "seed", "score", "value", "seconds"])
    for result in results:
        for name, value in result.scores.items():
            writer.writerow([result.task, result.encoder, result.way, result.seed, name, value, result.seconds])
    return file.getvalue()


def page(results: Sequence[Result]) -> str:
    """Returns an HTML page with the table, and a plot for each task."""
    tasks = summaries(results)
    columns = list(dict.fromkeys(chain(*tasks.values())))  # of all tasks, without duplicates
    rows = []
    for task, of_task in tasks.items():
        best = max(entry.mean for entry in of_task.values())
        is_best = {column: entry.mean == best for column, entry in of_task.items()}
        cells = [
            Markup("<b>{}</b>" if is_best.get(column) else "{}").format(of_task.get(column, "")) for column in columns
        ]
        rows.append([task, *cells])
    figures = Markup().join(
        plots.spreads(task, {column: (entry.mean, entry.std) for column, entry in of_task.items()})
        for task, of_task in tasks.items()
    )
    content = Markup(
        "<header><h1>Experiments</h1><p>{}</p></header><section>{}</section>"
        '<section><div class="grid">{}</div></section>'
    ).format(NOTE, html.table(["Task (score)", *columns], rows), figures)
    return html.page("Experiments", content, Markup("td { white-space: nowrap; } main { max-width: 1200px; }"))
