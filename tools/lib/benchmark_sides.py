"""Sides of a measurement that take turns: functions that take one turn and return what they measured, mostly seconds."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.files import decode_json

Side = Callable[[], float]


def take_turns(sides: Mapping[str, Side], turns: int) -> dict[str, list[float]]:
    """Returns what each side measured, one value a turn. Every side is warm when it comes here."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            measured[name].append(side())
    return measured


def rival(
    options: dict[str, Any], script: str, packages: Sequence[str], python: str, environment: Sequence[str]
) -> tuple[str, Side]:
    """Returns a title, and turns of a rival in a child process.

    Args:
      options: what the script reads from its first line of input.
      script: file of this folder.
      packages: that it imports.
      python: the Python that has them.
      environment: NAME=VALUE for the child alone.

    Raises:
      UserError: that Python has not these packages, or the script does not answer.
    """
    child_environment = os.environ | dict(setting.split("=", 1) for setting in environment)
    imports = [python, "-c", f"import {', '.join(packages)}"]
    if subprocess.run(imports, capture_output=True, env=child_environment).returncode:
        raise UserError(f"{python} cannot import {' and '.join(packages)}; name one that can: --rival_python")
    command = [python, str(Path(__file__).parent / script)]
    child = subprocess.Popen(command, env=child_environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    assert child.stdin and child.stdout
    questions, answers = child.stdin, child.stdout

    questions.write(json.dumps(options) + "\n")
    questions.flush()

    def answer() -> str:
        line = answers.readline()
        if not line:
            raise UserError(f"the rival ended with exit code {child.wait()}; its error is above")
        return line

    def turn() -> float:
        questions.write("\n")
        questions.flush()
        return float(answer())

    try:
        return decode_json(answer(), dict[str, str])["about"], turn
    except (ValueError, KeyError):
        raise UserError(f"{python}: printed something else first; name another --rival_python") from None
