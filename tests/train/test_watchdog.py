"""A process that hangs ends, and says where; one that is slow, evaluates or was stopped does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_jax.train.watchdog import EXIT_HUNG, STACKS
from tests.running import ROOT, assert_one_line

SCRIPT = """
import sys, time
from pathlib import Path
from bert_jax.train.watchdog import Watchdog

folder, factor, watches, what = sys.argv[1:]
watchdog = Watchdog(Path(folder), 3, float(factor), 2.0, lambda: watches == "yes")

def waits_for_a_process_that_is_gone():
    time.sleep(8.0)

with watchdog.watching():
    for step in range(3 if what == "hangs" else 5):
        time.sleep(1.2)
        watchdog.beat(step, 1.0)
    print("steps", flush=True)
    if what == "hangs":
        waits_for_a_process_that_is_gone()
print("over")
"""


def start(folder: Path, factor: float = 2.0, watches: str = "yes", what: str = "hangs") -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SCRIPT, str(folder), str(factor), watches, what]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_that_hangs_says_where(tmp_path):
    stdout, stderr = (process := start(tmp_path)).communicate(timeout=60)
    assert process.returncode == EXIT_HUNG and "over" not in stdout
    (path,) = (tmp_path / STACKS).iterdir()
    assert_one_line(stderr, "process 3: a step has taken", "usually 1", str(path), "start again")
    assert path.name.endswith("_process_3.txt") and "waits_for_a_process_that_is_gone" in path.read_text()


@pytest.mark.parametrize(
    "changes",
    [{"factor": 0.0}, {"factor": 20.0}, {"watches": "no"}, {"what": "slow"}],
    ids=lambda changes: str(changes),
)
def test_others_go_on(changes, tmp_path):
    stdout, stderr = (process := start(tmp_path, **changes)).communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "") and "over" in stdout
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_stopped_has_not_waited(tmp_path):
    process = start(tmp_path, what="slow")
    time.sleep(3.0)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(8.0)
    os.kill(process.pid, signal.SIGCONT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "") and "over" in stdout
