"""The step: the same whatever the devices, microbatches and order of rows; golden values; frozen parameters; the average."""

import jax
import numpy as np
import pytest

from bert_jax.tasks.common.evaluation import mean_metrics
from bert_jax.train.step import make_eval_step

# From `test_golden_first_step`. They change when the tiny corpus, the data pipeline, initialisation, the model, a loss or the
# optimizer change. If that was meant, and only then: run the test, look at every difference, and copy what it prints.
GOLDEN_BATCH = {
    "attention_mask": 250.0,
    "example_weights": 8.0,
    "input_ids": 11745.0,
    "mlm_labels": 2236.0,
    "mlm_positions": 605.0,
    "mlm_weights": 39.0,
    "nsp_labels": 6.0,
    "token_type_ids": 121.0,
}
GOLDEN_METRICS = {
    "gradient_norm": 2.3270230293273926,
    "learning_rate": 0.0010000000474974513,
    "loss": 5.588685989379883,
    "mlm/accuracy": 0.0,
    "mlm/loss": 4.891932964324951,
    "mlm/predictions": 39.0,
    "nsp/accuracy": 0.25,
    "nsp/loss": 0.6967532634735107,
    "nsp/predictions": 8.0,
}


def flat(tree) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in jax.tree.leaves_with_path(tree)
    }


def steps(run, count: int):
    """State after `count` steps, and the metrics of each."""
    state, rows = run.state, []
    with jax.set_mesh(run.mesh):
        for _, batch in zip(range(count), run.batches(), strict=False):
            state, metrics = run.step(state, batch)
            rows.append({name: float(value) for name, value in metrics.items()})
    return state, rows


def test_golden_first_step(tiny_config, start_run):
    run = start_run(tiny_config(**{"optimizer.warmup_steps": 0}), num_devices=1, fresh=True)
    sums = {name: np.abs(np.asarray(array, np.float64)).sum().item() for name, array in next(run.batches()).items()}
    _, (metrics,) = steps(run, 1)
    found = f"now GOLDEN_BATCH is {sums} and GOLDEN_METRICS is {metrics}; copy them if the change was meant"
    assert sums == GOLDEN_BATCH, f"corpus, examples or masks have changed; {found}"
    assert metrics.keys() == GOLDEN_METRICS.keys(), f"there are other metrics; {found}"
    for name, value in GOLDEN_METRICS.items():
        message = f"{name} has changed, on the same batch: initialisation, model, loss or optimizer; {found}"
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=message)


COUNT = 20


@pytest.fixture(scope="module")
def on_one_device(tiny_config, start_run):
    """The run that all others must equal: (run, state, metrics)."""
    run = start_run(tiny_config(**{"train.num_steps": COUNT}), num_devices=1)
    return run, *steps(run, COUNT)


@pytest.mark.parametrize(
    "devices, mesh, accumulation",
    [(1, (1, 1, 1), 4), (2, (2, 1, 1), 2), (4, (1, 2, 2), 1), (8, (2, 2, 2), 2), (8, (8, 1, 1), 1)],
)
def test_losses_do_not_depend_on_devices_and_microbatches(
    devices, mesh, accumulation, on_one_device, tiny_config, start_run
):
    sizes = dict(zip(("parallel.data", "parallel.fsdp", "parallel.tensor"), mesh, strict=True))
    changes = {"train.num_steps": COUNT, "train.accumulation_steps": accumulation, **sizes}
    _, rows = steps(start_run(tiny_config(**changes), num_devices=devices), COUNT)
    _, _, expected = on_one_device
    assert expected[-1]["loss"] < expected[0]["loss"]
    for step, (row, reference) in enumerate(zip(rows, expected, strict=True)):
        for name in ("mlm/predictions", "nsp/predictions"):
            assert row[name] == reference[name] > 0, f"{name} of step {step}: not of the whole batch"
        for name in ("loss", "mlm/loss", "nsp/loss"):
            message = f"{name} of step {step} on {devices} devices {mesh}, {accumulation} microbatches"
            np.testing.assert_allclose(row[name], reference[name], rtol=1e-5, err_msg=message)
        np.testing.assert_allclose(row["gradient_norm"], reference["gradient_norm"], rtol=1e-4)


def test_order_of_rows_changes_nothing(on_one_device):
    run, _, _ = on_one_device
    batch = next(run.batches())
    permuted = {name: array[:, np.random.default_rng(0).permutation(array.shape[1])] for name, array in batch.items()}
    with jax.set_mesh(run.mesh):
        (_, one), (_, other) = run.step(run.state, batch), run.step(run.state, permuted)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)


def test_metrics_of_a_step(on_one_device):
    _, state, rows = on_one_device
    expected = {"loss", "mlm/loss", "mlm/accuracy", "nsp/loss", "nsp/accuracy", "gradient_norm", "learning_rate"}
    expected |= {"mlm/predictions", "nsp/predictions"}
    assert rows[0].keys() == expected
    assert int(state["step"]) == COUNT
    assert rows[0]["learning_rate"] == 0.0 and rows[1]["learning_rate"] == np.float32(1e-3 / 2)
    for row in rows:
        np.testing.assert_allclose(row["loss"], row["mlm/loss"] + row["nsp/loss"], rtol=1e-6)


def test_frozen_parameters_and_moving_average(tiny_config, start_run):
    changes = {"optimizer.trainable": "heads/|pooler", "train.ema_decay": 0.75, "optimizer.warmup_steps": 0}
    run = start_run(tiny_config(**changes), num_devices=1)
    average = before = flat(run.state["params"])
    (moments,) = [part for part in run.state["opt_state"] if hasattr(part, "mu")]
    trained = {name for name in before if name.startswith("heads/") or "pooler" in name}
    assert set(moments.mu) == set(moments.nu) == trained, "frozen parameters have optimizer state"
    state = run.state
    with jax.set_mesh(run.mesh):
        for _, batch in zip(range(2), run.batches(), strict=False):
            state, metrics = run.step(state, batch)
            after = flat(state["params"])
            average = {name: 0.75 * average[name] + 0.25 * after[name] for name in after}
    for name in before:
        changed = not np.array_equal(before[name], after[name])
        assert changed == (name in trained), f"{name} is {'trained' if changed else 'not trained'}"
        np.testing.assert_allclose(flat(state["ema"])[name], average[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert metrics["gradient_norm"] > 0


def test_evaluation_is_the_mean_over_all_predictions(on_one_device):
    run, state, _ = on_one_device
    losses = run.task.losses
    eval_step = jax.jit(make_eval_step(losses))
    rows = np.arange(8)
    batches = [{name: array[None] for name, array in batch.items()} for batch in run.task.evaluator.batches(rows, 8)]
    # As if the examples were 13, so that the last batch is partly filler: it must not count.
    for name in ("example_weights", "mlm_weights"):
        batches[1][name][0, 5:] = 0.0
    found, _ = mean_metrics(eval_step, state["params"], {}, batches, losses)

    sums, counts = {}, {"mlm": 0.0, "nsp": 0.0}
    for batch in batches:
        for row in range(8):
            single = {
                name: np.where(np.arange(8) == row, a[0].T, 0).T[None] for name, a in batch.items() if "weights" in name
            }
            means, normalizers, _ = eval_step(state["params"], {}, {**batch, **single})
            for name in counts:
                counts[name] += float(normalizers[name][name])
            for name, value in means.items():
                if name != "loss":
                    term = name.split("/")[0]
                    sums[name] = sums.get(name, 0.0) + float(value) * float(normalizers[term][term])
    assert counts["nsp"] == 13
    for name, total in sums.items():
        np.testing.assert_allclose(found[name], total / counts[name.split("/")[0]], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["loss"], found["mlm/loss"] + found["nsp/loss"], rtol=1e-6)
    assert found.keys() == {"loss", *sums}


def test_a_step_in_bfloat16(on_one_device, tiny_config, start_run):
    """Against the same step in float32: bfloat16 has 8 bits of precision, so single numbers are off by up to 2^-9."""
    _, _, rows = on_one_device
    run = start_run(tiny_config(**{"train.num_steps": COUNT, "model.dtype": "bfloat16"}), num_devices=1)
    state, found = steps(run, COUNT)
    types = {str(array.dtype) for array in jax.tree.leaves((state["params"], state["opt_state"]))}
    assert types == {"float32", "int32"}, "parameters and moments stay in float32"
    assert found[0]["loss"] != rows[0]["loss"], "it was computed in float32"
    np.testing.assert_allclose([row["loss"] for row in found], [row["loss"] for row in rows], rtol=4e-3)
    np.testing.assert_allclose(found[0]["gradient_norm"], rows[0]["gradient_norm"], rtol=2e-2)


@pytest.mark.parametrize("name", ["bert_adam", "adamw", "lamb", "muon"])
def test_steps_with_parameters_in_bfloat16(tiny_config, start_run, name):
    """Parameters are rounded after every step, each time by at most half the distance of neighbouring numbers, 2^-9."""
    changes = {
        "optimizer.name": name,
        "optimizer.warmup_steps": 0,
        "optimizer.learning_rate": 5e-3,
        "train.num_steps": 4,
    }
    low = start_run(tiny_config(**changes, **{"model.param_dtype": "bfloat16"}), num_devices=1)
    high = start_run(tiny_config(**changes), num_devices=1)
    rounded = jax.tree.map(lambda low, high: low.astype(high.dtype), low.state["params"], high.state["params"])
    high.state["params"] = rounded
    (state, found), (expected, rows) = (steps(run, 3) for run in (low, high))
    assert {str(array.dtype) for array in jax.tree.leaves(state["params"])} == {"bfloat16"}
    moments = [array for array in jax.tree.leaves(state["opt_state"]) if array.ndim]
    assert {str(array.dtype) for array in moments} == {"float32"}, (
        "in bfloat16 0.999 of a second moment is the same again"
    )
    np.testing.assert_allclose([row["loss"] for row in found], [row["loss"] for row in rows], rtol=1e-2)
    before = flat(rounded)
    for path, array in flat(expected["params"]).items():
        ours = flat(state["params"])[path].astype(np.float32)
        np.testing.assert_allclose(ours, array, rtol=3 * 2**-8, atol=5e-3, err_msg=path)
        assert np.abs(ours - before[path]).mean() > 0.2 * np.abs(array - before[path]).mean(), f"{path} hardly moves"
