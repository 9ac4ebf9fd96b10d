"""What the quickstart needs to run commands and to look at the folders of runs. It knows nothing of its stages."""

import multiprocessing
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import msgspec
from rich.console import Console

from bert_jax.errors import UserError
from bert_jax.files import decode_json
from bert_jax.run_folder import folder as run_folder
from bert_jax.train.loop import EXIT_STOPPED
from bert_jax.train.writers.jsonl import METRICS
from tools.lib.run_files import Count, literal, metric_rows, tail

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors only: XLA's remarks on how it splits a program help nobody here
}
# Four virtual devices on the processor, whatever the machine has: a 2x2 mesh to look at. NPROC is the number of XLA's
# threads: each waiting collective blocks one, and with one for each device, as is the default, they can block each other.
FOUR_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "NPROC": "16"}
# Imports that the commands share and that start neither threads nor devices. Not `bert_jax.cli.flags`, whose flags depend on
# the command line.
PRELOADED = (
    *("jax", "flax.nnx", "optax", "orbax.checkpoint", "scipy.special", "tensorboard.summary.writer.record_writer"),
    *("sklearn.linear_model", "sklearn.feature_extraction.text", "seqeval.metrics"),
    *(
        "bert_jax.run",
        "bert_jax.predictor",
        "bert_jax.data.corpus.prepare",
        "bert_jax.data.tokenizer.training",
    ),
)
_POLL_SECONDS = 0.02


class Commands:
    """Runs this repository's commands, printed as a user would give them, each in a process of its own.

    The processes are forked from one that has already imported the libraries, so only the first waits for the imports.
    """

    def __init__(self, console: Console):
        self._console = console
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        os.environ.update(ENVIRONMENT | {"PYTHONPATH": path})  # for all processes

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Runs `python ARGUMENTS` to its end, with `environment` added to the environment variables."""
        process = self._start(arguments, environment or {})
        try:
            process.join()
        finally:
            _end(process)
        _check(process.exitcode, arguments)

    def run_until(self, step: int, workdir: Path, *arguments: str) -> int:
        """Like `run`, but stops it (SIGTERM) once it has done `step` steps; returns its exit code, 75 or 0."""
        process = self._start(arguments, {})
        first = last_step(workdir)  # of a run that goes on
        is_told = False
        try:
            while process.exitcode is None:
                if not is_told and last_step(workdir) >= max(step, first + 1):
                    process.terminate()
                    is_told = True
                process.join(_POLL_SECONDS)
        finally:
            _end(process)
        if process.exitcode != EXIT_STOPPED:
            _check(process.exitcode, arguments)
        return process.exitcode

    def _start(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> ForkServerProcess:
        shown = [*(f"{name}={value}" for name, value in environment.items()), f"python {shlex.join(arguments)}"]
        self._console.print(literal(f"$ {' '.join(shown)}"), style="green", soft_wrap=True)
        process = self._context.Process(target=run_command, args=(arguments, dict(environment)))
        process.start()
        return process


def run_command(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Does in this process what `python ARGUMENTS` does: `-m MODULE FLAGS` or `FILE FLAGS`."""
    if "XLA_FLAGS" in environment:  # after the user's: the last one wins
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {environment['XLA_FLAGS']}"
    os.environ.update(environment)
    is_module = arguments[0] == "-m"
    sys.argv = [*arguments[is_module:]]
    if is_module:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


def _check(code: int | None, arguments: tuple[str, ...]) -> None:
    """Raises UserError where a command failed."""
    if code:
        raise UserError(f"python {shlex.join(arguments)}: exit code {code}; see above, fix it, and start again")


def _end(process: ForkServerProcess) -> None:
    """Leaves no process behind when the quickstart itself is interrupted."""
    if process.exitcode is None:
        process.terminate()
        process.join()


# ---------------------------------------------------------------------------------------------------------------------
# Folders of runs
# ---------------------------------------------------------------------------------------------------------------------


class _Step(msgspec.Struct):
    step: Count


def last_step(workdir: Path) -> int:
    """The last step in metrics.jsonl, found without reading the whole file; 0 where there is none."""
    path = workdir / METRICS
    lines = tail(path) if path.exists() else []
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    try:
        return decode_json(whole[-1], _Step).step if whole else 0
    except ValueError as error:
        raise UserError(f"{path}: its last line is damaged ({error}); remove the line") from None


def losses(workdir: Path) -> dict[int, float]:
    """Training loss by step, as written: in full precision. Those that are not finite are left out."""
    return {step: row["loss"] for step, row in metric_rows(workdir) if "loss" in row}


def same_losses(workdir: Path, replay: Path) -> tuple[int, int]:
    """The number of steps that both runs have, and of those whose losses are equal to the last bit."""
    ours, theirs = losses(workdir), losses(replay)
    common = ours.keys() & theirs.keys()
    return len(common), sum(ours[step] == theirs[step] for step in common)


def copy_newest_checkpoint(workdir: Path, target: Path, before: int) -> int:
    """Makes a run folder `target` that holds only the newest checkpoint of a step < `before`; returns the step.

    Raises:
      UserError: there is none.
    """
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    earlier = [step for step in steps if step < before]
    if not earlier:
        raise UserError(f"{workdir}: no checkpoint before step {before}; make checkpoint.every smaller")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(workdir / "checkpoints" / str(max(earlier)), target / "checkpoints" / str(max(earlier)))
    shutil.copytree(workdir / run_folder.TOKENIZER, target / run_folder.TOKENIZER)
    shutil.copy(workdir / run_folder.CONFIG, target / run_folder.CONFIG)
    return max(earlier)
