"""Pretrains an encoder; the same command resumes an interrupted run.

python -m bert_jax.pretrain --config=configs/bert_base.py --workdir=runs/x --config.data.corpus=corpora/wikipedia

Exit codes: 0 when the run is complete, 75 when it was stopped (SIGTERM, or Ctrl-C once) and saved, 2 for invalid input, 130
when it was interrupted before the training.
"""

from absl import flags

from bert_jax.cli import command_flags
from bert_jax.cli.main import run_command
from bert_jax.run import train_command
from bert_jax.tasks.common.sources import prepare_sources

flags.adopt_module_key_flags(command_flags)  # for --help


def main() -> None:
    values, workdir = command_flags.start_job()
    prepare_sources(values, workdir)
    train_command(values, workdir)


if __name__ == "__main__":
    run_command(main)
