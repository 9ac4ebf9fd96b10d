"""Sides of a measurement that take turns: functions that take one turn and return what they measured, mostly seconds."""

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bert_jax.errors import UserError
from bert_jax.files import decode_json
from bert_jax.train.step import Training

Side = Callable[[], float]
_FEWEST_TURNS = 3
ROOT = Path(__file__).resolve().parents[2]


def take_turns(sides: Mapping[str, Side], turns: int, seconds: float = math.inf) -> dict[str, list[float]]:
    """Returns what each side measured, one value a turn. Every side is warm when it comes here.

    After `seconds` no further turn begins, but there are at least three (or `turns`).
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    end = time.monotonic() + seconds
    for number in range(turns):
        if number >= _FEWEST_TURNS and time.monotonic() > end:
            break
        for name, side in sides.items():
            measured[name].append(side())
    return measured


def repeated(function: Callable[..., Any], *arguments: Any, calls: int = 1) -> Side:
    """Returns a turn of some calls of a function of arrays, which measures the seconds of one of them; runs one to warm up.

    On accelerators the calls of a turn are queued, so that the dispatch of one hides behind the one before it.
    """

    def turn() -> float:
        start = time.perf_counter()
        jax.block_until_ready([function(*arguments) for _ in range(calls)])
        return (time.perf_counter() - start) / calls

    turn()
    return turn


def steps_in_turns(training: Training, batches: Sequence[Any], steps_per_turn: int) -> Side:
    """Returns a turn of some training steps, which measures the seconds of one of them. It runs once before, to warm up."""
    step, state, upcoming = training.jitted_step, training.make_state(), itertools.cycle(batches)

    def turn() -> float:
        nonlocal state
        start = time.perf_counter()
        for batch in itertools.islice(upcoming, steps_per_turn):
            state, metrics = step(state, {}, batch)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / steps_per_turn

    for _ in range(2):
        turn()
    return turn


def temporary_memory(program: Any) -> int:
    """Returns the bytes that a compiled program allocates in addition to its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def seconds_of_process(arguments: list[str]) -> float:
    """Runs Python. Raises UserError with the last line of its errors if it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    # absl ends --help with 1.
    if done.returncode not in ((0, 1) if "--help" in arguments else (0,)):
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"python {' '.join(arguments)}: ended with exit code {done.returncode}: {last}")
    return seconds


def peak_memory_of_process(arguments: list[str]) -> float:
    """Runs Python; returns the resident memory in MB of the largest process: it, or one that it started and waited for.

    Raises:
      UserError: it fails.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"python {' '.join(arguments)}: ended with exit code {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def rival_environment(settings: Sequence[str]) -> dict[str, str]:
    """Returns the environment of a rival, with NAME=VALUE of `settings`. Raises UserError if one has no '='."""
    if wrong := [setting for setting in settings if "=" not in setting]:
        raise UserError(f"--rival_environment={wrong[0]}: write NAME=VALUE")
    return os.environ | dict(setting.split("=", 1) for setting in settings)


def check_rival(packages: Sequence[str], python: str, environment: Sequence[str]) -> None:
    """Raises UserError if a Python cannot import the packages of a rival."""
    command = [python, "-c", f"import {', '.join(packages)}"]
    try:
        subprocess.run(command, capture_output=True, text=True, env=rival_environment(environment), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        names = " and ".join(packages)
        raise UserError(f"{python} cannot import {names}; name one that can: --rival_python ({reason})") from None


def rival(script: str, options: dict[str, Any], python: str, environment: Sequence[str]) -> tuple[str, Side]:
    """Returns a title, and turns of a rival in a child process.

    Args:
      script: file of this folder.
      options: what it reads from its first line of input.
      python: the Python that has the packages which it imports.
      environment: NAME=VALUE, only for the child.

    Raises:
      UserError: the script ends, or prints something else.
    """
    child_environment = rival_environment(environment)
    command = [python, str(Path(__file__).parent / script)]
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, as long as the child runs
    child = subprocess.Popen(
        command, env=child_environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
    )

    def answer(question: str) -> str:
        assert child.stdin and child.stdout
        child.stdin.write(question + "\n")
        child.stdin.flush()
        if not (line := child.stdout.readline()):
            code = child.wait()
            errors.seek(0)
            text = errors.read().strip() or "no message"
            print(text, file=sys.stderr)
            raise UserError(f"{script} ended with exit code {code}: {text.splitlines()[-1]}")
        return line

    try:
        about = decode_json(answer(json.dumps(options)), dict[str, str])["about"]
    except (ValueError, KeyError):
        raise UserError(f"{python}: printed something else first; name another --rival_python") from None
    return about, lambda: float(answer(""))
