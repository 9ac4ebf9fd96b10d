"""metrics.jsonl on start, resume and crash; rates by the clock; means over an evaluation."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from bert_jax.errors import UserError
from bert_jax.train import writers as metrics
from bert_jax.train.evaluation import evaluate
from bert_jax.train.throughput import Clock
from bert_jax.train.writers import MetricsWriter, read_rows


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, first_step: int, rows: list[tuple[int, dict]]) -> None:
    with MetricsWriter(folder, first_step, enabled=True) as writer:
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


def test_only_the_first_process_writes(tmp_path):
    with MetricsWriter(tmp_path, 0, enabled=False) as writer:
        writer.write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    assert not list(read_rows(tmp_path / "metrics.jsonl"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, 0, enabled=True)

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(
        UserError, match=r"metrics.jsonl: cannot be written \(No space left on device\); free some space"
    ):
        writer.write(1, {"loss": 1.0})


def test_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    clock = Clock(first_step=4, tokens_per_step=1000, flops_per_step=50.0, peak_flops=200.0)

    def slow_batches():
        while True:
            now[0] += 0.5
            yield "batch"

    batches = slow_batches()
    for _ in range(2):
        assert clock.next_batch(batches) == "batch"
        now[0] += 1.5  # the step itself
    expected = {
        "tokens_per_second": 500.0,
        "data_wait_seconds": 0.5,
        "model_flops_per_second": 25.0,
        "flops_utilization": 0.125,
    }
    assert clock.read(6) == expected
    now[0] += 60.0  # an evaluation
    clock.restart(6)
    clock.next_batch(batches)
    now[0] += 1.5
    assert clock.read(7) == expected, "what lies before the restart counts"


def test_evaluation_weighs_batches_by_their_predictions():
    batches = [({"mlm/loss": 2.0, "nsp/loss": 1.0, "loss": 9.0}, {"mlm": 30.0, "nsp": 8.0}, {"logits": 1})]
    batches += [({"mlm/loss": 4.0, "nsp/loss": 3.0, "loss": 9.0}, {"mlm": 10.0, "nsp": 0.0}, {"logits": 2})]
    row, outputs = evaluate(lambda params, batch: batch, None, batches, {"mlm": 1.0, "nsp": 2.0})
    assert outputs == [{"logits": 1}, {"logits": 2}]
    assert row == {"loss": 2.5 + 2.0, "mlm/loss": 2.5, "nsp/loss": 1.0}
    nothing = [({"mlm/loss": 0.0}, {"mlm": 0.0}, {})]
    assert evaluate(lambda params, batch: batch, None, nothing, {"mlm": 1.0})[0] == {"loss": 0.0, "mlm/loss": 0.0}
