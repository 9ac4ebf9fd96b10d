"""Runs a grid of experiments, encoders x ways x tasks x seeds, and writes one sheet: sheet.md, sheet.csv, sheet.html.

    python tools/experiment_sheet.py --output=sheets/mine --config=configs/sheets/transfer.py \\
        --config.encoders=bert=runs/bert,roberta=runs/roberta --config.data=DATA

Every cell of the grid is a folder in OUTPUT/cells with its log, its scores and its run; the run's checkpoints are removed at
its end. Started again it goes on where it stopped; a cell that failed is tried again. The sheet is written after each cell.
"""

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from absl import flags
from ml_collections import config_flags

from bert_jax.cli import main as cli
from bert_jax.errors import UserError, listed, plain
from bert_jax.files import read_json, write_json
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.train.loop import EXIT_STOPPED
from tools.lib import sheet_page
from tools.lib.run_files import Row, tail

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT, LOG, RESULT = "experiment.json", "log.txt", "result.json"  # in the folder of a cell
AGAIN = "remove the folder, and start again"


class Known(msgspec.Struct):
    """What is known of an experiment that is done; `seconds` is None where it was interrupted."""

    scores: Row
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Cell:
    """One experiment. `kind`: 'finetune', or what a linear model is over: 'features' (frozen ones) or 'words' (no encoder)."""

    encoder: str
    way: str
    task: str
    seed: int
    kind: str
    config: str  # file of the task, with its argument
    settings: dict[str, Any]
    score: str  # to be shown
    highest: float  # that score of perfect predictions

    @property
    def experiment(self) -> dict[str, Any]:
        """What its scores are the result of."""
        return {"kind": self.kind, "config": self.config, "settings": self.settings | {"seed": self.seed}}

    def folder(self, output: Path) -> Path:
        """The folder of its run, log and scores, in that of the sheet."""
        names = (self.task, self.encoder, self.way, f"seed_{self.seed}")
        return output.joinpath("cells", *(name.replace(" ", "_").replace("/", "_") for name in names))


def define_flags() -> None:
    """Not at import: other programs have flags of the same names."""
    config_flags.DEFINE_config_file("config", None, "The grid: a file of configs/sheets/.")
    flags.DEFINE_string("output", None, "Folder of the sheet.")


def main() -> None:
    given = flags.FLAGS
    if not given.output or given.config is None:
        raise UserError("--output or --config is missing; name a folder, and a file of configs/sheets/")
    output, grid = Path(given.output).absolute(), given.config.to_dict()
    cells = list(cells_of(grid))
    for cell in cells:
        check_same_experiment(cell, cell.folder(output))
    results(cells, output)  # a damaged one is told of before hours of training
    failed = []
    for number, cell in enumerate(cells, 1):
        folder = cell.folder(output)
        if (folder / RESULT).exists():
            continue
        what = plain(f"{cell.task}, {cell.encoder}, {cell.way}, seed {cell.seed}")
        print(f"{number} of {len(cells)}: {what}", file=sys.stderr, flush=True)
        try:
            run_cell(cell, folder)
        except UserError as error:  # the others can be run all the same
            print(f"failed: {error}", file=sys.stderr, flush=True)
            failed.append(cell)
            continue
        sheet_page.write(output, results(cells, output))
    sheet_page.write(output, results(cells, output))
    print(f"{plain(str(output))}/sheet.html: {len(cells) - len(failed)} of {len(cells)} experiments")
    if failed:
        raise UserError(f"{len(failed)} experiments failed; see log.txt in {failed[0].folder(output)}, and start again")


def cells_of(grid: dict[str, Any]) -> Iterator[Cell]:
    """The experiments of a grid, task by task.

    Raises:
      UserError: no encoder, or tasks that are not in the grid.
    """
    entries = [entry.partition("=") for entry in grid["encoders"].split(",") if entry]
    if not entries or not all(name and run for name, _, run in entries):
        raise UserError(
            f"encoders={grid['encoders']!r}: set --config.encoders=NAME=RUN, of several with commas between"
        )
    encoders = {name: run for name, _, run in entries}
    for run in encoders.values():
        run_folder.read_config(Path(run))  # says what is wrong with it
    if not grid["data"] or not Path(grid["data"]).is_dir():
        raise UserError(
            f"data={grid['data']!r}: no such folder; set --config.data to the one with glue/, squad/ and ner/"
        )
    wanted = grid["only"].split(",") if grid["only"] else list(grid["tasks"])
    if unknown := set(wanted) - set(grid["tasks"]):
        raise UserError(f"only={min(unknown)}: no such task; there are {', '.join(grid['tasks'])}")
    for name in wanted:
        task = grid["tasks"][name]
        of_task = placed(run_folder.flattened(task["settings"]), Path(grid["data"]).absolute())
        for way, options in grid["ways"].items():
            if options["kind"] == "words" and not task["has_linear"]:
                continue
            kind = options["kind"] if task["has_linear"] else "finetune"
            # Where no encoder is read, one still says how texts are cut.
            runs = {sheet_page.NO_ENCODER: next(iter(encoders.values()))} if kind == "words" else encoders
            own = run_folder.flattened(options["settings"]) if kind == "finetune" else {}
            num_seeds = grid["seeds"] if kind == "finetune" else 1  # the others draw nothing
            for encoder, run in runs.items():
                settings = of_task | own | {"init_from": str(Path(run).absolute())}
                for seed in range(num_seeds):
                    yield Cell(encoder, way, name, seed, kind, task["config"], settings, task["score"], task["highest"])


def placed(settings: dict[str, Any], data: Path) -> dict[str, Any]:
    """Settings with the folder of the data instead of '{data}'."""
    texts = {option: value.replace("{data}", str(data)) for option, value in settings.items() if isinstance(value, str)}
    return settings | texts


def check_same_experiment(cell: Cell, folder: Path) -> None:
    """Raises UserError where the folder holds something else under the same names."""
    path = folder / EXPERIMENT
    if path.exists() and read_json(path, Any, AGAIN) != cell.experiment:
        raise UserError(
            f"{path}: is not what this grid has under these names; use another --output, or remove {folder}"
        )


def run_cell(cell: Cell, folder: Path) -> None:
    """Runs an experiment in a process of its own, and writes its scores and the seconds it took.

    Raises:
      UserError: it failed; its log says why.
    """
    was_begun = (folder / EXPERIMENT).exists()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / EXPERIMENT, cell.experiment)
    start = time.monotonic()
    with (folder / LOG).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command(cell, folder), cwd=ROOT, stdout=log, stderr=log)
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # it saves, and this ends with it
        code = process.wait()
        signal.signal(signal.SIGTERM, before)
    if code in (EXIT_STOPPED, -signal.SIGTERM):
        sys.exit(EXIT_STOPPED)
    if code:
        lines = [line for line in tail(folder / LOG) if line.strip()] or [b"nothing in it"]
        raise UserError(f"exit code {code}; {folder / LOG}: {lines[-1].decode(errors='replace')}")
    seconds = None if was_begun else time.monotonic() - start  # of a part of it they would mean nothing
    scores = scores_of(cell, folder)
    check_score(cell, scores, folder)
    write_json(folder / RESULT, Known(scores, seconds))
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)


def check_score(cell: Cell, scores: Row, place: Path) -> None:
    """Raises UserError if the score to show is not among the scores that were found at a place, or is not finite."""
    if cell.score not in scores:
        known = listed(list(scores))
        raise UserError(f"{place}: {cell.task}: score {cell.score!r} of the grid is not measured; there are {known}")
    if scores[cell.score] is None:
        raise UserError(f"{place}: {cell.task}: score {cell.score!r} is not finite; change the grid, or {AGAIN}")


def command(cell: Cell, folder: Path) -> list[str]:
    """What runs an experiment."""
    settings = cell.settings
    if cell.kind == "finetune":
        program = ["-m", "bert_jax.finetune", f"--workdir={folder / 'run'}"]
        settings = settings | {"train.seed": cell.seed}
    else:
        program = ["tools/linear_models.py", f"--output={folder}", f"--over={cell.kind}"]
    options = [f"--config.{option}={value}" for option, value in settings.items()]
    return [sys.executable, *program, f"--config={ROOT / cell.config}", *options]


def scores_of(cell: Cell, folder: Path) -> Row:
    """The held-out scores of an experiment that ended well."""
    if cell.kind == "finetune":
        return dict(default_evaluation(folder / "run")[1])
    return read_json(folder / "scores.json", Row, AGAIN)


def results(cells: list[Cell], output: Path) -> list[sheet_page.Result]:
    """What is known of each experiment that is done. Raises UserError for a file that does not say it."""
    found = []
    for cell in cells:
        path = cell.folder(output) / RESULT
        if path.exists():
            known = read_json(path, Known, AGAIN)
            check_score(cell, known.scores, path)
            found.append(
                sheet_page.Result(
                    task=cell.task,
                    encoder=cell.encoder,
                    way=cell.way,
                    seed=cell.seed,
                    score=cell.score,
                    highest=cell.highest,
                    scores=known.scores,
                    seconds=known.seconds,
                )
            )
    return found


if __name__ == "__main__":
    define_flags()
    cli.run(main)
