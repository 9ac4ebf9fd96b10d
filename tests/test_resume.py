"""A run that was stopped or killed goes on as if nothing had happened: the same losses, bit for bit, and the same state."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from bert_jax.run_folder.goodput import read_times, spent
from bert_jax.tasks import base as tasks
from bert_jax.tasks.common.training import training_batches
from bert_jax.train.loop import EXIT_STOPPED
from tests.running import checkpoints, command, config_flag, finish, losses, rows, signal_at, start, wait_until
from tests.running import run as run_command

STEPS = 60
DEVICES = 4
SETTINGS = {
    "train.num_steps": STEPS,
    "train.accumulation_steps": 2,
    "train.ema_decay": 0.9,
    "train.eval_every": 25,
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "parallel.data": 2,
    "parallel.fsdp": 2,
    "checkpoint.every": 20,
    "checkpoint.keep_last": 10,
}


def checksums(workdir: Path, step: int) -> dict[str, int]:
    """Of every array of a checkpoint: parameters, moments, moving average."""
    return json.loads((workdir / "checkpoints" / str(step) / "checksums" / "metadata").read_text())


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The flag of a config, and the folder of its run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    flag = config_flag(tiny_config(**SETTINGS), folder / "config")
    run_command(command("pretrain", flag, f"--workdir={folder}/run"), DEVICES)
    assert len(losses(folder / "run")) == STEPS
    return flag, folder / "run"


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory) -> Path:
    """The same run, told to stop half-way: SIGTERM, as schedulers send it."""
    flag, _ = whole
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    process = start(command("pretrain", flag, f"--workdir={workdir}"), DEVICES)
    signal_at(process, workdir, 3, signal.SIGTERM)
    done = finish(process)
    assert done.returncode == EXIT_STOPPED, done.stderr
    assert "Traceback" not in done.stderr
    last = max(losses(workdir))
    assert 3 <= last < STEPS and checkpoints(workdir)[-1] == last, "all that was done is saved"
    assert f"told to stop: saved at step {last}" in done.stderr
    return workdir


def test_stopped_then_killed_then_complete(whole, stopped, tmp_path):
    _, reference = whole
    workdir = shutil.copytree(stopped, tmp_path / "run")
    first = checkpoints(workdir)[-1]

    process = start(command("pretrain", f"--workdir={workdir}"), DEVICES)  # the folder says which run it is
    wait_until(lambda: checkpoints(workdir)[-1] > first, process)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    saved = checkpoints(workdir)[-1]
    assert first < saved < STEPS

    done = run_command(command("pretrain", f"--workdir={workdir}"), DEVICES)
    assert f"from step {saved}" in done.stderr
    assert rows(workdir) == rows(reference)
    assert checksums(workdir, STEPS) == checksums(reference, STEPS)

    starts = read_times(workdir)
    assert [start.first_step for start in starts] == [0, first, saved] and starts[-1].step == STEPS
    seconds = sum(spent(starts).values())
    assert seconds == pytest.approx(starts[-1].ended - starts[0].began, abs=0.1), (
        "a part of the time is not accounted for"
    )


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 1)])
def test_resumed_on_another_mesh(whole, stopped, tmp_path, data, fsdp):
    _, reference = whole
    workdir = shutil.copytree(stopped, tmp_path / "run")
    mesh = [f"--config.parallel.data={data}", f"--config.parallel.fsdp={fsdp}"]
    done = run_command(command("pretrain", f"--workdir={workdir}", *mesh), data * fsdp)
    assert "parallel.fsdp changes from 2 to 1" in done.stderr
    ours, theirs = losses(workdir), losses(reference)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


@pytest.mark.parametrize("packing", ["windows", "documents"])
def test_the_examples_do_not_depend_on_mesh_or_resumption(packing, tiny_config, tmp_path):
    """Batches 3 and 4 of a run, on three meshes and after each kind of start, are the same array for array."""
    options = {"objectives": ("mlm",), "data.packing": packing} if packing == "documents" else {}
    task = tasks.create(tiny_config(**SETTINGS | options | {"train.num_steps": 5}), tmp_path)
    batches = {}
    for data, fsdp in ((1, 1), (4, 1), (2, 2)):
        mesh = make_mesh(ParallelConfig(data, fsdp), jax.devices()[: data * fsdp])
        for first_step in (0, 3):
            made = list(training_batches(task.training, mesh, first_step))
            batches[data, fsdp, first_step] = jax.device_get(made[3 - first_step :])
    expected = batches.pop((1, 1, 0))
    assert len(expected) == 2 and expected[0]["input_ids"].shape == (2, 4, 32)
    assert not np.array_equal(expected[0]["input_ids"], expected[1]["input_ids"])
    for made in batches.values():
        jax.tree.map(np.testing.assert_array_equal, made, expected)
