"""metrics.jsonl on start, resume and crash; rates by the clock; means over an evaluation."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives.base import BaseOptions
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.tasks.common.evaluation import mean_metrics
from bert_jax.tasks.finetuning.loss_terms import Span
from bert_jax.train import ledger
from bert_jax.train import writers as package
from bert_jax.train.ledger import Ledger
from bert_jax.train.throughput import Throughput
from bert_jax.train.writers import jsonl
from bert_jax.train.writers.base import Writers, opened
from bert_jax.train.writers.jsonl import read_rows


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, first_step: int, rows: list[tuple[int, dict]]) -> None:
    with opened(("jsonl", "tensorboard"), folder, first_step) as writer:
        for step, row in rows:
            writer.write(step, row)


def test_rows_in_full_precision_and_tensorboard_beside_them(tmp_path):
    write(tmp_path, 0, [(1, {"loss": 0.1 + 0.2}), (1, {"eval/loss": 1e-30})])
    assert rows_of(tmp_path) == [{"step": 1, "loss": 0.1 + 0.2}, {"step": 1, "eval/loss": 1e-30}]
    assert shown_by_tensorboard(tmp_path) == {
        "loss": [(1, np.float32(0.1 + 0.2))],
        "eval/loss": [(1, np.float32(1e-30))],
    }


def shown_by_tensorboard(folder) -> dict[str, list[tuple[int, float]]]:
    """Curves as TensorBoard itself reads them."""
    accumulator = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: [(point.step, point.value) for point in accumulator.Scalars(name)] for name in names}


def test_a_resumed_run_takes_out_what_came_after(tmp_path):
    write(tmp_path, 0, [(step, {"loss": float(step)}) for step in (1, 2, 3, 4)])
    write(tmp_path, 2, [(3, {"loss": 30.0})])
    assert [(row["step"], row["loss"]) for row in rows_of(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert shown_by_tensorboard(tmp_path) == {"loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}


@pytest.mark.parametrize("cut", ["", '{"step": 3', '{"step": 3, "loss": 0.', '{"step": 3, "loss": 0.5}'])
def test_a_last_line_that_was_cut_off(tmp_path, cut):
    write(tmp_path, 0, [(1, {"loss": 1.0}), (2, {"loss": 2.0})])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + cut)
    assert len(list(read_rows(path))) == 2 + cut.endswith("}")
    write(tmp_path, 2, [(3, {"loss": 3.0})])
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3]


def test_without_writers_nothing_is_written(tmp_path):
    with opened((), tmp_path, 0) as writers:
        writers.write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    assert not list(read_rows(tmp_path / "metrics.jsonl"))


def test_another_writer_is_one_file(tmp_path, monkeypatch):
    """It is found by its name, like those there are, and sees every row."""
    (tmp_path / "counting.py").write_text(
        "class Writer:\n"
        "    def __init__(self, workdir, first_step):\n"
        "        self.path, self.rows = workdir / 'count', first_step\n"
        "    def write(self, step, row):\n"
        "        self.rows += 1\n"
        "    def close(self):\n"
        "        self.path.write_text(str(self.rows))\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    with opened(("counting", "jsonl"), tmp_path, 3) as writers:
        writers.write(4, {"loss": 1.0})
        writers.write(5, {"loss": 0.5})
    assert (tmp_path / "count").read_text() == "5" and len(rows_of(tmp_path)) == 2
    with (
        pytest.raises(UserError, match="no writer 'wandb'; there are counting, jsonl, tensorboard"),
        opened(("wandb",), tmp_path, 0),
    ):
        pass


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    writer = jsonl.Writer(tmp_path, 0)

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(
        UserError, match=r"metrics.jsonl: cannot be written \(No space left on device\); free some space"
    ):
        Writers([writer]).write(1, {"loss": 1.0})


def test_throughput(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ledger.time, "perf_counter", lambda: now[0])
    seconds = Ledger()
    clock = Throughput(4, lambda step, length: length / 2000, peak_flops=200.0, ledger=seconds)

    def slow_batches():
        while True:
            now[0] += 0.5
            yield "batch"

    def step(*shape):
        with seconds.spending("training"):
            with seconds.spending("waiting"):
                assert next(batches) == "batch"
            now[0] += 1.5  # the step itself
        clock.count(0, shape)

    batches = slow_batches()
    step(2, 5, 100)
    step(2, 5, 100)
    assert clock.read(6) == {
        "tokens_per_second": 500.0,
        "data_wait_seconds": 0.5,
        "model_flops_per_second": 25.0,
        "flops_utilization": 0.125,
    }
    with seconds.spending("evaluating"):
        now[0] += 60.0
    step(1, 10, 200)
    row = clock.read(7)
    assert row["tokens_per_second"] == 1000.0, "of another shape, or the evaluation counts"
    assert row["model_flops_per_second"] == 100.0


def test_evaluation_weighs_batches_by_their_predictions():
    rows = [
        (
            {"mlm/loss": 2.0, "a/loss": 1.0, "b/loss": 1.0},
            {"mlm": {"mlm": 30.0}, "two": {"a": 8.0, "b": 1.0}},
            {"logits": 1},
        ),
        (
            {"mlm/loss": 4.0, "a/loss": 3.0, "b/loss": 5.0},
            {"mlm": {"mlm": 10.0}, "two": {"a": 0.0, "b": 3.0}},
            {"logits": 2},
        ),
    ]
    objectives = {name: Span(0.0, BaseOptions(weight)) for name, weight in (("mlm", 1.0), ("two", 2.0))}
    losses = Losses(build_model(EncoderConfig(), {}), objectives)
    row, outputs = mean_metrics(lambda params, frozen, batch: batch, None, {}, rows, losses)
    assert outputs == [{"logits": 1}, {"logits": 2}]
    assert row == {"loss": 2.5 + 2.0 * (1.0 + 4.0), "mlm/loss": 2.5, "a/loss": 1.0, "b/loss": 4.0}
