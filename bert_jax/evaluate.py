"""Evaluates checkpoints of a run on held-out data; prints a table and writes evaluation.json to the folder.

python -m bert_jax.evaluate --workdir=runs/x [--step=N|all]

Results on other data, e.g. with `--config.data.validation=test.jsonl`, are written to WORKDIR/evaluations/test, and the
predictions of a checkpoint chosen with --step to evaluations/step_N.

`--tune` chooses the threshold of "no answer" or, with `--config.calibrated=True`, the temperature on this data and keeps it for
predict. This is for runs that have none, e.g. imported ones.
"""

import logging
import math

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bert_jax.cli import command_flags
from bert_jax.cli.main import run_command
from bert_jax.errors import UserError, plain
from bert_jax.parallel import hosts
from bert_jax.run_folder import folder as run_folder
from bert_jax.train.writers.base import Row
from bert_jax.trained import run_evaluation

logger = logging.getLogger(__name__)
STEP = flags.DEFINE_string(
    "step", "", "Checkpoint: a step or 'all'; by default the best of a fine-tuned run, the latest of others."
)
TUNE = flags.DEFINE_bool("tune", False, "Choose the threshold or temperature for predict, and keep it in the run.")

flags.adopt_module_key_flags(command_flags)  # for --help


def main() -> None:
    values, workdir = command_flags.start_job()
    if STEP.value not in ("", "all") and not STEP.value.isdigit():
        raise UserError(f"--step={STEP.value}: give a number or 'all'")
    if TUNE.value and STEP.value:
        raise UserError("--tune: is for the checkpoint that predict uses; leave --step out")
    steps = None if STEP.value == "all" else [int(STEP.value)] if STEP.value else []
    output = run_folder.results_folder(workdir, values.to_dict())
    results = run_evaluation(values, workdir, steps, output, TUNE.value)
    results = {step: with_perplexity(row) for step, row in results.items()}
    if hosts.is_first():
        run_folder.add_evaluations(output, results)
        show(results)
        logger.info("written to %s", output / run_folder.EVALUATION)


def with_perplexity(row: Row) -> Row:
    """Returns the row with the perplexity, exp(loss), of masked language modelling, if it was evaluated."""
    return row | ({"mlm/perplexity": math.exp(min(row["mlm/loss"], 700.0))} if "mlm/loss" in row else {})


def show(results: dict[int, Row]) -> None:
    """Prints a table with a row for each metric and a column for each step."""
    table = Table("held-out metric", *[f"step {step}" for step in results])
    for name in next(iter(results.values())):
        table.add_row(Text(plain(name)), *[f"{row[name]:.4f}" for row in results.values()])
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
