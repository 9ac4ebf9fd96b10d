"""The ledger: every second is of one kind, and lines survive what happens to processes."""

import json
import subprocess
import sys
import time

import pytest

from bert_jax.errors import UserError
from bert_jax.train import ledger as module
from bert_jax.train.ledger import TIMES, Ledger, process_start


@pytest.fixture
def clock(monkeypatch):
    """`clock(3.0)` lets seconds pass, for both clocks; the process began at 1000."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0] - 900.0)
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    monkeypatch.setattr(Ledger, "_free_since", 1000.0)

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def lines(folder):
    return [json.loads(line) for line in (folder / TIMES).read_text().splitlines()]


def test_every_second_is_of_one_kind(clock, tmp_path):
    clock(2.0)
    ledger = Ledger()
    clock(1.0)
    with ledger.opened(tmp_path, 40):
        with ledger.spending("compiling"):
            clock(5.0)
        with ledger.spending("training"):
            clock(0.5)
            with ledger.spending("waiting"):
                clock(0.25)
            clock(0.5)
            ledger.write(50)
            with pytest.raises(RuntimeError), ledger.spending("evaluating"):
                clock(3.0)
                raise RuntimeError
            clock(0.125)
            ledger.write(60)
    assert lines(tmp_path) == [
        {"began": 1000.0, "step": 40},
        {"time": 1009.25, "step": 50, "seconds": {"starting": 3.0, "compiling": 5.0, "waiting": 0.25, "training": 1.0}},
        {"time": 1012.375, "step": 60, "seconds": {"training": 0.125, "evaluating": 3.0}},
    ]
    assert ledger.seconds("training") == 1.125


def test_another_run_of_the_process_begins_where_the_one_before_ended(clock, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        ledger = Ledger()
        clock(4.0)
        with ledger.opened(tmp_path / name, 0):
            clock(2.0)
            ledger.write(1)
    assert lines(tmp_path / "second")[0] == {"began": 1006.0, "step": 0}
    assert lines(tmp_path / "second")[1]["seconds"] == {"starting": 6.0}


def test_a_line_that_was_cut_off_is_removed(clock, tmp_path):
    whole = '{"began": 1.0, "step": 0}\n'
    (tmp_path / TIMES).write_text(whole + '{"time": 2.0, "st')
    with Ledger().opened(tmp_path, 3):
        pass
    assert (tmp_path / TIMES).read_text() == whole + '{"began": 1000.0, "step": 3}\n'


def test_a_ledger_that_is_not_opened_only_counts(clock, tmp_path):
    ledger = Ledger()
    clock(1.0)
    ledger.write(1)
    assert ledger.seconds("starting") == 1.0 and not list(tmp_path.iterdir())


def test_a_full_disk_is_told(clock, tmp_path, monkeypatch):
    class Full:
        name = "runs/x/times.jsonl"

        def write(self, text):
            raise OSError(28, "No space left on device")

    ledger = Ledger()
    with ledger.opened(tmp_path, 0):
        monkeypatch.setattr(ledger, "_file", Full())
        with pytest.raises(
            UserError, match=r"^runs/x/times.jsonl: cannot be written \(No space left on device\); free"
        ):
            ledger.write(1)


def test_when_a_process_began():
    script = "import time; time.sleep(0.3); from bert_jax.train.ledger import process_start; print(process_start())"
    before = time.time()
    began = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert before - 0.05 <= began <= before + 0.25, "not when it imported the module"
    assert process_start() < before
