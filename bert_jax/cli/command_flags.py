"""Flags of the commands that work on one run: --config=FILE[:ARG], --config.section.field=value, --workdir, --distributed."""

import argparse
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from bert_jax.cli.main import check_encoding, fail, flag_error, loaded_config
from bert_jax.errors import UserError, listed
from bert_jax.parallel import hosts
from bert_jax.run_folder import folder

WORKDIR = flags.DEFINE_string("workdir", None, "The run folder.")
DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "Join several processes: 'auto' on TPU pods, Slurm, Kubernetes and MPI, or 'HOST:PORT,COUNT,NUMBER'.",
)


def _config_of_workdir() -> str | None:
    """Returns the config file of the run in --workdir, the default of --config."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # absl parses only when all flags are defined
    parser.add_argument("--workdir", "-workdir", nargs="?")
    workdir = parser.parse_known_args()[0].workdir
    return f"{folder.__file__}:{workdir}" if workdir and folder.exists(Path(workdir)) else None


try:
    check_encoding(sys.argv)
    CONFIG = config_flags.DEFINE_config_file(
        "config", _config_of_workdir(), "Config file; without one, that of the run in --workdir.", lock_config=True
    )
except Exception as error:  # the config of the run is damaged, or lacks an option
    fail(flag_error(sys.argv, error))


def start_job() -> tuple[Any, Path]:
    """Connects the processes of a job; returns config and run folder. Raises UserError if one is missing or damaged."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing; set it to the run folder")
    if Path(WORKDIR.value).exists() and not Path(WORKDIR.value).is_dir():
        raise UserError(f"--workdir={WORKDIR.value}: is a file; use a folder")
    values = config_from_flags()
    hosts.start(DISTRIBUTED.value)
    return values, Path(WORKDIR.value)


def config_from_flags() -> Any:
    """Returns the config of --config or of the run in --workdir. Raises UserError if it is missing or fails."""
    if CONFIG.value is None:
        runs = sorted(str(path.parent) for path in Path(str(WORKDIR.value)).glob(f"*/{folder.CONFIG}"))
        problem = "holds no run; use a run folder, or start a run with --config=FILE of configs/"
        if runs:
            problem = f"holds several runs; choose one of {listed(runs)}"
        raise UserError(f"--workdir={WORKDIR.value}: {problem}")
    return loaded_config()
