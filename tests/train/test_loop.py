"""The loop: when it evaluates, saves, writes and stops, with everything it calls replaced."""

import itertools
import math
import types

import pytest

from bert_jax.errors import UserError
from bert_jax.train.ledger import Ledger
from bert_jax.train.loop import Report, Stopped, TrainConfig, train


class Batch(int):
    """Stands in for a batch: its number, and a shape."""

    def __getitem__(self, name):
        return types.SimpleNamespace(shape=(1, 2, 8))


class Recorder:
    """Stands in for all that the loop is given; keeps what happened in order."""

    def __init__(self, bad=(), stop_at=None, best=(), over_at=None, gone_at=math.inf):
        self.events, self.rows, self.bad, self.stop_at = [], [], dict(bad), stop_at
        self.best, self.over_at, self.evaluated, self.gone_at = best, over_at, 0, gone_at

    def step(self, step, state, batch):
        assert batch == state == step, f"step {state} is given the batch of step {batch}"
        self.done = state + 1
        return self.done, {"loss": 1.0, "gradient_norm": 1.0} | self.bad.get(state, {})

    # The writers and the clock

    def write(self, done, row):
        self.rows.append((done, row))

    def count(self, step, shape):
        assert shape == (1, 2, 8) and self.done - 2 <= step < self.done  # read one step late
        self.events.append(("counted",))

    def read(self, done):
        return {"rate": 1.0}

    # The evaluation

    def measure(self, step, state):
        assert step == state
        self.events.append(("evaluate", state))
        self.evaluated = state
        return {"loss": 2.0}, {"of": state}

    def select(self, step, row, files):
        if step in self.best:
            self.events.append(("files", files["of"]))
        return step in self.best

    @property
    def is_over(self):
        return self.over_at is not None and self.evaluated >= self.over_at

    # The checkpoints

    def check_folder(self):
        if self.done >= self.gone_at:
            raise UserError("folder: removed; put it back")

    def save(self, step, state, row):
        self.events.append(("save", step, state, row))

    def wait(self):
        self.events.append(("wait",))

    def latest(self):
        return 4

    def train(self, first_step=0, every=4, **config):
        self.every = every
        options = {"num_steps": 10, "log_every": 3, "eval_every": 5} | config
        return train(
            TrainConfig(**options),
            first_step,
            first_step,
            self.step,
            map(Batch, itertools.count(first_step)),
            describe_batch=lambda step: f"of batch {step}",
            evaluation=self,
            checkpoints=self,
            report=Report(self, self, Ledger(), [lambda done, loss: self.events.append(("progress", done))]),
            stop_requested=lambda: self.done == self.stop_at,
            profile_directory="",
        )

    def of(self, kind):
        return [event[1] for event in self.events if event[0] == kind]


def test_a_whole_run():
    recorder = Recorder()
    assert recorder.train() == 10
    assert recorder.of("evaluate") == [5, 10] and recorder.of("save") == [4, 8, 10]
    assert [(done, sorted(row)) for done, row in recorder.rows] == [
        (3, ["gradient_norm", "loss", "rate"]),
        (5, ["eval/loss"]),
        (6, ["gradient_norm", "loss", "rate"]),
        (9, ["gradient_norm", "loss", "rate"]),
        (10, ["gradient_norm", "loss", "rate"]),
        (10, ["eval/loss"]),
    ]
    assert recorder.of("progress") == list(range(1, 11)), "a step is missing from the progress"
    assert recorder.events.count(("counted",)) == 10, "a step is missing from the rates"
    saved = {event[1]: event[3] for event in recorder.events if event[0] == "save"}
    assert saved == {4: {}, 8: {}, 10: {}}, "metrics are for the best"
    assert recorder.events[-1] == ("wait",), "the run ends before its checkpoint is written"


def test_the_best_is_saved_with_its_files():
    recorder = Recorder(best=[5])
    recorder.train()
    saved = {event[1]: event[3] for event in recorder.events if event[0] == "save"}
    assert saved == {4: {}, 5: {"eval/loss": 2.0}, 8: {}, 10: {}} and recorder.of("files") == [5]


def test_stops_early():
    recorder = Recorder(best=[2, 4], over_at=6)
    assert recorder.train(eval_every=2, every=100) == 6
    assert recorder.of("evaluate") == [2, 4, 6] and recorder.of("save") == [2, 4, 6]
    assert recorder.train(first_step=6, eval_every=2) == 6, "a run that was over goes on"


def test_evaluation_only_at_the_end():
    recorder = Recorder()
    recorder.train(eval_every=0)
    assert recorder.of("evaluate") == [10]


def test_a_run_that_is_resumed_or_complete():
    recorder = Recorder()
    recorder.train(first_step=8)
    assert recorder.of("save") == [10] and recorder.of("progress") == [9, 10]
    recorder = Recorder()
    assert recorder.train(first_step=10) == 10
    assert recorder.of("save") == []


def test_told_to_stop():
    recorder = Recorder(stop_at=6)
    with pytest.raises(Stopped):
        recorder.train()
    assert recorder.of("save") == [4, 6] and recorder.events[-1] == ("wait",)
    assert recorder.rows[-1][0] == 6, "the last row before the stop is lost"
    finishing = Recorder(stop_at=10)
    finishing.train()
    assert finishing.of("save") == [4, 8, 10], "told to stop in the last step, the run is complete"


def test_a_batch_without_predictions_ends_the_run():
    every = {step: {"mlm/predictions": 20.0 - step, "nsp/predictions": 8.0} for step in range(10)}
    recorder = Recorder(bad=every)
    recorder.train()
    assert all("mlm/predictions" not in row for _, row in recorder.rows)
    recorder = Recorder(bad=every | {6: {"mlm/predictions": 0.0, "nsp/predictions": 8.0}})
    with pytest.raises(
        UserError, match=r"nothing to predict for mlm in step 7, examples of batch 6; .* is of step 4; inspect"
    ):
        recorder.train()
    assert recorder.of("save") == [4]


@pytest.mark.parametrize("bad", [3, 6, 9])
@pytest.mark.parametrize("metric", [{"loss": math.nan}, {"loss": math.inf}, {"gradient_norm": math.nan}], ids=str)
def test_numbers_that_are_none_end_the_run_and_are_not_saved(bad, metric):
    recorder = Recorder(bad={bad: metric})
    (name,) = metric
    message = f"{name} is .* in step {bad + 1}, examples of batch {bad}; the last good checkpoint is of step 4"
    with pytest.raises(UserError, match=message):
        recorder.train()
    assert all(step <= bad for step in recorder.of("save")), "a state after the bad step was saved"


@pytest.mark.parametrize(("gone_at", "last_row", "saved"), [(4, 0, []), (5, 3, [4]), (8, 6, [4]), (10, 6, [4, 8])])
def test_nothing_is_written_where_the_folder_was(gone_at, last_row, saved):
    recorder = Recorder(gone_at=gone_at)
    with pytest.raises(UserError, match="removed"):
        recorder.train()
    assert max([done for done, _ in recorder.rows], default=0) == last_row and recorder.of("save") == saved
