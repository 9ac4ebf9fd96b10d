"""launch/restart.sh: which exit codes are started again, how often, and what counts as progress."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.running import ROOT, assert_one_line, wait_until

# Counts its starts, and does the next line of `script`: "CODE STEP" ends with a code after a checkpoint of a step.
COMMAND = """#!/usr/bin/env bash
workdir=${1#*=}
echo start >>"$workdir/starts"
read -r code step < <(sed -n "$(wc -l <"$workdir/starts")p" "$workdir/script")
[[ -z $step ]] || mkdir -p "$workdir/checkpoints/$step"
if [[ $code == waits ]]; then
  trap 'exit 75' TERM
  while true; do sleep 0.05; done
fi
exit "$code"
"""


@pytest.fixture
def job(tmp_path):
    """`job(["1", "0 20"], "--most=2")`: a started restart.sh, whose command does these lines one after the other."""
    command = tmp_path / "command"
    command.write_text(COMMAND)
    command.chmod(0o755)

    def start(script: list[str], *flags: str) -> subprocess.Popen[str]:
        (tmp_path / "script").write_text("\n".join(script) + "\n")
        arguments = ["bash", str(ROOT / "launch" / "restart.sh"), *flags, "--", str(command), f"--workdir={tmp_path}"]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def starts(folder: Path) -> int:
    return (folder / "starts").read_text().count("start") if (folder / "starts").exists() else 0


@pytest.mark.parametrize("code", [0, 2, 75, 130, 143])
def test_ends_that_are_none_of_a_failure(job, tmp_path, code):
    process = job([str(code)], "--pause=0")
    assert process.communicate(timeout=60)[1] == "" and process.returncode == code
    assert starts(tmp_path) == 1


def test_it_is_started_until_it_is_complete(job, tmp_path):
    process = job(["137", "1 10", "70 20", "1", "0"], "--pause=0", "--most=2")
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and starts(tmp_path) == 5
    assert stderr.splitlines()[1] == (
        "exit code 1; starting again in 0 s (failures without a newer checkpoint: 0 of 2)"
    )


def test_failures_without_progress_are_limited(job, tmp_path):
    process = job(["1 10", "1", "1", "1 10", "0"], "--pause=0", "--most=3")
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and starts(tmp_path) == 4
    assert stderr.splitlines()[-1] == "error: exit code 1; giving up after 3 failures without a newer checkpoint"


def test_pauses_grow_until_there_is_progress(job, tmp_path):
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    before = time.monotonic()
    process = job(["1", "1", "1 5", "0"], "--pause=1")
    stderr = process.communicate(timeout=60)[1]
    assert [line.split(" in ")[1].split()[0] for line in stderr.splitlines()] == ["1", "2", "1"]
    assert time.monotonic() - before >= 4.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_command(job, tmp_path, number):
    process = job(["1", "waits"], "--pause=0")
    wait_until(lambda: starts(tmp_path) == 2, process)
    time.sleep(0.3)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == 75 and starts(tmp_path) == 2


def test_a_signal_in_a_pause_ends_it(job, tmp_path):
    process = job(["9"], "--pause=100")
    wait_until(lambda: starts(tmp_path) == 1, process)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 9 and starts(tmp_path) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--most=0", "--", "true", "--workdir=x"], "--most=0: give a number from 1 on"),
        (["--pause=soon", "--", "true", "--workdir=x"], "--pause=soon: give a number of seconds"),
        (["--often", "--"], "--often: before -- there are --most=N and --pause=SECONDS"),
        (["--"], "the command is missing; give it after --"),
        (["--", "true"], "the command has no --workdir=FOLDER"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = subprocess.run(["bash", str(ROOT / "launch" / "restart.sh"), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert_one_line(done.stderr, message)
