"""Compares several runs on one page: curves over each other, held-out metrics side by side, the settings that differ."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from bert_jax.errors import UserError, plain
from bert_jax.files import resolved
from bert_jax.run_folder.default_checkpoint import default_evaluation, sign
from bert_jax.run_folder.folder import EVALUATION
from tools.lib import report_plots as plots
from tools.lib import run_files as files
from tools.lib.report_curves import figures, plotted_metrics
from tools.lib.report_html import number, page, quantity, table
from tools.lib.run_files import History, Row

_UNSET = "-"


class Run(NamedTuple):
    """What the page shows of a run."""

    name: str
    config: files.RunConfig
    options: dict[str, Any]  # all, by name
    history: History
    step: int | None  # of the evaluation below
    held_out: Mapping[str, float]  # of the default checkpoint
    others: dict[str, Row]  # {folder of evaluations/: metrics of its last checkpoint}


def comparison(workdirs: Sequence[Path]) -> str:
    """Returns the page. Raises UserError for too many runs, the same one twice, or as tools/report.py for each of them."""
    if len(workdirs) > len(plots.OF_RUNS):
        raise UserError(f"{len(workdirs)} runs: a page compares at most {len(plots.OF_RUNS)}; name fewer")
    if len(set(map(resolved, workdirs))) < len(workdirs):
        raise UserError("--workdir: names the same run twice; name different ones")
    runs = [read_run(*pair) for pair in zip(short_names(workdirs), workdirs, strict=True)]
    sections = [header(runs), overview(runs), held_out(runs), curves(runs), settings(runs)]
    return page(
        f"{len(runs)} runs",
        Markup("\n").join(sections),
        Markup("td { overflow-wrap: anywhere; } td:first-child { white-space: nowrap; }"),
    )


def read_run(name: str, workdir: Path) -> Run:
    """Reads the files of a run. Raises UserError if it has no steps yet, or a file is damaged."""
    config, options = files.read_run_config(workdir)
    history = History(files.metric_rows(workdir))
    if not history.names:
        raise UserError(f"{workdir}: metrics.jsonl has no steps yet; train first, or leave the run out")
    others = {}
    for path in sorted(workdir.glob(f"evaluations/*/{EVALUATION}")):
        rows = files.read_result(path, dict[int, Row], {})
        if rows:
            others[path.parent.name] = rows[max(rows)]
    return Run(name, config, options, history, *default_evaluation(workdir), others)


def short_names(workdirs: Sequence[Path]) -> list[str]:
    """Returns paths without the folders that all have in common; at least the last part."""
    parts = [resolved(workdir).parts for workdir in workdirs]
    common = 0
    while all(len(path) > common + 1 for path in parts) and len({path[common] for path in parts}) == 1:
        common += 1
    return [plain("/".join(path[common:]), 60) for path in parts]


# Sections are HTML, whose values are escaped by `Markup.format` and `Markup.join`.


def header(runs: Sequence[Run]) -> Markup:
    """Returns the title and the legend."""
    return Markup("<header><h1>{} runs</h1><p>{}</p></header>").format(len(runs), legend(runs))


def legend(runs: Sequence[Run]) -> Markup:
    """Returns the name of each run next to its color."""
    named = zip(runs, plots.OF_RUNS, strict=False)
    entry = Markup("<span class=run><i style='background:{}'></i>{}</span>")
    return Markup(" ").join(entry.format(color, run.name) for run, color in named)


def overview(runs: Sequence[Run]) -> Markup:
    """Returns sizes and speeds."""
    lines: dict[str, Callable[[Run], str]] = {
        "task": lambda run: run.config.task if run.config.objectives is None else " + ".join(run.config.objectives),
        "encoder": lambda run: f"{run.config.model.num_layers} layers of {run.config.model.hidden_size}",
        "steps": lambda run: f"{run.history.last_step:,} of {run.config.train.num_steps:,}",
        "batch size": lambda run: ", then ".join(
            f"{phase.batch_size or run.config.train.batch_size:,}" for phase in run.config.phases or [files.Phase(0)]
        ),
        "tokens per second, median": lambda run: median_speed(run.history),
    }
    rows = [[name, *map(of, runs)] for name, of in lines.items()]
    return Markup("<section><h2>Runs</h2>{}</section>").format(table(["", *(run.name for run in runs)], rows))


def median_speed(history: History) -> str:
    """Returns the median of tokens per second, as text."""
    speeds = history.points("tokens_per_second")[1]
    return quantity(float(np.median(speeds))) if len(speeds) else _UNSET


def held_out(runs: Sequence[Run]) -> Markup:
    """Returns held-out metrics with a column for each run; the best value of each metric is bold."""
    columns = [dict(run.held_out) for run in runs]
    steps = [_UNSET if run.step is None else f"{run.step:,}" for run in runs]
    rows: list[Sequence[str]] = [["step", *steps], *metric_rows("", columns)]
    for name in dict.fromkeys(name for run in runs for name in run.others):
        rows += metric_rows(f"{name}: ", [run.others.get(name, {}) for run in runs])
    if len(rows) == 1:
        return Markup()
    note = (
        "Of the default checkpoint. Runs are comparable where they were evaluated on the same data; the best is bold."
    )
    cells = table(["", *(run.name for run in runs)], rows)
    return Markup("<section><h2>Held out</h2><p>{}</p>{}</section>").format(note, cells)


def metric_rows(prefix: str, columns: Sequence[Mapping[str, float | None]]) -> list[list[str]]:
    """Returns a row for each metric that a column has."""
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [value for column in columns if (value := column.get(name)) is not None]
        best = max(values, key=lambda value, name=name: sign(name) * value) if len(values) > 1 else None  # type: ignore[misc]
        # The total loss adds up what the objectives of a run are.
        is_ranked = name not in ("loss", "temperature") and len(set(values)) > 1
        cells = []
        for column in columns:
            bold = Markup("<b>{}</b>") if is_ranked and column.get(name) == best else Markup("{}")
            cells.append(bold.format(number(name, column[name])) if name in column else _UNSET)
        rows.append([prefix + name, *cells])
    return rows


def curves(runs: Sequence[Run]) -> Markup:
    """Plots each metric of all runs together, over steps or, if batches differ in size, over what was trained on."""
    names = list(dict.fromkeys(name for run in runs for name in run.history.names))
    axis, scale_of = horizontal_axis(runs)
    drawn = []
    for metric in plotted_metrics(names):
        lines = [(scale_of(run), run.history) for run in runs]
        drawn.append(plots.curves_of_runs(lines, metric.name, metric.title, axis, metric.scale, metric.unit))
    note = "Lines: in training, smoothed. Lines with dots: held out."
    return Markup("<section><h2>Curves</h2><p>{}</p><p>{}</p><div class=grid>{}</div></section>").format(
        legend(runs), note, figures(drawn)
    )


def horizontal_axis(runs: Sequence[Run]) -> tuple[str, Callable[[Run], Callable[[np.ndarray], np.ndarray]]]:
    """Returns the label of the axis, and for a run the function of its steps that is drawn."""
    if len({(run.config.tokens(1), len(run.config.phases) > 1) for run in runs}) == 1:
        return "step", lambda run: lambda steps: steps
    if all(run.config.objectives is not None for run in runs):  # of pretraining
        return "million tokens, padding included", lambda run: lambda steps: tokens(run.config, steps) / 1e6
    return "examples", lambda run: lambda steps: steps * run.config.train.batch_size


def tokens(config: files.RunConfig, steps: np.ndarray) -> np.ndarray:
    return np.array([config.tokens(step) for step in steps.tolist()], float)


def settings(runs: Sequence[Run]) -> Markup:
    """Lists the options that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    shown = partial(json.dumps, ensure_ascii=False)
    rows = []
    for name in names:
        values = [shown(run.options[name]) if name in run.options else _UNSET for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    body = table(["option", *(run.name for run in runs)], rows) if rows else Markup("<p>None.</p>")
    return Markup("<section><h2>Settings that differ</h2>{}</section>").format(body)
