"""Shows what the model really sees: a batch of a run, token by token, and the same example in two epochs.

With the folder of a run that has a checkpoint, also what its models predict: see lib/predictions.py.

    python tools/inspect_batch.py --workdir=runs/x [--step=0] [--rows=2]
    python tools/inspect_batch.py --config=configs/bert_base.py --config.data.corpus=corpora/mine
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from bert_jax.cli import command_flags
from bert_jax.cli.main import run_command
from bert_jax.tasks import base as tasks
from bert_jax.tasks.common.sources import prepare_sources
from tools.lib.batch_examples import WIDTH, report
from tools.lib.predictions import predictions


def define_flags() -> None:
    flags.DEFINE_integer("step", 0, "the batch of this step, counted from 0", lower_bound=0)
    flags.DEFINE_integer("rows", 2, "examples of the batch to show", lower_bound=1)


def main() -> None:
    values, workdir = command_flags.config_from_flags(), Path(command_flags.WORKDIR.value or "no-run")
    prepare_sources(values, workdir)
    task = tasks.create(values, workdir)
    console = Console(width=WIDTH, highlight=False)
    for part in report(task, flags.FLAGS.step, flags.FLAGS.rows):
        console.print(part)
    if command_flags.WORKDIR.value:
        for part in predictions(values, workdir, flags.FLAGS.step, flags.FLAGS.rows):
            console.print(part)


if __name__ == "__main__":
    define_flags()
    run_command(main)
