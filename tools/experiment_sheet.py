"""Runs a grid of experiments, encoders x ways x tasks x seeds, and writes one sheet: sheet.md, sheet.csv, sheet.html.

    python tools/experiment_sheet.py --output=sheets/mine --config=configs/sheets/transfer.py \\
        --config.encoders=bert=runs/bert,roberta=runs/roberta --config.data=DATA

Each cell of the grid has a folder in OUTPUT/cells with its log, scores and run; checkpoints are deleted at its end. If
interrupted, the same command continues, and repeats failed cells. The sheet is written after each cell.
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from absl import flags
from ml_collections import config_flags

from bert_jax.cli.main import run_command
from bert_jax.errors import UserError, listed, plain
from bert_jax.files import read_json, write_json
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.folder import flattened, read_config
from tools.lib import sheet_page
from tools.lib.logged_process import ROOT, run_logged
from tools.lib.run_files import Row

EXPERIMENT, LOG, RESULT = "experiment.json", "log.txt", "result.json"  # in the folder of a cell
REMEDY = "remove the folder, and start again"


class Outcome(msgspec.Struct):
    """Contents of the result file of a finished experiment."""

    scores: Row
    seconds: float | None  # None if it was interrupted


@dataclasses.dataclass(frozen=True)
class Cell:
    """One experiment; `kind` is 'finetune', or a linear model over 'features' (frozen) or 'words' (no encoder)."""

    encoder: str
    way: str
    task: str
    seed: int
    kind: str
    config: str  # config file of the task, with its argument
    settings: dict[str, Any]
    score: str  # name of the score to show
    highest: float  # score of perfect predictions
    pooling: str = "mean"  # of the features of a text

    @property
    def experiment(self) -> dict[str, Any]:
        """Everything that determines the scores."""
        settings = self.settings | {"seed": self.seed}
        return {"kind": self.kind, "config": self.config, "settings": settings, "pooling": self.pooling}

    def folder(self, output: Path) -> Path:
        """Returns the folder of the run, log and scores, within that of the sheet."""
        names = (self.task, self.encoder, self.way, f"seed_{self.seed}")
        return output.joinpath("cells", *(name.replace(" ", "_").replace("/", "_") for name in names))


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Grid of experiments, a file of configs/sheets/.")
    flags.DEFINE_string("output", None, "Folder of the sheet.")


def main() -> None:
    values = flags.FLAGS
    if not values.output or values.config is None:
        raise UserError("--output or --config is missing; set a folder, and a file of configs/sheets/")
    output, grid = Path(values.output).absolute(), values.config.to_dict()
    cells = list(cells_of(grid))
    for cell in cells:
        check_same_experiment(cell, cell.folder(output))
    results(cells, output)  # reports damaged files before hours of training
    failed = []
    for number, cell in enumerate(cells, 1):
        folder = cell.folder(output)
        if (folder / RESULT).exists():
            continue
        title = plain(f"{cell.task}, {cell.encoder}, {cell.way}, seed {cell.seed}")
        print(f"{number} of {len(cells)}: {title}", file=sys.stderr, flush=True)
        try:
            run_cell(cell, folder)
        except UserError as error:  # the others can still be run
            print(f"failed: {error}", file=sys.stderr, flush=True)
            failed.append(cell)
            continue
        sheet_page.write(output, results(cells, output))
    sheet_page.write(output, results(cells, output))
    print(f"{plain(str(output))}/sheet.html: {len(cells) - len(failed)} of {len(cells)} experiments")
    if failed:
        raise UserError(f"{len(failed)} experiments failed; see log.txt in {failed[0].folder(output)}, and start again")


def cells_of(grid: dict[str, Any]) -> Iterator[Cell]:
    """Yields the experiments of a grid, task by task. Raises UserError if it has no encoder, data or such a task."""
    entries = [entry.partition("=") for entry in grid["encoders"].split(",") if entry]
    if not entries or not all(name and run for name, _, run in entries):
        raise UserError(f"encoders={grid['encoders']!r}: set --config.encoders=NAME=RUN[,NAME=RUN...]")
    encoders = {name: run for name, _, run in entries}
    for run in encoders.values():
        read_config(Path(run))  # raises if it is invalid
    data = Path(grid["data"]).absolute()
    if not grid["data"] or not data.is_dir():
        remedy = "set --config.data to the folder with glue/, squad/ and ner/"
        raise UserError(f"data={grid['data']!r}: no such folder; {remedy}")
    wanted = grid["only"].split(",") if grid["only"] else list(grid["tasks"])
    if unknown := set(wanted) - set(grid["tasks"]):
        raise UserError(f"only={min(unknown)}: no such task; choose from {', '.join(grid['tasks'])}")
    for name in wanted:
        task = grid["tasks"][name]
        of_task = flattened(task["settings"])
        texts = {option: value for option, value in of_task.items() if isinstance(value, str)}
        of_task |= {option: value.replace("{data}", str(data)) for option, value in texts.items()}
        is_sampled = any("{seed}" in value for value in texts.values())
        for way, options in grid["ways"].items():
            if options["kind"] == "words" and not task["has_linear"]:
                continue
            kind = options["kind"] if task["has_linear"] else "finetune"
            # Without an encoder, one is still needed for its tokenizer.
            runs = {sheet_page.NO_ENCODER: next(iter(encoders.values()))} if kind == "words" else encoders
            own = flattened(options["settings"]) if kind == "finetune" else {}
            num_seeds = grid["seeds"] if kind == "finetune" or is_sampled else 1  # linear models are deterministic
            pooling = options.get("pooling", "mean")
            for encoder, run in runs.items():
                settings = of_task | own | {"init_from": str(Path(run).absolute())}
                for seed in range(num_seeds):
                    of_seed = {option: with_seed(value, seed) for option, value in settings.items()}
                    names = encoder, way, name, seed, kind
                    yield Cell(*names, task["config"], of_seed, task["score"], task["highest"], pooling)


def with_seed(value: Any, seed: int) -> Any:
    """Returns an option's value, where it is a text with the seed in the place of {seed}."""
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value


def check_same_experiment(cell: Cell, folder: Path) -> None:
    """Raises UserError if the folder holds another experiment with the same names."""
    path = folder / EXPERIMENT
    if path.exists() and read_json(path, Any, REMEDY) != cell.experiment:
        raise UserError(f"{path}: another experiment with the same names; use another --output, or remove {folder}")


def run_cell(cell: Cell, folder: Path) -> None:
    """Runs an experiment in a separate process, and writes its scores and time. Raises UserError if it fails."""
    is_resumed = (folder / EXPERIMENT).exists()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / EXPERIMENT, cell.experiment)
    start = time.monotonic()
    run_logged(command(cell, folder), folder / LOG)
    seconds = None if is_resumed else time.monotonic() - start  # the time of a part is meaningless
    scores = scores_of(cell, folder)
    check_score(cell, scores, folder)
    write_json(folder / RESULT, Outcome(scores, seconds))
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)


def check_score(cell: Cell, scores: Row, place: Path) -> None:
    """Raises UserError if the score to show is missing or not finite; `place` is for messages."""
    if cell.score not in scores:
        problem = f"score {cell.score!r} of the grid is not measured, only {listed(list(scores))}"
        raise UserError(f"{place}: {cell.task}: {problem}; change it")
    if scores[cell.score] is None:
        raise UserError(f"{place}: {cell.task}: score {cell.score!r} is not finite; change the grid, or {REMEDY}")


def command(cell: Cell, folder: Path) -> list[str]:
    """Returns the command line of an experiment."""
    settings = cell.settings
    if cell.kind == "finetune":
        program = ["-m", "bert_jax.finetune", f"--workdir={folder / 'run'}"]
        settings = settings | {"train.seed": cell.seed}
    else:
        program = ["tools/linear_models.py", f"--output={folder}", f"--over={cell.kind}", f"--pooling={cell.pooling}"]
    options = [f"--config.{option}={value}" for option, value in settings.items()]
    return [sys.executable, *program, f"--config={ROOT / cell.config}", *options]


def scores_of(cell: Cell, folder: Path) -> Row:
    """Returns the held-out scores of a successful experiment."""
    if cell.kind == "finetune":
        return dict(default_evaluation(folder / "run")[1])
    return read_json(folder / "scores.json", Row, REMEDY)


def results(cells: list[Cell], output: Path) -> list[sheet_page.Result]:
    """Reads the results of the finished experiments. Raises UserError if a file is damaged."""
    finished = []
    for cell in cells:
        path = cell.folder(output) / RESULT
        if path.exists():
            outcome = read_json(path, Outcome, REMEDY)
            check_score(cell, outcome.scores, path)
            names = cell.task, cell.encoder, cell.way, cell.seed, cell.score
            finished.append(sheet_page.Result(*names, cell.highest, outcome.scores, outcome.seconds))
    return finished


if __name__ == "__main__":
    define_flags()
    run_command(main)
