"""Collects the results of the quickstart for the report (notes.json in the run folder), and prints tables."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from rich.console import Console
from rich.table import Table

from bert_jax.data.datasets.conll import read_sentences
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json
from tools.lib import run_files as files
from tools.lib.quickstart_commands import losses
from tools.lib.run_files import NOTES, UNIGRAM, Count, Notes, literal, relative_difference

TASK_TITLE = "Which words of a sentence are code?"
TASK_NOTE = (
    "Sentences of docstrings whose backticks around code have been removed. The test set is from modules that are held out "
    "from pretraining, too. F1 is computed for the words that are code."
)
MODELS = {  # folder: model
    "words": "linear model over words and neighbours",
    "from_scratch": "the same encoder, not pretrained",
    "features": "pretrained encoder, frozen, linear model over it",
    "finetuned": "pretrained encoder, fine-tuned",
}
REMEDY = "remove it, and start again"
_SHOWN_STEPS = 4  # in the comparison of meshes


class State(msgspec.Struct):
    """State of a quickstart, stored in quickstart.json."""

    settings: dict[str, Any]
    seconds: dict[str, float] = {}  # of each completed stage, by title
    meshes: list[tuple[Count, float, float]] = []
    stopped: Count = 0
    replayed_from: Count = 0
    compared: Count = 0
    identical: Count = 0


class _Answer(msgspec.Struct):
    """Output line of `predict` for a text with masks."""

    text: str
    masks: Annotated[list[list[files.Guess]], msgspec.Meta(min_length=1)]


def write_notes(workdir: Path, state: State) -> None:
    """Writes the results in all folders of the quickstart as notes for the report of the run in `workdir`/pretrain."""
    replayed = losses(workdir / "replay")
    train, validation = (len(read_sentences(workdir / "data" / f"{part}.conll")) for part in ("train", "validation"))
    sizes = f"{train:,} labelled sentences for training, {validation:,} held out."
    notes = Notes(
        meshes=state.meshes,
        stopped=state.stopped,
        replay=files.Replay(state.replayed_from, state.compared, state.identical, replayed) if replayed else None,
        fill_mask=fill_mask_samples(workdir),
        task=files.Comparison(TASK_TITLE, f"{TASK_NOTE} {sizes}", comparison(workdir)),
        predictions=predictions(workdir),
        seconds=state.seconds,
    )
    write_json(workdir / "pretrain" / NOTES, notes)


def comparison(workdir: Path) -> list[tuple[str, float]]:
    """Returns (name, held-out F1) of every model of the task."""
    return [(name, held_out_f1(workdir / folder)) for folder, name in MODELS.items()]


def held_out_f1(folder: Path) -> float:
    """Returns the held-out F1 of a linear model or of a run."""
    path = folder / "scores.json"
    if path.exists():
        return score(read_json(path, files.Row, REMEDY), "f1", path)
    return score(last_evaluation(folder), "f1", folder)


def score(scores: Mapping[str, float | None], name: str, place: Path) -> float:
    """Returns a score by name. Raises UserError, which mentions `place`, if it is missing or not finite."""
    value = scores.get(name)
    if value is None:
        raise UserError(f"{place}: {name} is missing or not finite; {REMEDY}")
    return value


def over_seeds(workdirs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Returns mean, sample standard deviation and values of each score over the quickstarts in several folders."""
    values: dict[str, list[float]] = {}
    for workdir in workdirs:
        held_out = last_evaluation(workdir / "pretrain")
        pretraining = [(name, score(held_out, name, workdir)) for name in held_out if "/" in name]
        for name, value in [*pretraining, *comparison(workdir)]:
            values.setdefault(name, []).append(value)
    return {
        name: {"mean": statistics.mean(scores), "std": statistics.stdev(scores), "seeds": scores}
        for name, scores in values.items()
    }


def last_evaluation(run: Path) -> dict[str, float]:
    """Returns the held-out metrics of a run's last evaluation, by names without 'eval/'."""
    return files.History(files.metric_rows(run)).last_evaluation


def fill_mask_samples(workdir: Path) -> list[files.Filled]:
    """Returns the predictions for the first mask of each text; empty if mlm is not an objective."""
    path = workdir / "pretrain" / "fill_mask.jsonl"
    answers = files.read_json_lines(path, _Answer) if path.exists() else ()
    return [files.Filled(answer.text, answer.masks[0]) for answer in answers]


def predictions(workdir: Path) -> list[files.Prediction]:
    """Returns some held-out sentences, and which words are code according to their authors and to the model."""
    shown = []
    pairs = zip(*(read_sentences(workdir / name) for name in ("shown.conll", "predictions.conll")), strict=True)
    for sentence, answer in pairs:
        marked, predicted = ([tag != "O" for tag in tagged.tags] for tagged in (sentence, answer))
        shown.append(files.Prediction(list(sentence.words), marked, predicted))
    return shown


def show_meshes(rows: Sequence[tuple[int, float, float]], console: Console) -> None:
    """Prints some losses side by side, and the largest difference."""
    table = Table("step", "loss on 1 device", "loss on 4 devices, 2x2", "relative difference")
    for step, one, other in rows[:: max(1, len(rows) // _SHOWN_STEPS)]:
        table.add_row(f"{step}", f"{one:.6f}", f"{other:.6f}", f"{relative_difference(one, other):.0e}")
    console.print(table)
    largest = max((relative_difference(one, other) for _, one, other in rows), default=0.0)
    console.print(f"{len(rows)} steps; the largest relative difference is {largest:.0e}")


def show_summary(workdir: Path, console: Console) -> None:
    """Prints the final tables."""
    run = workdir / "pretrain"
    notes = files.read_result(run / NOTES, Notes, Notes())
    unigram = files.read_result(run / UNIGRAM, files.Unigram, None)
    trained = last_evaluation(run)

    table = Table("pretraining, on held-out modules", title_justify="left")
    for column in ("unigrams", "pretrained"):
        table.add_column(column, justify="right")
    for objective in sorted({name.split("/")[0] for name in trained if "/" in name}):
        for metric, show in (("accuracy", "{:.1%}".format), ("loss", "{:.3f}".format)):
            baseline = show(getattr(unigram, metric)) if objective == "mlm" and unigram else ""
            value = show(score(trained, f"{objective}/{metric}", run))
            table.add_row(literal(f"{objective} {metric}"), baseline, value)
    console.print(table)

    table = Table(TASK_TITLE)
    table.add_column("held-out F1", justify="right")
    for name, f1 in notes.task.rows if notes.task else ():
        table.add_row(literal(name), f"{f1:.3f}")
    console.print(table)
    console.print("[dim]one seed; docs/results.md has means and deviations of three (--seeds=3)")

    if replay := notes.replay:
        console.print(
            f"Stopped at step {notes.stopped} and resumed; replayed without the stop: "
            f"[bold]{replay.identical} of {replay.compared} losses identical to the last bit[/]"
        )
    console.print("Report:", literal(run / "report.html"), soft_wrap=True)
