"""Draws the plots of the technical note from the results in docs/records/note; see tools/technical_note.py."""

import csv
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from bert_jax.errors import UserError
from bert_jax.files import write_text
from configs.sheets import first_token, labels
from configs.sheets.transfer import GLUE
from tools.lib import report_plots as plots

WAYS = ("fine-tuned", "frozen", "from scratch", "words")
REMEDY = "run tools/technical_note.py with --encoder"


class Score(NamedTuple):
    task: str
    encoder: str
    way: str
    seed: int
    value: float


def write(records: Path) -> Iterator[Path]:
    """Writes labels_TASK.svg and first_token.svg next to the results; yields their paths.

    Raises:
      UserError: results are missing.
    """
    tasks = labels.get_config().tasks
    scores = read_scores(records / "labels.csv", {name: task["score"] for name, task in tasks.items()})
    for task, sizes in labels.SIZES.items():
        of_task = [[score for score in scores if score.task == f"{task}, {size} labels"] for size in sizes]
        path = records / f"labels_{task}.svg"
        write_text(path, against_labels(task, sizes, of_task))
        yield path
    probes = read_scores(records / "first_token.csv", dict.fromkeys(first_token.PROBES, "accuracy"))
    write_text(records / "first_token.svg", of_first_token(probes))
    yield records / "first_token.svg"


def read_scores(path: Path, shown: dict[str, str]) -> list[Score]:
    """Reads a sheet.csv, of each task the score that is shown."""
    if not path.exists():
        raise UserError(f"{path}: no such file; {REMEDY}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["score"] == shown.get(row["task"])]
    if not rows:
        raise UserError(f"{path}: has no scores; {REMEDY}")
    return [Score(row["task"], row["encoder"], row["way"], int(row["seed"]), float(row["value"])) for row in rows]


def against_labels(task: str, sizes: Sequence[int], scores: Sequence[Sequence[Score]]) -> str:
    """Draws the score of each way against the number of labels: means over samples, and the range between them."""

    def draw(axes: Axes) -> None:
        for way, color in zip(WAYS, plots.OF_RUNS, strict=False):
            values = [[score.value for score in of_size if score.way == way] for of_size in scores]
            means, lowest, highest = ([f(each) for each in values] for f in (statistics.mean, min, max))
            axes.plot(sizes, means, "o-", color=color, markersize=4, linewidth=1.4, label=way)
            axes.fill_between(sizes, lowest, highest, color=color, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("labels")
        axes.set_ylabel(GLUE[task])
        axes.legend(fontsize=8)

    return plots.svg(draw, task, width=4.5, height=3.2, transparent=False)


def of_first_token(scores: Sequence[Score]) -> str:
    """Draws a group of bars for each probe: both vectors before and after fine-tuning, and a linear model over words."""
    bars = {
        "[CLS], pretrained": ("before", "first token", plots.TRAIN, 1.0),
        "[CLS], fine-tuned": ("after", "first token", plots.TRAIN, 0.4),
        "mean, pretrained": ("before", "mean", plots.HELD_OUT, 1.0),
        "mean, fine-tuned": ("after", "mean", plots.HELD_OUT, 0.4),
        "words": ("-", "words", plots.FAINT, 1.0),
    }

    def draw(axes: Axes) -> None:
        width = 0.8 / len(bars)
        for number, (label, (encoder, way, color, alpha)) in enumerate(bars.items()):
            means = [
                statistics.mean(
                    score.value for score in scores if (score.task, score.encoder, score.way) == (probe, encoder, way)
                )
                for probe in first_token.PROBES
            ]
            places = [probe - 0.4 + (number + 0.5) * width for probe in range(len(first_token.PROBES))]
            drawn = axes.bar(places, means, width * 0.92, color=color, alpha=alpha, label=label)
            axes.bar_label(drawn, [f"{mean:.2f}".lstrip("0") for mean in means], padding=2, color=plots.INK, fontsize=7)
        axes.set_xticks(range(len(first_token.PROBES)), first_token.PROBES)
        axes.set_ylim(0, 1.05)
        axes.set_ylabel("accuracy")
        axes.grid(axis="x", visible=False)
        axes.legend(fontsize=8, loc="upper center", ncols=5, bbox_to_anchor=(0.5, -0.08), columnspacing=1.0)

    return plots.svg(draw, "", width=9.2, height=3.6, transparent=False)
