"""Fine-tunes a pretrained encoder on a task, with one or several seeds, or on all tasks of GLUE.

python -m bert_jax.finetune --config=configs/finetune/text.py --workdir=runs/y --config.init_from=runs/x \\
    --config.data.train=train.jsonl --config.data.validation=dev.jsonl

With `--config.seeds=5` each seed is a run in WORKDIR/seed_0 and so on, and WORKDIR/scores.json has mean, standard deviation and
median of each score. With configs/finetune/glue.py:all each task has a folder in WORKDIR, and WORKDIR/scores.json has the
scores of all. The same command resumes an interrupted run.

Exit codes: 0 when the run is complete, 75 when it was stopped (SIGTERM, or Ctrl-C once) and saved, 2 for invalid input, 130
when it was interrupted before the training.
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

logger = logging.getLogger("bert_jax.finetune")  # __name__ is __main__
Spread = dict[str, dict[str, Any]]  # {score: {statistic: value}}
SCORES_FILE = "scores.json"
FROM_MNLI = ("RTE", "MRPC", "STS-B")  # Liu et al. 2019, section 5.1

flags.adopt_module_key_flags(command_flags)  # for --help


def main() -> None:
    values, workdir = command_flags.start_job()
    if values.get("task") == "glue" and values.data.name == "all":
        finetune_glue(values.to_dict(), workdir)
    else:
        finetune(values.to_dict(), workdir)


def finetune(values: dict[str, Any], workdir: Path) -> Spread:
    """Trains a run for each seed, and returns the spread of their scores."""
    num_seeds = values.get("seeds", FineTuningConfig.seeds)  # not in the config of a pretraining
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
        run_values = values | {"seeds": 1, "train": values["train"] | {"seed": first + number}}
        origin = Path(values["init_from"]) / folder.name
        if values["init_from"] and origin.is_dir():  # a fine-tuning with several seeds
            run_values["init_from"] = str(origin)
        train_command(run_values, folder)
    scores = spread([default_evaluation(folder)[1] for folder in folders])
    if hosts.is_first():
        write_json(workdir / SCORES_FILE, scores)
        print(f"{workdir}: {num_seeds} seeds")
        show({"": scores})
    return scores


def finetune_glue(values: dict[str, Any], workdir: Path) -> None:
    """Fine-tunes on each available task of GLUE; first on those that others start from."""
    directory = values["data"]["dir"]
    available = glue.available(directory)
    if not available:
        raise UserError(f"data.dir={directory}: has none of the folders {', '.join(glue.TASKS)}; use the one that has")
    if values["starts_from_mnli"] and "MNLI" not in available:
        raise UserError(f"starts_from_mnli: {directory} does not have MNLI; add it, or leave the option out")
    later = FROM_MNLI if values["starts_from_mnli"] else ()
    scores = {}
    for name in sorted(available, key=lambda name: name in later):
        init_from = str(workdir / "MNLI") if name in later else values["init_from"]
        scores[name] = finetune(glue_task_config(name, values, init_from), workdir / name)
    if hosts.is_first():
        write_json(workdir / SCORES_FILE, scores)
        print(f"{workdir}: {len(scores)} tasks")
        show(scores)
    if missing := [name for name in glue.TASKS if name not in available]:
        logger.info("not in %s, so left out: %s", directory, ", ".join(missing))


def glue_task_config(name: str, values: dict[str, Any], init_from: str) -> dict[str, Any]:
    """Returns the config of a single task from that of glue.py:all, whose `of_tasks` has the defaults of unset options."""
    config = ConfigDict({option: value for option, value in values.items() if option != "of_tasks"})
    options = run_folder.flattened(values)
    recipe = {option: value for option, value in values["of_tasks"][name] if options[option] is None}
    config.update_from_flattened_dict(recipe)
    config.update({"data": {"name": name}, "init_from": init_from, "starts_from_mnli": False})
    config.calibrated = values["calibrated"] and bool(glue.TASKS[name].labels)
    return config.to_dict()


def spread(rows: Sequence[Row]) -> Spread:
    """Returns {score: {'mean', 'std' (of a sample), 'median', 'seeds': the values}} for the scores that all seeds have."""
    scores: Spread = {}
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        if len(values) == len(rows):  # seeds that ran with another option may lack some
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            mean, median = statistics.mean(values), statistics.median(values)
            scores[name] = {"mean": mean, "std": std, "median": median, "seeds": values}
    return scores


def show(scores: dict[str, Spread]) -> None:
    """Prints a table with a row for each score of each task."""
    table = Table("held-out score", "mean", "std", "median")
    for task, task_scores in scores.items():
        for name, values in task_scores.items():
            columns = (f"{values[column]:.4f}" for column in ("mean", "std", "median"))
            table.add_row(Text(plain(f"{task} {name}")), *columns)
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
