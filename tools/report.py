"""Writes report.html to a run folder: curves, held-out metrics and samples on one self-contained page.

    python tools/report.py --workdir=runs/x
    python tools/report.py --workdir=runs/x --workdir=runs/y [--output=comparison.html]

Several runs are compared on one page, comparison.html in the folder of the first: curves over each other, held-out metrics side
by side, and the settings that differ.

For a pretraining run whose corpus is there, examples of a batch are shown as tools/inspect_batch.py does: masks, and what the
models of the run predict, such as samples of a generator or the predictions of a teacher and its student. For a run that
classifies texts, the held-out set, and other data on which it was evaluated, have a confusion matrix, the scores of each label,
calibration and the errors.

Reads metrics.jsonl and config.json and, if present, times.jsonl, evaluation.json, predictions/, evaluations/, unigram.json (of
tools/unigram_baseline.py) and notes.json (of tools/quickstart.py).
"""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from markupsafe import Markup
from rich.console import Console

from bert_jax.cli.main import run_command
from bert_jax.errors import UserError, plain
from bert_jax.files import write_text
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.folder import EVALUATION
from tools.lib import batch_examples, report_classification, report_comparison, report_time
from tools.lib import report_plots as plots
from tools.lib import run_files as files
from tools.lib.report_curves import curves
from tools.lib.report_html import number, page, quantity, table
from tools.lib.run_files import NOTES, UNIGRAM, History, Notes, Row, Unigram, read_result

logger = logging.getLogger(__name__)


def define_flags() -> None:
    flags.DEFINE_multi_string("workdir", None, "the run folder; several are compared", required=True)
    flags.DEFINE_string(
        "output", "", "the page; '': report.html or, for several runs, comparison.html in the (first) run"
    )
    flags.DEFINE_integer("examples", 1, "examples of a batch to show; 0: none", lower_bound=0, upper_bound=20)


def main() -> None:
    workdirs, output = list(map(Path, flags.FLAGS.workdir)), flags.FLAGS.output
    if len(workdirs) > 1:
        path = Path(output) if output else workdirs[0] / "comparison.html"
        write_text(path, report_comparison.comparison(workdirs))
    else:
        path = write_report(workdirs[0], flags.FLAGS.examples, Path(output) if output else None)
    print(f"{plain(str(path))}: {path.stat().st_size / 1e3:,.0f} kB")


def write_report(workdir: Path, num_examples: int = 0, output: Path | None = None) -> Path:
    """Writes the page, by default report.html in the run folder, and returns its path.

    Raises:
      UserError: it is no run folder with steps, or a file is damaged.
    """
    config, options = files.read_run_config(workdir)
    history = History(files.metric_rows(workdir))
    if "loss" not in history.names:
        raise UserError(f"{workdir}: metrics.jsonl has no steps yet; train first")
    unigram = read_result(workdir / UNIGRAM, Unigram, None)
    evaluation = read_result(workdir / EVALUATION, dict[int, Row], {})
    notes = read_result(workdir / NOTES, Notes, Notes())
    step, held_out = default_evaluation(workdir)
    sections = [
        header(workdir, config),
        tiles(config, history, held_out, unigram, notes),
        curves(history, unigram, notes.stopped, [phase.until_step for phase in config.phases[:-1]]),
        report_time.where_time_went(workdir),
        metric_table(step, held_out, evaluation, unigram),
        report_classification.held_out_sets(workdir),
        meshes(notes.meshes),
        interruption(history, notes),
        fill_masks(notes.fill_mask),
        examples(workdir, config, num_examples),
        task(notes.task, notes.predictions),
        settings(options),
    ]
    path = output or workdir / "report.html"
    write_text(path, page(plain(workdir.name), Markup("\n").join(sections)))
    return path


# Sections are HTML, '' if there is nothing to show. Values are inserted with `Markup.format` and `Markup.join`, which escape
# them; the argument of `Markup(...)` is always a literal.


def header(workdir: Path, config: files.RunConfig) -> Markup:
    """Describes model and training in one line."""
    model, train = config.model, config.train
    title = config.task if config.objectives is None else " + ".join(config.objectives)
    named = {axis: "(all devices)" if size == -1 else size for axis, size in config.parallel.items() if size != 1}
    mesh = " x ".join(f"{axis} {size}" for axis, size in named.items()) or "one device"
    shapes = ", then ".join(
        f"{phase.batch_size or train.batch_size} sequences of {phase.sequence_length or config.data.sequence_length}"
        for phase in config.phases or [files.Phase(train.num_steps)]
    )
    facts = (
        f"{title} · {model.num_layers} layer{'s' * (model.num_layers > 1)} of {model.hidden_size}, {model.num_heads} heads, "
        f"{model.vocab_size:,} tokens · {shapes} a step · mesh: {mesh}"
    )
    return Markup("<header><h1>{}</h1><p>{}</p></header>").format(plain(workdir.as_posix()), facts)


def tiles(
    config: files.RunConfig, history: History, held_out: Mapping[str, float], unigram: Unigram | None, notes: Notes
) -> Markup:
    """Returns the most important figures."""
    steps, tokens = history.last_step, config.tokens(history.last_step)
    shown = [(f"{steps:,}", f"steps of {config.train.num_steps:,}"), (quantity(tokens), "tokens")]
    speeds = history.points("tokens_per_second")[1]
    if len(speeds):
        shown.append((f"{quantity(float(np.median(speeds)))}/s", "tokens, median"))
    for name, value in held_out.items():
        if name.split("/")[-1] == "accuracy":
            against = f", unigrams {unigram.accuracy:.1%}" if name == "mlm/accuracy" and unigram else ""
            shown.append((number(name, value), f"held-out {name.replace('/', ' ')}{against}"))
    if notes.replay:
        shown.append((f"{notes.replay.identical} of {notes.replay.compared}", "losses identical across the stop"))
    cells = Markup().join(Markup("<div><b>{}</b><span>{}</span></div>").format(*of) for of in shown)
    return Markup("<section class=tiles>{}</section>").format(cells)


def metric_table(
    step: int | None, held_out: Mapping[str, float], evaluation: dict[int, Row], unigram: Unigram | None
) -> Markup:
    """Returns a table of held-out metrics: of checkpoints, by step, or else of the default checkpoint in training."""
    columns: dict[str, Row] = {}
    if unigram:
        columns["unigrams"] = {"mlm/accuracy": unigram.accuracy, "mlm/loss": unigram.loss}
    if evaluation:
        columns |= {f"step {step}": row for step, row in evaluation.items()}
    elif held_out:
        columns[f"step {step}"] = dict(held_out)
    names = next(reversed(columns.values()), {})
    body = [[name, *[number(name, row[name]) if name in row else "" for row in columns.values()]] for name in names]
    return Markup("<section><h2>Held out</h2>{}</section>").format(table(["", *columns], body)) if body else Markup()


def meshes(compared: Sequence[tuple[int, float, float]]) -> Markup:
    """Returns the first steps on one device and on a mesh of four, side by side."""
    if not compared:
        return Markup()
    differences, body = [], []
    for step, one, other in compared:
        differences.append(files.relative_difference(one, other))
        body.append([f"{step}", f"{one:.7f}", f"{other:.7f}", f"{differences[-1]:.0e}"])
    columns = ["step", "loss on one device", "loss on four devices, 2 x data, 2 x fsdp", "relative difference"]
    return Markup(
        "<section><h2>One device and a mesh</h2><p>{} steps from the same start, on one device and on four "
        "virtual ones: the examples are the same, and the losses differ by rounding only, by at most {:.0e}.</p>"
        "<details><summary>The losses</summary>{}</details></section>"
    ).format(len(compared), max(differences), table(columns, body))


def interruption(history: History, notes: Notes) -> Markup:
    """Shows the interruption, and the replay that proves that nothing was lost."""
    replay, stopped = notes.replay, notes.stopped
    if replay is None or stopped is None:
        return Markup()
    numbers = stopped, replay.start, replay.identical, replay.compared
    return Markup(
        "<section><h2>Stopped and resumed</h2><p>The process received SIGTERM and saved its state at step {}; another "
        "process resumed it. A copy of the run was continued from the checkpoint of step {} without a stop: "
        "<b>{} of {} losses are identical to the last bit</b>.</p>{}</section>"
    ).format(*numbers, plots.replay_plot(history, replay.losses, stopped))


def fill_masks(samples: Sequence[files.Filled]) -> Markup:
    """Returns the most probable tokens for masks."""
    if not samples:
        return Markup()
    chip = Markup("<span class=chip style='--p:{:.3f}'>{} <i>{}</i></span>")
    body = []
    for sample in samples:
        chips = []
        for guess in sample.tokens:
            percent = f"{guess.probability:.0%}" if guess.probability >= 0.005 else "<1%"
            chips.append(chip.format(guess.probability, guess.token, percent))
        text = Markup("<mark>[MASK]</mark>").join(sample.text.split("[MASK]"))
        body.append([text, Markup(" ").join(chips)])
    cells = table(["", "most probable tokens"], body)
    return Markup("<section class=samples><h2>Filling masks</h2>{}</section>").format(cells)


def examples(workdir: Path, config: files.RunConfig, number: int) -> Markup:
    """Shows examples of the first batch, and what the run's models predict; nothing if the corpus or a model is not there."""
    if not number or config.task != "pretraining":
        return Markup()
    console = Console(record=True, file=io.StringIO(), width=batch_examples.WIDTH, highlight=False)
    try:
        for part in batch_examples.parts_of_run(workdir, 0, number):
            console.print(part)
    except UserError as error:
        logger.warning("no examples are shown: %s", error)
    shown = Markup(console.export_html(inline_styles=True, code_format="{code}"))  # which escapes text
    body = Markup("<section><h2>What the model reads</h2><pre class=terminal>{}</pre></section>")
    return body.format(shown) if shown.strip() else Markup()


def task(comparison: files.Comparison | None, predictions: Sequence[files.Prediction]) -> Markup:
    """Shows the benefit of pretraining: a comparison on a task, and some predictions."""
    if comparison is None:
        return Markup()
    rows = []
    for shown in predictions:
        if shown.words:
            verdict = "✓" if shown.predicted == shown.marked else "✗"
            rows.append([tagged(shown.words, shown.marked), tagged(shown.words, shown.predicted), verdict])
    columns = ["code according to the authors", "according to the fine-tuned encoder", ""]
    cells = table(columns, rows) if rows else ""
    bars = plots.bars(comparison.rows, len(comparison.rows) - 1, comparison.metric) if comparison.rows else ""
    return Markup("<section class=task><h2>{}</h2><p>{}</p>{}{}</section>").format(
        comparison.title, comparison.note, bars, cells
    )


def tagged(words: Sequence[str], is_code: Sequence[bool]) -> Markup:
    """Returns a sentence with words marked as code."""
    pairs = zip(words, is_code, strict=True)
    return Markup(" ").join(Markup("<code>{}</code>").format(word) if marked else word for word, marked in pairs)


def settings(options: dict[str, Any]) -> Markup:
    """Lists all options in a collapsed section."""
    cells = table(["option", "value"], [[name, json.dumps(value)] for name, value in options.items()])
    return Markup("<details><summary>All settings</summary>{}</details>").format(cells)


if __name__ == "__main__":
    define_flags()
    run_command(main)
