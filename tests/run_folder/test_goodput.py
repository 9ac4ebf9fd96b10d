"""Where the time of a run went."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.run_folder.goodput import Interval, Start, goodput, read_times, seconds_per_step, spent
from bert_jax.train.ledger import KINDS, TIMES

KILLED = [  # it saved step 20, did 30 and died; the next start took 20 up
    Start(
        100.0,
        0,
        [
            Interval(10, 120.0, {"starting": 6.0, "compiling": 4.0, "training": 10.0}),
            Interval(20, 132.0, {"training": 9.0, "waiting": 1.0, "saving": 2.0}),
            Interval(30, 142.0, {"training": 8.0, "waiting": 2.0}),
        ],
    ),
    Start(150.0, 20, [Interval(30, 170.0, {"starting": 5.0, "compiling": 1.0, "training": 14.0})]),
]


def write(folder, *lines):
    (folder / TIMES).write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return folder


def test_what_was_done_again_is_lost():
    total = spent(KILLED)
    assert {kind: value for kind, value in total.items() if value} == {
        "starting": 11.0, "compiling": 5.0, "waiting": 1.0, "training": 33.0, "saving": 2.0, "lost": 10.0, "down": 8.0,
    }  # fmt: skip
    assert goodput(total) == pytest.approx(33.0 / 70.0)
    assert seconds_per_step(KILLED[0]) == pytest.approx(32.0 / 30) and seconds_per_step(KILLED[1]) == pytest.approx(1.4)


def test_a_checkpoint_between_two_lines_keeps_a_part():
    start = Start(0.0, 0, [Interval(10, 10.0, {"training": 10.0})])
    assert spent([start, Start(10.0, 4, [])])["training"] == pytest.approx(4.0)
    assert spent([start, Start(10.0, 0, [])])["lost"] == pytest.approx(10.0)


@st.composite
def histories(draw):
    """Starts of a run, each from a step that the one before had reached, and the time of the last line."""
    now, starts, reached = draw(st.floats(0, 1e9)), list[Start](), 0
    for _ in range(draw(st.integers(1, 5))):
        now += draw(st.floats(0, 1e3))
        began, first = now, draw(st.integers(0, reached))
        step, intervals = first, list[Interval]()
        for _ in range(draw(st.integers(0, 5))):
            seconds = draw(st.dictionaries(st.sampled_from(KINDS), st.floats(0, 1e4), max_size=4))
            now, step = now + sum(seconds.values()), step + draw(st.integers(0, 50))
            intervals.append(Interval(step, now, seconds))
        starts.append(Start(began, first, intervals))
        reached = step
    return starts


@given(histories())
def test_every_second_is_counted_once(starts):
    total = spent(starts)
    assert min(total.values()) >= 0.0
    assert sum(total.values()) == pytest.approx(starts[-1].ended - starts[0].began, abs=1e-3)


def test_reading(tmp_path):
    assert read_times(tmp_path) == []
    lines = [{"began": 5.0, "step": 0}, {"time": 9.0, "step": 7, "seconds": {"training": 4.0}}]
    write(tmp_path, *lines, '{"time": 10.0, "st')
    assert read_times(tmp_path) == [Start(5.0, 0, [Interval(7, 9.0, {"training": 4.0})])]


@pytest.mark.parametrize(
    "line", ['{"step": -1}\n', "[]\n", '{"time": 1e999, "step": 1}\n', '{"began": "x", "step": 1}\n']
)
def test_damage_is_told(line, tmp_path):
    with pytest.raises(UserError, match=r"times.jsonl: damaged \(.*\); remove it"):
        read_times(write(tmp_path, line))
