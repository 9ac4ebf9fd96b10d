"""Evaluates the checkpoints of a run on held-out data: a table, and evaluation.json in the folder.

python -m bert_jax.evaluate --workdir=runs/x [--step=N|all]

On other data than the run's own, as with `--config.data.validation=test.jsonl`, evaluation.json and the predictions are in a
folder of their own, WORKDIR/evaluations/test. Predictions of a checkpoint that was named are in evaluations/step_N.

With `--tune` the threshold of "no answer" or, with `--config.calibrated=True`, the temperature is chosen by this data, and kept
for predict: of a run that has none yet, e.g. an imported one.
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
from bert_jax.run import run_evaluation
from bert_jax.run_folder import folder as run_folder
from bert_jax.train.writers.base import Row

logger = logging.getLogger(__name__)
STEP = flags.DEFINE_string(
    "step", "", "Checkpoint to evaluate: a number, 'all', or by default the newest, of fine-tuned runs the best."
)

TUNE = flags.DEFINE_bool("tune", False, "Choose what predict needs besides the parameters, and keep it in the run.")

flags.adopt_module_key_flags(command_flags)  # for --help


def main() -> None:
    values, workdir = command_flags.start_job()
    if STEP.value not in ("", "all") and not STEP.value.isdigit():
        raise UserError(f"--step={STEP.value}: give a number or 'all'")
    if TUNE.value and STEP.value:
        raise UserError("--tune: is for the checkpoint that predict takes; leave --step out")
    steps = None if STEP.value == "all" else [int(STEP.value)] if STEP.value else []
    output = run_folder.results_folder(workdir, values.to_dict())
    results = run_evaluation(values, workdir, steps, output, TUNE.value)
    results = {step: with_perplexity(row) for step, row in results.items()}
    if hosts.is_first():
        run_folder.add_evaluations(output, results)
        show(results)
        logger.info("kept in %s", output / run_folder.EVALUATION)


def with_perplexity(row: Row) -> Row:
    """The row, and exp(loss) of masked language modelling."""
    return row | ({"mlm/perplexity": math.exp(min(row["mlm/loss"], 700.0))} if "mlm/loss" in row else {})


def show(results: dict[int, Row]) -> None:
    """A line for each metric, a column for each step."""
    table = Table("held-out metric", *[f"step {step}" for step in results])
    for name in next(iter(results.values())):
        table.add_row(Text(plain(name)), *[f"{row[name]:.4f}" for row in results.values()])
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
