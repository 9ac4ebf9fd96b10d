"""A run as one page, report.html in its folder: curves, held-out metrics, samples. Nothing is loaded from elsewhere.

    python tools/report.py --workdir=runs/x

It reads metrics.jsonl and config.json and, where they are there, evaluation.json, unigram.json (tools/unigram_baseline.py)
and notes.json (tools/quickstart.py).
"""

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from bert_jax import cli, run_folder
from bert_jax.errors import UserError
from bert_jax.train.metrics import Row, read_lines
from tools import report_plots as plots

REPORT = "report.html"
_PAGE = Path(__file__).with_name("report.css")


def define_flags() -> None:
    """Not at import: other programs have flags of the same names."""
    flags.DEFINE_string("workdir", None, "the run folder", required=True)


def main() -> None:
    path = write_report(Path(flags.FLAGS.workdir))
    print(f"{path}: {path.stat().st_size / 1e3:,.0f} kB")


def write_report(workdir: Path) -> Path:
    """Writes the page and returns its path.

    Raises:
      UserError: not a run folder, or no step is done yet.
    """
    config = run_folder.read_config(workdir)
    rows: list[Row] = [json.loads(line) for line in read_lines(workdir / "metrics.jsonl")]
    if not any("loss" in row for row in rows):
        raise UserError(f"{workdir}: metrics.jsonl tells of no step yet; train first")
    unigram, notes = read_json(workdir / "unigram.json"), read_json(workdir / "notes.json")
    sections = [
        header(workdir, config, rows),
        tiles(config, rows, unigram, notes),
        curves(rows, unigram, notes.get("stopped")),
        metric_table(rows, read_json(workdir / "evaluation.json"), unigram),
        meshes(notes.get("meshes", [])),
        interruption(rows, notes),
        fill_masks(notes.get("fill_mask", [])),
        task(notes),
        settings(config),
    ]
    style = _PAGE.read_text(encoding="utf-8")
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{text(workdir.name)}</title><style>{style}</style>"
    page += '<meta name=viewport content="width=device-width">' + "<main>" + "\n".join(sections) + "</main></html>\n"
    path = workdir / REPORT
    path.write_text(page, encoding="utf-8")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The contents of a file; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# ---------------------------------------------------------------------------------------------------------------------
# Sections: each is HTML, '' where there is nothing to show
# ---------------------------------------------------------------------------------------------------------------------


def header(workdir: Path, config: dict[str, Any], rows: Sequence[Row]) -> str:
    """What was trained, in a line."""
    model, train, parallel = config["model"], config["train"], config["parallel"]
    what = f"{' + '.join(config['objectives'])}" if "objectives" in config else config["task"]
    named = {axis: "(all devices)" if size == -1 else size for axis, size in parallel.items() if size != 1}
    mesh = " x ".join(f"{axis} {size}" for axis, size in named.items()) or "one device"
    facts = (
        f"{what} · {model['num_layers']} layers of {model['hidden_size']}, {model['num_heads']} heads, "
        f"{model['vocab_size']:,} tokens · {train['batch_size']} sequences of {config['data']['sequence_length']} a step · "
        f"mesh: {mesh}"
    )
    return f"<header><h1>{text(workdir.as_posix())}</h1><p>{text(facts)}</p></header>"


def tiles(config: dict[str, Any], rows: Sequence[Row], unigram: dict, notes: dict) -> str:
    """The figures that one looks for first."""
    steps = int(max(row["step"] for row in rows))
    length = config["train"]["batch_size"] * config["data"]["sequence_length"]
    speed = np.median([row["tokens_per_second"] for row in rows if "tokens_per_second" in row])
    shown = [(f"{steps:,}", f"steps of {config['train']['num_steps']:,}"), (quantity(steps * length), "tokens")]
    shown.append((f"{quantity(float(speed))}/s", "tokens, median"))
    held_out = last(rows, "eval/")
    for name, value in held_out.items():
        if name.endswith("/accuracy"):
            objective = name.split("/")[1]
            against = f", unigrams {unigram['accuracy']:.1%}" if objective == "mlm" and unigram else ""
            shown.append((f"{value:.1%}", f"held-out {objective} accuracy{against}"))
    if "replay" in notes:
        replay = notes["replay"]
        shown.append((f"{replay['identical']} of {replay['compared']}", "losses identical across the stop"))
    cells = "".join(f"<div><b>{text(value)}</b><span>{text(label)}</span></div>" for value, label in shown)
    return f"<section class=tiles>{cells}</section>"


def curves(rows: Sequence[Row], unigram: dict[str, float], stopped: int | None) -> str:
    """Losses and accuracies of each objective, then how training went."""
    objectives = sorted({name.split("/")[-2] for row in rows for name in row if name.endswith("/loss")} - {"eval"})
    drawn = []
    for objective in objectives:
        for metric, scale, unit in (("loss", 1.0, "nats"), ("accuracy", 100.0, "%")):
            baseline = ("unigrams", unigram[metric]) if objective == "mlm" and unigram else None
            name = f"{objective}/{metric}"
            title = f"{objective} {metric}"
            drawn.append(plots.curve(rows, name, title, stopped=stopped, baseline=baseline, scale=scale, unit=unit))
    # The first step after a start waits for compilation: its rate is that of the compiler.
    steady = [row for row in rows if row.get("tokens_per_second", np.inf) > 0]
    for name, title, scale, unit in (
        ("learning_rate", "learning rate", 1.0, ""),
        ("gradient_norm", "gradient norm", 1.0, ""),
        ("tokens_per_second", "throughput", 1e-3, "thousand tokens / s"),
        ("data_wait_seconds", "waiting for data", 1e3, "ms a step"),
    ):
        drawn.append(plots.curve(steady, name, title, stopped=stopped, scale=scale, unit=unit))
    figures = "".join(f"<figure>{drawing}</figure>" for drawing in drawn if drawing)
    return f"<section><h2>Curves</h2><div class=grid>{figures}</div></section>"


def metric_table(rows: Sequence[Row], evaluation: dict[str, Row], unigram: Row) -> str:
    """Returns a table of held-out metrics: of the run's checkpoints and, where known, of unigrams."""
    columns: dict[str, Row] = {}
    if unigram:
        columns["unigrams"] = {f"mlm/{name}": value for name, value in unigram.items()}
    if evaluation:
        columns |= {f"step {step}": row for step, row in evaluation.items()}
    elif found := last(rows, "eval/"):
        columns["last"] = {name.removeprefix("eval/"): value for name, value in found.items()}
    names = next(reversed(columns.values()), {})
    body = [[name, *[number(name, row.get(name)) for row in columns.values()]] for name in names]
    return f"<section><h2>Held out</h2>{table(['', *columns], body)}</section>" if body else ""


def meshes(compared: Sequence[tuple[int, float, float]]) -> str:
    """Returns the first steps on one device and on a mesh of four, side by side."""
    if not compared:
        return ""
    body = [[f"{step}", f"{one:.7f}", f"{other:.7f}", f"{abs(one - other) / one:.0e}"] for step, one, other in compared]
    cells = table(
        ["step", "loss on one device", "loss on four devices, 2 x data, 2 x fsdp", "relative difference"], body
    )
    largest = max(abs(one - other) / one for _, one, other in compared)
    return (
        f"<section><h2>One device and a mesh</h2><p>{len(compared)} steps from the same start, on one device and on four "
        f"virtual ones: the same examples, and losses that differ only by rounding, by at most {largest:.0e}.</p>"
        f"<details><summary>The losses</summary>{cells}</details></section>"
    )


def interruption(rows: Sequence[Row], notes: dict[str, Any]) -> str:
    """The stop, and the replay that shows that nothing was lost by it."""
    if "replay" not in notes:
        return ""
    replay, stopped = notes["replay"], notes["stopped"]
    drawing = plots.replay_plot(rows, {int(step): loss for step, loss in replay["losses"].items()}, stopped)
    return (
        f"<section><h2>Stopped and resumed</h2><p>The process was told to end (SIGTERM) and saved at step {stopped}; another "
        f"took the run up there. A copy of the run then went on from its checkpoint of step {replay['from']} without a stop: "
        f"<b>{replay['identical']} of {replay['compared']} losses are identical to the last bit</b>.</p>{drawing}</section>"
    )


def fill_masks(samples: Sequence[dict[str, Any]]) -> str:
    """Returns the likeliest tokens for masks."""
    if not samples:
        return ""

    def likeliest(found: Iterable[dict[str, Any]]) -> str:
        return " ".join(
            f"<span class=chip style='--p:{item['probability']:.3f}'>{text(item['token'])} "
            f"<i>{percent(item['probability'])}</i></span>"
            for item in found
        )

    body = [
        [text(sample["text"]).replace("[MASK]", "<mark>[MASK]</mark>"), likeliest(sample["found"])]
        for sample in samples
    ]
    cells = table(["", "likeliest tokens"], body, escaped=False)
    return f"<section class=samples><h2>Filling masks</h2>{cells}</section>"


def task(notes: dict[str, Any]) -> str:
    """What pretraining is good for: a comparison on a task, and some predictions."""
    if "task" not in notes:
        return ""
    about = notes["task"]
    rows = [
        [
            tagged(words, shown["marked"]),
            tagged(words, shown["found"]),
            "✓" if shown["found"] == shown["marked"] else "✗",
        ]
        for shown in notes["predictions"]
        if (words := shown["words"])
    ]
    cells = table(["code according to the authors", "according to the fine-tuned encoder", ""], rows, escaped=False)
    return (
        f"<section class=task><h2>{text(about['title'])}</h2><p>{text(about['note'])}</p>"
        f"{plots.bars([(name, value) for name, value in about['rows']], len(about['rows']) - 1)}{cells}</section>"
    )


def tagged(words: Sequence[str], is_code: Sequence[bool]) -> str:
    """Returns a sentence as HTML, with some of its words marked as code."""
    pairs = zip(words, is_code, strict=True)
    return " ".join(f"<code>{text(word)}</code>" if marked else text(word) for word, marked in pairs)


def settings(config: dict[str, Any]) -> str:
    """Every option, folded away."""
    rows = [[name, json.dumps(value)] for name, value in run_folder.flattened(config).items()]
    return f"<details><summary>All settings</summary>{table(['option', 'value'], rows)}</details>"


# ---------------------------------------------------------------------------------------------------------------------
# Pieces
# ---------------------------------------------------------------------------------------------------------------------


def last(rows: Sequence[Row], prefix: str) -> Row:
    """The metrics with a prefix in the last row that has any."""
    for row in reversed(rows):
        if found := {name: value for name, value in row.items() if name.startswith(prefix)}:
            return found
    return {}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], escaped: bool = True) -> str:
    """An HTML table; without `escaped` the cells are HTML already."""
    show = text if escaped else str
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{show(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def number(name: str, value: float | None) -> str:
    """A metric as text: accuracies in percent."""
    if value is None:
        return ""
    return f"{value:.1%}" if name.endswith("accuracy") else f"{value:,.3f}"


def quantity(value: float) -> str:
    """1,234,567 as '1.2 M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A probability as HTML."""
    return f"{share:.0%}" if share >= 0.005 else "&lt;1%"


def text(value: object) -> str:
    """Any text as HTML."""
    return html.escape(str(value), quote=False)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
