"""Runs the commands of the quickstart, and reads and copies run folders."""

import contextlib
import multiprocessing
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import msgspec
from rich.console import Console

from bert_jax.errors import UserError
from bert_jax.files import decode_json
from bert_jax.run_folder.folder import CONFIG, TOKENIZER
from bert_jax.train.loop import EXIT_STOPPED
from bert_jax.train.writers.jsonl import METRICS
from tools.lib.run_files import Count, literal, metric_rows, tail

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors only, without XLA's warnings about partitioning
}
# Four virtual devices on the CPU for a 2x2 mesh. NPROC is the number of XLA's threads: every waiting collective blocks one, and
# with the default of one per device they can deadlock.
FOUR_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "NPROC": "16"}
# Shared imports of the commands that start neither threads nor devices. Not `bert_jax.cli.command_flags`, which depends on
# the command line.
PRELOADED = [
    *("jax", "flax.nnx", "optax", "orbax.checkpoint", "scipy.special", "tensorboard.summary.writer.record_writer"),
    *("sklearn.linear_model", "sklearn.feature_extraction.text", "seqeval.metrics"),
    *("bert_jax.run", "bert_jax.predictor", "bert_jax.data.corpus.prepare", "bert_jax.data.tokenizer.training"),
]
_POLL_SECONDS = 0.02


class Commands:
    """Runs commands of this repository, each in a separate process, and prints them.

    The processes are forked from one with the libraries imported, so only the first waits for imports.
    """

    def __init__(self, console: Console):
        self._console = console
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        os.environ.update(ENVIRONMENT | {"PYTHONPATH": path})  # for all processes

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Runs `python ARGUMENTS` with additional environment variables. Raises UserError if it fails."""
        with self._process(arguments, environment or {}) as process:
            process.join()
        _check(process.exitcode, arguments)

    def run_until(self, step: int, workdir: Path, *arguments: str) -> int:
        """Runs a command until the run in `workdir` has completed `step` steps (SIGTERM); returns the exit code, 75 or 0."""
        first = last_step(workdir)  # of a resumed run
        is_told = False
        with self._process(arguments, {}) as process:
            while process.exitcode is None:
                if not is_told and last_step(workdir) >= max(step, first + 1):
                    process.terminate()
                    is_told = True
                process.join(_POLL_SECONDS)
        if process.exitcode != EXIT_STOPPED:
            _check(process.exitcode, arguments)
        return process.exitcode

    @contextlib.contextmanager
    def _process(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[ForkServerProcess]:
        """Prints and starts a command; stops it if it is still running at the end, e.g. if the quickstart is interrupted."""
        shown = [*(f"{name}={value}" for name, value in environment.items()), f"python {shlex.join(arguments)}"]
        self._console.print(literal(f"$ {' '.join(shown)}"), style="green", soft_wrap=True)
        process = self._context.Process(target=run_command, args=(arguments, dict(environment)))
        process.start()
        try:
            yield process
        finally:
            if process.exitcode is None:
                process.terminate()
                process.join()


def run_command(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Executes `python ARGUMENTS` in this process; they are `-m MODULE FLAGS` or `FILE FLAGS`."""
    if "XLA_FLAGS" in environment:  # after the user's flags: the last one wins
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {environment['XLA_FLAGS']}"
    os.environ.update(environment)
    is_module = arguments[0] == "-m"
    sys.argv = [*arguments[is_module:]]
    if is_module:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


def _check(code: int | None, arguments: tuple[str, ...]) -> None:
    if code:
        raise UserError(f"python {shlex.join(arguments)}: exit code {code}; see above, fix it, and start again")


class _Step(msgspec.Struct):
    step: Count


def last_step(workdir: Path) -> int:
    """Returns the last step in metrics.jsonl without reading the whole file; 0 if there is none."""
    path = workdir / METRICS
    lines = tail(path) if path.exists() else []
    complete = [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    try:
        return decode_json(complete[-1], _Step).step if complete else 0
    except ValueError as error:
        raise UserError(f"{path}: the last line is damaged ({error}); remove it") from None


def losses(workdir: Path) -> dict[int, float]:
    """Returns the training loss by step in full precision, without values that are not finite."""
    return {step: row["loss"] for step, row in metric_rows(workdir) if "loss" in row}


def same_losses(workdir: Path, replay: Path) -> tuple[int, int]:
    """Returns the number of steps in both runs, and of those whose losses are identical to the last bit."""
    first, second = losses(workdir), losses(replay)
    common = first.keys() & second.keys()
    return len(common), sum(first[step] == second[step] for step in common)


def copy_latest_checkpoint(workdir: Path, target: Path, before: int) -> int:
    """Creates a run folder with only the latest checkpoint before a step; returns its step. Raises UserError if none is."""
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    step = max((step for step in steps if step < before), default=None)
    if step is None:
        raise UserError(f"{workdir}: no checkpoint before step {before}; use a smaller checkpoint.every")
    shutil.rmtree(target, ignore_errors=True)
    for folder in (f"checkpoints/{step}", TOKENIZER):
        shutil.copytree(workdir / folder, target / folder)
    shutil.copy(workdir / CONFIG, target / CONFIG)
    return step
