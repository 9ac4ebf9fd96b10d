"""Results of the quickstart, as notes for the report (`notes.json` in the run folder) and as short tables."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bert_jax.data.conll import read_sentences
from tools.quickstart_lib import losses, metric_rows

NOTES = "notes.json"
TASK_TITLE = "Which words of a sentence are code?"
TASK_NOTE = (
    "Sentences of docstrings without the backticks that marked their code. Those of held-out modules, which pretraining has "
    "not seen either, are the test. F1 is of the words that are code."
)
ROWS = {  # folder: what it holds
    "words": "linear model over words and neighbours",
    "from_scratch": "the same encoder, not pretrained",
    "features": "pretrained encoder, frozen, linear model over it",
    "finetuned": "pretrained encoder, fine-tuned",
}
_SHOWN_STEPS = 4  # of the comparison of meshes


def write_notes(workdir: Path, state: dict[str, Any]) -> None:
    """Gathers what other folders of the quickstart hold, for the report of the run in `workdir`/pretrain."""
    notes = {
        "meshes": state["meshes"],
        "stopped": state["stopped"],
        "replay": {
            "from": state["replayed_from"],
            "compared": state["compared"],
            "identical": state["identical"],
            "losses": losses(workdir / "replay"),
        },
        "fill_mask": fill_mask_samples(workdir),
        "task": {"title": TASK_TITLE, "note": f"{TASK_NOTE} {sizes(workdir / 'data')}", "rows": comparison(workdir)},
        "predictions": predictions(workdir),
        "seconds": state["seconds"],
    }
    (workdir / "pretrain" / NOTES).write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n")


def compared(by_mesh: dict[str, dict[int, float]]) -> list[tuple[int, float, float]]:
    """Returns (step, loss on one device, loss on the mesh) of the steps that both runs have."""
    one, other = by_mesh.values()
    return [(step, one[step], other[step]) for step in sorted(one.keys() & other.keys())]


def sizes(data: Path) -> str:
    """Describes how many sentences the task has."""
    train, validation = (len(read_sentences(data / f"{part}.conll")) for part in ("train", "validation"))
    return f"{train:,} labelled sentences to learn from, {validation:,} held out."


def comparison(workdir: Path) -> list[tuple[str, float]]:
    """Returns (what, held-out F1) of every model of the task."""
    return [(name, held_out_f1(workdir / folder)) for folder, name in ROWS.items()]


def held_out_f1(folder: Path) -> float:
    """Returns the held-out F1 of a linear model or of a run."""
    scores = folder / "scores.json"
    if scores.exists():
        return json.loads(scores.read_text(encoding="utf-8"))["f1"]
    return last_evaluation(folder)["eval/f1"]


def over_seeds(workdirs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Returns mean, sample standard deviation and values of each score over the quickstarts in several folders."""
    values: dict[str, list[float]] = {}
    for workdir in workdirs:
        held_out = last_evaluation(workdir / "pretrain")
        pretraining = [(name.removeprefix("eval/"), value) for name, value in held_out.items() if name.count("/") == 2]
        for name, value in [*pretraining, *comparison(workdir)]:
            values.setdefault(name, []).append(value)
    return {
        name: {"mean": statistics.mean(of), "std": statistics.stdev(of), "seeds": of} for name, of in values.items()
    }


def last_evaluation(run: Path) -> dict[str, float]:
    """Returns the held-out metrics of a run's last evaluation."""
    row = next(row for row in reversed(metric_rows(run)) if "eval/loss" in row)
    return {name: value for name, value in row.items() if name.startswith("eval/")}


def fill_mask_samples(workdir: Path) -> list[dict[str, Any]]:
    """Returns for each text the predictions for its first mask; empty if mlm is not an objective."""
    path = workdir / "pretrain" / "fill_mask.jsonl"
    if not path.exists():
        return []
    answers = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{"text": answer["text"], "found": answer["masks"][0]} for answer in answers]


def predictions(workdir: Path) -> list[dict[str, Any]]:
    """Returns some held-out sentences: their words, and which of them are code according to their authors and to the model."""
    marked, found = (read_sentences(workdir / name) for name in ("shown.conll", "predictions.conll"))
    return [
        {
            "words": sentence.words,
            "marked": [tag != "O" for tag in sentence.tags],
            "found": [tag != "O" for tag in answer.tags],
        }
        for sentence, answer in zip(marked, found, strict=True)
    ]


def show_meshes(rows: Sequence[Sequence[float]], console: Console) -> None:
    """Prints some of the losses side by side, and the largest difference of all."""
    table = Table("step", "loss on 1 device", "loss on 4 devices, 2x2", "relative difference")
    for step, one, other in rows[:: max(1, len(rows) // _SHOWN_STEPS)]:
        table.add_row(f"{step}", f"{one:.6f}", f"{other:.6f}", f"{abs(one - other) / one:.0e}")
    console.print(table)
    largest = max(abs(one - other) / one for _, one, other in rows)
    console.print(f"{len(rows)} steps; the largest relative difference is {largest:.0e}")


def show_summary(workdir: Path, console: Console) -> None:
    """Prints the tables at the end."""
    run = workdir / "pretrain"
    notes = json.loads((run / NOTES).read_text(encoding="utf-8"))
    trained = last_evaluation(run)
    unigram_file = run / "unigram.json"
    unigram = json.loads(unigram_file.read_text(encoding="utf-8")) if unigram_file.exists() else {}

    table = Table("pretraining, on held-out modules", title_justify="left")
    for column in ("unigrams", "pretrained"):
        table.add_column(column, justify="right")
    for objective in sorted({name.split("/")[1] for name in trained if name.count("/") == 2}):
        for metric in ("accuracy", "loss"):
            show = "{:.1%}".format if metric == "accuracy" else "{:.3f}".format
            baseline = show(unigram[metric]) if objective == "mlm" else ""
            table.add_row(f"{objective} {metric}", baseline, show(trained[f"eval/{objective}/{metric}"]))
    console.print(table)

    table = Table(TASK_TITLE)
    table.add_column("held-out F1", justify="right")
    for name, score in notes["task"]["rows"]:
        table.add_row(name, f"{score:.3f}")
    console.print(table)
    console.print("[dim]of this seed; docs/results.md has the means and deviations of three (--seeds=3)")

    replay = notes["replay"]
    console.print(
        f"Stopped at step {notes['stopped']} and resumed; replayed without the stop: "
        f"[bold]{replay['identical']} of {replay['compared']} losses identical to the last bit[/]"
    )
    console.print(f"Report: [bold]{run / 'report.html'}[/]", soft_wrap=True)
