"""Runs a grid of experiments, encoders x ways x tasks x seeds, and writes one sheet: sheet.md, sheet.csv, sheet.html.

    python tools/experiment_sheet.py --output=sheets/mine --config=configs/sheets/transfer.py \\
        --config.encoders=bert=runs/bert,roberta=runs/roberta --config.data=DATA

Every cell of the grid is a folder in OUTPUT/cells with its log, its scores and its run, of which the checkpoints are removed at
its end. Started again it goes on where it stopped; a cell that failed is tried again. The sheet is written after each cell.
"""

import dataclasses
import json
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without an installation

import absl.logging
from absl import flags
from ml_collections import config_flags

from bert_jax import cli, run_folder
from bert_jax.chosen_checkpoint import chosen_evaluation
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.library import load
from bert_jax.tasks import base as tasks
from bert_jax.train.loop import EXIT_STOPPED
from bert_jax.train.metrics import Row
from tools import linear_models, sheet_page

ROOT = Path(__file__).resolve().parents[1]
ANY_ENCODER = "-"  # of ways without one


@dataclasses.dataclass(frozen=True)
class Cell:
    """One experiment. `kind`: 'finetune', 'features' (frozen ones, under a linear model) or 'words' (no encoder)."""

    encoder: str
    way: str
    task: str
    seed: int
    kind: str
    config: str  # file of the task, with its argument
    settings: dict[str, Any]
    score: str  # to be shown

    def folder(self, output: Path) -> Path:
        """Where it leaves all it makes."""
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
    absl.logging.set_verbosity(absl.logging.FATAL)  # of Orbax, whose errors are raised as well
    output, grid = Path(given.output).absolute(), given.config.to_dict()
    cells = list(cells_of(grid))
    failed = []
    for number, cell in enumerate(cells, 1):
        folder = cell.folder(output)
        if (folder / "cell.json").exists():
            continue
        print(
            f"{number} of {len(cells)}: {cell.task}, {cell.encoder}, {cell.way}, seed {cell.seed}",
            file=sys.stderr,
            flush=True,
        )
        try:
            run_cell(cell, folder, output)
        except UserError as error:  # the others can be run all the same
            print(f"failed: {error}", file=sys.stderr, flush=True)
            failed.append(cell)
            continue
        sheet_page.write(output, results(cells, output))
    sheet_page.write(output, results(cells, output))
    print(f"{output}/sheet.html: {len(cells) - len(failed)} of {len(cells)} experiments")
    if failed:
        raise UserError(f"{len(failed)} experiments failed; see log.txt in {failed[0].folder(output)}, and start again")


def cells_of(grid: dict[str, Any]) -> Iterator[Cell]:
    """The experiments of a grid, task by task.

    Raises:
      UserError: no encoder, or tasks that are not in the grid.
    """
    encoders = dict(entry.split("=", 1) for entry in grid["encoders"].split(",") if "=" in entry)
    if not encoders:
        raise UserError("encoders is empty; set --config.encoders=NAME=RUN")
    wanted = grid["only"].split(",") if grid["only"] else list(grid["tasks"])
    if unknown := set(wanted) - set(grid["tasks"]):
        raise UserError(f"only={min(unknown)}: no such task; there are {', '.join(grid['tasks'])}")
    for name in wanted:
        task = grid["tasks"][name]
        of_task = placed(run_folder.flattened(task["settings"]), Path(grid["data"]).absolute())
        answers_questions = "squad" in task["config"]
        for way, options in grid["ways"].items():
            if options["kind"] == "words" and answers_questions:
                continue  # no linear model answers questions
            kind = "finetune" if answers_questions else options["kind"]
            # Where no encoder is read, one still says how texts are cut.
            runs = {ANY_ENCODER: next(iter(encoders.values()))} if kind == "words" else encoders
            own = run_folder.flattened(options["settings"]) if kind == "finetune" and options["settings"] else {}
            num_seeds = grid["seeds"] if kind == "finetune" else 1  # the others draw nothing
            for encoder, run in runs.items():
                settings = of_task | own | {"init_from": str(Path(run).absolute())}
                for seed in range(num_seeds):
                    yield Cell(encoder, way, name, seed, kind, task["config"], settings, task["score"])


def placed(settings: dict[str, Any], data: Path) -> dict[str, Any]:
    """Settings with the folder of the data in the place of '{data}'."""
    texts = {option: value.replace("{data}", str(data)) for option, value in settings.items() if isinstance(value, str)}
    return settings | texts


def run_cell(cell: Cell, folder: Path, output: Path) -> None:
    """Runs an experiment and writes cell.json: its scores, and the seconds it took.

    Raises:
      UserError: it failed; its log says why.
    """
    was_begun = run_folder.exists(folder / "run")
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    scores = finetuned(cell, folder) if cell.kind == "finetune" else linear(cell, folder, output)
    seconds = None if was_begun else time.monotonic() - start  # of a part of it they would mean nothing
    write_json(folder / "cell.json", {"scores": scores, "seconds": seconds})


def finetuned(cell: Cell, folder: Path) -> Row:
    """Scores of a run in a process of its own."""
    settings = cell.settings | {"train.seed": cell.seed}
    command = [
        sys.executable,
        "-m",
        "bert_jax.finetune",
        f"--config={ROOT / cell.config}",
        f"--workdir={folder / 'run'}",
    ]
    command += [f"--config.{option}={value}" for option, value in settings.items()]
    with (folder / "log.txt").open("a") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode
    if code == EXIT_STOPPED:
        sys.exit(code)
    if code:
        raise UserError(f"{folder}/log.txt: {(folder / 'log.txt').read_text().strip().splitlines()[-1]}")
    scores = chosen_evaluation(folder / "run")[1]
    shutil.rmtree(folder / "run" / "checkpoints")
    return scores


def linear(cell: Cell, folder: Path, output: Path) -> Row:
    """Scores of a linear model."""
    file, _, argument = str(ROOT / cell.config).partition(":")
    values = runpy.run_path(file)["get_config"](*([argument] if argument else []))
    values.update_from_flattened_dict(cell.settings)
    task = tasks.create(values, folder)
    if cell.kind == "words":
        return linear_models.on_words(task)
    encoder = load(cell.settings["init_from"])
    return linear_models.on_features(task, encoder, output / "features" / f"{cell.task}_{cell.encoder}.npz")


def results(cells: list[Cell], output: Path) -> list[sheet_page.Result]:
    """What is known of each experiment that is done."""
    found = []
    for cell in cells:
        path = cell.folder(output) / "cell.json"
        if path.exists():
            known = json.loads(path.read_text())
            found.append(
                sheet_page.Result(
                    cell.task, cell.encoder, cell.way, cell.seed, cell.score, known["scores"], known["seconds"]
                )
            )
    return found


if __name__ == "__main__":
    define_flags()
    cli.run(main)
