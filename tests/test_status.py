"""The command `status`: what it says of runs that train, stop, die and hang."""

import io

import pytest
from rich.console import Console

from bert_jax import lock, status
from bert_jax.run_folder.goodput import Interval, Start
from bert_jax.train.ledger import TIMES
from tests.running import assert_one_line, command, config_flag, run

NOW = 1_000_000.0


def said(of: status.Status, now: float = NOW) -> str:
    file = io.StringIO()
    Console(width=120, file=file).print(status.shown(of, now))
    return file.getvalue()


def make(**changes) -> status.Status:
    """A run after 90 of 200 steps of a second each, with a line every 10 steps."""
    intervals = [Interval(step, NOW - 100.0 + step, {"training": 10.0}) for step in range(10, 91, 10)]
    rates = {"tokens_per_second": 500.0, "data_wait_seconds": 0.002}
    rows = [{"step": step, "loss": 9.0 - step / 20} | rates for step in (10, 90)] + [{"step": 80, "eval/loss": 5.5}]
    fields = {"name": "runs/x", "task": "mlm", "num_steps": 200, "holder": "", "rows": rows}
    fields |= {"checkpoints": {40: NOW - 200.0, 80: NOW - 3725.0}, "starts": [Start(NOW - 100.0, 0, intervals)]}
    return status.Status(**fields | changes)


def test_a_run_that_trains():
    text = said(make(holder="process 7 on here"))
    for part in (
        "mlm · running, process 7 on here",
        "90 of 200",
        "45.0%, 1 min 50 s left, until ",
        "8.500 █▁ 4.500",
        "loss 5.5000, at step 80",
        "500 tokens/s, 1 s a step, 2.0 ms of it waiting for data",
        "step 80, 1 h 2 min ago; 2 kept",
        "1 start, the first 1 min 40 s ago",
        "training 100.0%",
    ):
        assert part in text, text


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, "ended after step 90; the same command resumes it at step 80"),
        ({"checkpoints": {90: NOW}}, "stopped at step 90; the same command resumes it"),
        ({"checkpoints": {90: NOW}, "num_steps": 90}, "complete"),
        ({"checkpoints": {}}, "ended without a checkpoint; the same command starts it again"),
        ({"checkpoints": {}, "starts": [], "rows": [], "holder": "x"}, "running, x"),
    ],
)
def test_states(changes, part):
    name, first, *_ = said(make(**changes)).splitlines()
    assert name.strip() == "runs/x" and first.removeprefix("run").strip() == f"mlm · {part}"


def test_a_run_that_hangs():
    running = make(holder="process 7")
    assert "hang" not in said(running, NOW + 45.0)
    assert "running, process 7; nothing new for 2 min 10 s: it may hang" in said(running, NOW + 120.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (90061, "1 d 1 h")]
)
def test_durations(seconds, text):
    assert status.duration(seconds) == text


def test_curves():
    assert status.sparkline([1.0]) == "▁" and status.sparkline([3.0, 1.0, 2.0]) in ("█▁▄", "█▁▅")
    assert len(status.sparkline([float(value) for value in range(1000)])) == 40


def test_who_holds_a_lock(tmp_path):
    assert lock.holder(tmp_path) == ""
    with lock.locked(tmp_path, "wait"):
        assert lock.holder(tmp_path).startswith("process ")
    assert lock.holder(tmp_path) == ""
    (tmp_path / lock.LOCK).write_text("process 1 on here")  # of one that was killed
    assert lock.holder(tmp_path) == ""


def test_the_command(tiny_config, tmp_path):
    workdir = tmp_path / "run"
    run(command("pretrain", config_flag(tiny_config(), tmp_path / "config"), f"--workdir={workdir}"))
    for watch in ("0", "1"):  # what is watched ends with the run
        done = run(command("status", f"--workdir={workdir}", f"--watch={watch}"))
        for part in ("mlm + nsp · complete", "4 of 4", "100.0%", "held out", "step 4", "1 start", "compiling"):
            assert part in done.stdout, done.stdout
    assert_one_line(run(command("status", f"--workdir={tmp_path}"), code=2).stderr, "not a run folder")
    assert_one_line(run(command("status"), code=2).stderr, "--workdir is missing")
    (workdir / TIMES).write_text("{}\n")
    assert_one_line(run(command("status", f"--workdir={workdir}"), code=2).stderr, "times.jsonl: damaged")
    (workdir / TIMES).unlink()  # as of an older version
    assert "complete" in run(command("status", f"--workdir={workdir}")).stdout
