"""The flags that the four commands share: --config=FILE[:ARG], --config.section.field=value, --workdir, --distributed."""

import argparse
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from bert_jax.cli import main as cli
from bert_jax.errors import UserError, listed
from bert_jax.parallel import hosts
from bert_jax.run_folder import folder as run_folder

WORKDIR = flags.DEFINE_string("workdir", None, "The run folder.")
DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "Join several processes: 'auto' on TPU pods, Slurm, Kubernetes and MPI, or 'HOST:PORT,COUNT,NUMBER'.",
)


def _config_of_workdir() -> str | None:
    """The config of the run in --workdir, for when there is no --config: a folder alone is enough for any command."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # absl parses only when all flags are defined
    finder.add_argument("--workdir", "-workdir", nargs="?")
    workdir = finder.parse_known_args()[0].workdir
    if workdir and run_folder.exists(Path(workdir)):
        return f"{run_folder.__file__}:{workdir}"
    return None


try:
    cli.check_encoding(sys.argv)
    CONFIG = config_flags.DEFINE_config_file(
        "config", _config_of_workdir(), "Config file; without one, that of the run in --workdir.", lock_config=True
    )
except Exception as mistake:  # that run's config is damaged, or has no such options
    cli.fail(cli.flag_mistake(sys.argv, mistake))


def start() -> tuple[Any, Path]:
    """Joins the processes of a job; returns the config and the run folder.

    Raises:
      UserError: no folder, no config, or a config file that is missing or fails.
    """
    if not WORKDIR.value:
        raise UserError("--workdir is missing; name the folder of the run")
    if Path(WORKDIR.value).exists() and not Path(WORKDIR.value).is_dir():
        raise UserError(f"--workdir={WORKDIR.value}: is a file; name a folder")
    values = given_config()
    hosts.start(DISTRIBUTED.value)
    return values, Path(WORKDIR.value)


def given_config() -> Any:
    """The config of --config, or that of the run in --workdir.

    Raises:
      UserError: neither is there, or the config file is missing or fails.
    """
    if CONFIG.value is None:
        runs = sorted(path.parent for path in Path(str(WORKDIR.value)).glob(f"*/{run_folder.CONFIG}"))
        if runs:
            raise UserError(
                f"--workdir={WORKDIR.value}: holds several runs; name one of {listed(list(map(str, runs)))}"
            )
        raise UserError(
            f"--workdir={WORKDIR.value}: holds no run; name the folder of one, or start one with --config=FILE of configs/"
        )
    try:
        if "task" in CONFIG.value.keys():  # noqa: SIM118  a file that failed to load raises its error at the first look
            return CONFIG.value
    except (OSError, AttributeError):
        pass
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    what = "not a bert_jax config" if Path(file).is_file() else "no such config file"
    raise UserError(f"{file}: {what}; name a file of configs/")
