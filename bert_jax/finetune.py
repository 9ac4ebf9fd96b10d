"""Fine-tunes a pretrained encoder on a task, with one seed or several, or on all tasks of GLUE.

python -m bert_jax.finetune --config=configs/finetune/text.py --workdir=runs/y --config.init_from=runs/x \\
    --config.data.train=train.jsonl --config.data.validation=dev.jsonl

With `--config.seeds=5` each seed is a run of its own, in WORKDIR/seed_0 and so on, and WORKDIR/scores.json holds the mean, the
standard deviation and the median of each score. With configs/finetune/glue.py:all each task has its folder in WORKDIR, and
WORKDIR/scores.json holds the scores of all. Started again, it goes on where it was.

Exit codes: 0 when the run is complete, 75 when it was told to stop (SIGTERM, or Ctrl-C once) and saved, 2 for bad input,
130 when it was interrupted before it trained.
"""

import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bert_jax.cli import command_flags
from bert_jax.cli.main import run_command
from bert_jax.data.datasets import glue
from bert_jax.errors import UserError, plain
from bert_jax.files import write_json
from bert_jax.parallel import hosts
from bert_jax.run import train_command
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.tasks.finetuning.options import FineTuningConfig
from bert_jax.train.writers.base import Row

logger = logging.getLogger("bert_jax.finetune")  # its __name__ is __main__
Spread = dict[str, dict[str, Any]]  # of each score
SCORES = "scores.json"
FROM_MNLI = ("RTE", "MRPC", "STS-B")  # Liu et al. 2019, section 5.1

flags.adopt_module_key_flags(command_flags)  # for --help


def main() -> None:
    values, workdir = command_flags.start_job()
    if values.get("task") == "glue" and values.data.name == "all":
        finetune_glue(values.to_dict(), workdir)
    else:
        finetune(values.to_dict(), workdir)


def finetune(values: dict[str, Any], workdir: Path) -> Spread:
    """One run, or as many as `seeds` says; the spread of their scores."""
    num_seeds = values.get("seeds", FineTuningConfig.seeds)  # a config of pretraining has none
    if num_seeds == 1:
        train_command(values, workdir)
        return spread([default_evaluation(workdir)[1]])
    if num_seeds < 1:
        raise UserError(f"seeds={num_seeds} must be at least 1")
    if run_folder.exists(workdir):
        raise UserError(f"{workdir}: holds a single run; name another folder for {num_seeds} seeds")
    first = values["train"]["seed"]
    folders = [workdir / f"seed_{seed}" for seed in range(first, first + num_seeds)]
    for number, folder in enumerate(folders):
        of_seed = values | {"seeds": 1, "train": values["train"] | {"seed": first + number}}
        start = Path(values["init_from"]) / folder.name
        if values["init_from"] and start.is_dir():  # it has seeds of its own
            of_seed["init_from"] = str(start)
        train_command(of_seed, folder)
    scores = spread([default_evaluation(folder)[1] for folder in folders])
    if hosts.is_first():
        write_json(workdir / SCORES, scores)
        print(f"{workdir}: {num_seeds} seeds")
        show({"": scores})
    return scores


def finetune_glue(values: dict[str, Any], workdir: Path) -> None:
    """Every task of GLUE that is there; those that may start from another one after it."""
    directory = values["data"]["dir"]
    there = glue.available(directory)
    if not there:
        raise UserError(
            f"data.dir={directory}: holds none of the folders {', '.join(glue.TASKS)}; name the one that does"
        )
    if values["starts_from_mnli"] and "MNLI" not in there:
        raise UserError(f"starts_from_mnli: {directory} does not hold MNLI; add it, or leave the option out")
    later = FROM_MNLI if values["starts_from_mnli"] else ()
    scores = {}
    for name in sorted(there, key=lambda name: name in later):
        start = str(workdir / "MNLI") if name in later else values["init_from"]
        scores[name] = finetune(of_glue_task(name, values, start), workdir / name)
    if hosts.is_first():
        write_json(workdir / SCORES, scores)
        print(f"{workdir}: {len(scores)} tasks")
        show(scores)
    if missing := [name for name in glue.TASKS if name not in there]:
        logger.info("not in %s, so left out: %s", directory, ", ".join(missing))


def of_glue_task(name: str, values: dict[str, Any], init_from: str) -> dict[str, Any]:
    """The config of a single task out of that of glue.py:all; what nobody set of it is as `of_tasks` there has it."""
    of_task = ConfigDict({option: value for option, value in values.items() if option != "of_tasks"})
    recipe = {
        option: value for option, value in values["of_tasks"][name] if run_folder.flattened(values)[option] is None
    }
    of_task.update_from_flattened_dict(recipe)
    of_task.update({"data": {"name": name}, "init_from": init_from, "starts_from_mnli": False})
    of_task.calibrated = values["calibrated"] and bool(glue.TASKS[name].labels)
    return of_task.to_dict()


def spread(rows: Sequence[Row]) -> Spread:
    """{score: {'mean', 'std' (of a sample), 'median', 'seeds': the values}}, of the scores that all seeds have."""
    return {
        name: {
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            "median": statistics.median(values),
            "seeds": values,
        }
        for name in rows[0]
        if all(name in row for row in rows)  # a seed that was run with another option may lack one
        for values in ([row[name] for row in rows],)
    }


def show(scores: dict[str, Spread]) -> None:
    """A line for each score of each task."""
    table = Table("held-out score", "mean", "std", "median")
    for task, of_task in scores.items():
        for name, values in of_task.items():
            columns = (f"{values[column]:.4f}" for column in ("mean", "std", "median"))
            table.add_row(Text(plain(f"{task} {name}")), *columns)
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
