"""Running the commands as a user does, in real processes, and reading what a run leaves in its folder."""

import atexit
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 240.0  # seconds; nothing here should take a tenth of it on a quiet machine
# Of the processes that test. Compiling is most of the time of the tests: level 0 halves it, and fusions as XLA emitted them
# before its fusion emitters halve it again. jaxlib 0.11 has these emitters alone, and an option that it does not know ends
# every process.
XLA_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
RATES = {"tokens_per_second", "data_wait_seconds", "model_flops_per_second", "flops_utilization"}  # by the clock


def config_flag(config: ConfigDict, folder: Path) -> str:
    """--config=FILE for a config made in Python; `folder` is made to hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    from bert_jax.run_folder import folder as run_folder  # not above: it imports jax (see conftest.py)

    run_folder.write_config(folder, json.loads(config.to_json()))
    return f"--config={run_folder.__file__}:{folder}"


@cache
def shared_folder() -> str:
    """Where processes keep compiled programs, so that only the first one makes them."""
    if shared := os.environ.get("BERT_JAX_TESTS_CACHE"):
        return shared
    folder = tempfile.mkdtemp(prefix="bert_jax_tests_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(devices: int) -> dict[str, str]:
    """The environment of a process with so many virtual devices, instead of those of the process that runs the tests."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": f"{shared_folder()}/compiled",
        "PYTHONPATH": str(ROOT),
        "VENV": sys.prefix,
    }


def command(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"bert_jax.{name}", *flags]


def start(arguments: list[str], devices: int = 1, folder: Path = ROOT) -> subprocess.Popen[str]:
    """Starts a process in a working directory; both outputs go to pipes."""
    return subprocess.Popen(
        arguments,
        env=environment(devices),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Waits for the end of a started process; one that hangs is killed."""
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(f"{process.args} did not end in {TIMEOUT} s; its output: {stdout}{stderr}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(
    arguments: list[str], devices: int = 1, code: int | None = 0, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs a process to its end and asserts its exit code, if any is given.

    Programs of Python are forks of a process that has imported jax.
    """
    executable, program, *_ = map(str, arguments)
    is_python = executable == sys.executable and (program == "-m" or program.endswith(".py"))
    if is_python and environment(devices).items() >= read_at_import().items():
        done = run_fork(arguments, devices, folder)
    else:
        done = finish(start(arguments, devices, folder))
    assert code is None or done.returncode == code, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done


@cache
def read_at_import() -> dict[str, str]:
    """The variables that packages read when they are imported, as the preloaded process has them."""
    return {name: value for name, value in environment(1).items() if name.startswith(("JAX_", "PYTHON"))}


@cache
def preloaded() -> subprocess.Popen[str]:
    """A process that has imported the large packages; it ends with this one."""
    read_at_import()
    arguments = [sys.executable, str(ROOT / "tests" / "preloaded.py")]
    return subprocess.Popen(
        arguments, env=environment(1), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def run_fork(arguments: list[str], devices: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program of Python to its end in a fork of `preloaded()`; one that hangs is killed."""
    process = preloaded()
    assert process.stdin and process.stdout
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        request = {
            "arguments": list(map(str, arguments[1:])),
            "folder": str(folder),
            "environment": environment(devices),
        }
        print(json.dumps(request | {"stdout": stdout.name, "stderr": stderr.name}), file=process.stdin)
        pid = int(process.stdout.readline())
        ends = threading.Timer(TIMEOUT, os.kill, (pid, signal.SIGKILL))
        ends.start()
        code = int(process.stdout.readline())
        ends.cancel()
        return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())


def signal_at(process: subprocess.Popen[str], workdir: Path, step: int, number: signal.Signals, pid: int = 0) -> None:
    """Sends a signal (to `pid` instead of the process, where given) once metrics.jsonl tells of `step`."""
    wait_until(lambda: any(row["step"] >= step for row in rows(workdir)), process)
    os.kill(pid or process.pid, number)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Waits for a condition that a running process brings about."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended early: {finish(process)}")
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def rows(workdir: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl that are whole, without the rates."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    parsed = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name not in RATES} for row in parsed]


def losses(workdir: Path) -> dict[int, float]:
    """Training loss by step."""
    return {int(row["step"]): row["loss"] for row in rows(workdir) if "loss" in row}


def checkpoints(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def assert_one_line(stderr: str, *parts: str) -> None:
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    for part in parts:
        assert part in stderr
