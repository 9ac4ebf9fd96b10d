"""Runs a command of this repository in a separate process, with its output in a file."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_jax.errors import UserError
from bert_jax.train.loop import EXIT_STOPPED
from tools.lib.run_files import tail

ROOT = Path(__file__).resolve().parents[2]


def run_logged(command: Sequence[str], log_path: Path) -> None:
    """Runs a command line from the root of the repository, and appends its output to a file.

    SIGTERM is passed on, so that a run saves its state; then this process ends with EXIT_STOPPED, too.

    Raises:
      UserError: the command fails; the message has the last line of its output.
    """
    with log_path.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
        signal.signal(signal.SIGTERM, before)
    if code in (EXIT_STOPPED, -signal.SIGTERM):
        sys.exit(EXIT_STOPPED)
    if code:
        lines = [line for line in tail(log_path) if line.strip()] or [b"empty"]
        raise UserError(f"exit code {code}; {log_path}: {lines[-1].decode(errors='replace')}")
