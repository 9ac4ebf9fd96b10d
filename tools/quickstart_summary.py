"""The end of the quickstart: what it found, as notes for the report (`notes.json` in the run folder) and as a short table."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bert_jax.data.tables import read_table
from tools.quickstart_lib import losses, metric_rows

NOTES = "notes.json"
TASK_TITLE = "Which package does this sentence document?"
TASK_NOTE = (
    "The first sentences of docstrings; those of held-out modules, which pretraining has not seen either, are the test. "
    "Words that hold the name of one of the packages are replaced by 'this package'."
)
ROWS = {
    "from_scratch": "the same encoder, not pretrained",
    "frozen": "pretrained encoder, frozen",
    "finetuned": "pretrained encoder, fine-tuned",
}


def write_notes(workdir: Path, state: dict[str, Any]) -> None:
    """Gathers what other folders of the quickstart hold, for the report of the run in `workdir`/pretrain."""
    notes = {
        "stopped": state["stopped"],
        "replay": {
            "from": state["replayed_from"],
            "compared": state["compared"],
            "identical": state["identical"],
            "losses": losses(workdir / "replay"),
        },
        "untrained": {name: value for name, value in metric_rows(workdir / "untrained")[-1].items() if name != "step"},
        "fill_mask": fill_mask_samples(workdir),
        "task": {"title": TASK_TITLE, "note": TASK_NOTE + sizes(workdir / "data"), "rows": comparison(workdir)},
        "predictions": predictions(workdir),
        "seconds": state["seconds"],
    }
    (workdir / "pretrain" / NOTES).write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n")


def sizes(data: Path) -> str:
    """How many sentences and packages the task has."""
    train, validation = (read_table(data / f"{part}.jsonl", ("label",)) for part in ("train", "validation"))
    num_labels = len({row["label"] for row in train})
    return f" {len(train):,} sentences to train on, {len(validation):,} held out, {num_labels} packages."


def comparison(workdir: Path) -> list[tuple[str, float]]:
    """(what, held-out accuracy) of everything that was tried on the task."""
    labels = [row["label"] for row in read_table(workdir / "data" / "validation.jsonl", ("label",))]
    linear = json.loads((workdir / "linear" / "scores.json").read_text(encoding="utf-8"))
    rows = [
        ("the same package always, at best", max(map(labels.count, set(labels))) / len(labels)),
        ("TF-IDF, logistic regression", linear["accuracy"]),
    ]
    for folder, name in ROWS.items():
        rows.append((name, metric_rows(workdir / folder)[-1]["eval/accuracy"]))
    return rows


def fill_mask_samples(workdir: Path) -> list[dict[str, Any]]:
    """For each text the fillings of its first mask, before and after training; none where mlm is no objective."""
    paths = [workdir / folder / "fill_mask.jsonl" for folder in ("untrained", "pretrain")]
    if not all(path.exists() for path in paths):
        return []
    before, after = ([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in paths)
    return [
        {"text": old["text"], "before": old["masks"][0], "after": new["masks"][0]}
        for old, new in zip(before, after, strict=True)
    ]


def predictions(workdir: Path) -> list[dict[str, Any]]:
    """Some held-out sentences with the package that the fine-tuned model names, and the right one."""
    answers = [json.loads(line) for line in (workdir / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {
            "text": answer["text"],
            "label": answer["module"].partition(".")[0],
            "predicted": answer["label"],
            "probability": answer["probabilities"][answer["label"]],
        }
        for answer in answers
    ]


def show_summary(workdir: Path, console: Console) -> None:
    """The table at the end."""
    run = workdir / "pretrain"
    notes = json.loads((run / NOTES).read_text(encoding="utf-8"))
    trained = next(row for row in reversed(metric_rows(run)) if "eval/loss" in row)
    unigram_file = run / "unigram.json"
    unigram = json.loads(unigram_file.read_text(encoding="utf-8")) if unigram_file.exists() else {}

    table = Table("pretraining, on held-out modules", title_justify="left")
    for column in ("not trained", "unigrams", "pretrained"):
        table.add_column(column, justify="right")
    for objective in sorted({name.split("/")[1] for name in trained if name.count("/") == 2}):
        for metric in ("accuracy", "loss"):
            show = "{:.1%}".format if metric == "accuracy" else "{:.3f}".format
            name = f"eval/{objective}/{metric}"
            baseline = show(unigram[metric]) if objective == "mlm" else ""
            table.add_row(f"{objective} {metric}", show(notes["untrained"][name]), baseline, show(trained[name]))
    console.print(table)

    table = Table(TASK_TITLE)
    table.add_column("held-out accuracy", justify="right")
    for name, accuracy in notes["task"]["rows"]:
        table.add_row(name, f"{accuracy:.1%}")
    console.print(table)

    replay = notes["replay"]
    console.print(
        f"Stopped at step {notes['stopped']} and resumed; replayed without the stop: "
        f"[bold]{replay['identical']} of {replay['compared']} losses identical to the last bit[/]"
    )
    console.print(f"Report: [bold]{run / 'report.html'}[/]", soft_wrap=True)
