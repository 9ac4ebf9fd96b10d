"""Evaluates the checkpoints of a run on held-out data: a table, and evaluation.json in the folder.

python -m bert_jax.evaluate --workdir=runs/x [--step=N|all]

On other data than the run's own, as with `--config.data.validation=test.jsonl`, evaluation.json and the predictions are in a
folder of their own, WORKDIR/evaluations/test.
"""

import json
import logging
import math
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from bert_jax import cli, command, run_folder
from bert_jax.errors import UserError
from bert_jax.parallel import hosts
from bert_jax.run import run_evaluation
from bert_jax.train.metrics import Row

logger = logging.getLogger(__name__)
STEP = flags.DEFINE_string(
    "step", "", "Checkpoint to evaluate: a number, 'all', or by default the newest, of fine-tuned runs the best."
)

flags.adopt_module_key_flags(command)  # for --help


def main() -> None:
    values, workdir = command.start()
    if STEP.value not in ("", "all") and not STEP.value.isdigit():
        raise UserError(f"--step={STEP.value}: give a number or 'all'")
    steps = None if STEP.value == "all" else [int(STEP.value)] if STEP.value else []
    output = run_folder.place_of_results(workdir, values.data.to_dict())
    results = {step: with_perplexity(row) for step, row in run_evaluation(values, workdir, steps, output).items()}
    if hosts.is_first():
        write(output / "evaluation.json", results)
        show(results)
        logger.info("kept in %s", output / "evaluation.json")


def with_perplexity(row: Row) -> Row:
    """The row, and exp(loss) of masked language modelling."""
    return row | ({"mlm/perplexity": math.exp(min(row["mlm/loss"], 700.0))} if "mlm/loss" in row else {})


def write(path: Path, results: dict[int, Row]) -> None:
    """Adds the results to those of other steps in the file."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known |= {str(step): row for step, row in results.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(path, dict(sorted(known.items(), key=lambda item: int(item[0]))))


def show(results: dict[int, Row]) -> None:
    """A line for each metric, a column for each step."""
    table = Table("held-out metric", *[f"step {step}" for step in results])
    for name in next(iter(results.values())):
        table.add_row(name, *[f"{row[name]:.4f}" for row in results.values()])
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
