"""Several real processes as one job, through launch/local.sh: they train what one process trains, and they stop together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.corpus.prepare import prepare
from bert_jax.run import run_training
from bert_jax.train.loop import EXIT_STOPPED
from configs.finetune import text
from tests.running import (
    ROOT,
    checkpoints,
    command,
    config_flag,
    finish,
    losses,
    rows,
    run,
    signal_at,
    start,
    wait_until,
)

STEPS = 40
SETTINGS = {
    "train.num_steps": STEPS,
    "train.accumulation_steps": 2,
    "model.dropout": 0.1,
    "parallel.data": 2,
    "parallel.fsdp": 2,
    "checkpoint.every": 10,
    "checkpoint.keep_last": 10,
}


def local(*flags: str, name: str = "pretrain") -> list[str]:
    launcher = ["bash", str(ROOT / "launch" / "local.sh"), "--processes=2", "--devices-per-process=2"]
    return [*launcher, f"--command={name}", "--", *flags]


def start_local(*flags: str) -> subprocess.Popen[str]:
    return start(local(*flags))


def trainers(launcher: int) -> list[int]:
    """Process ids of the training processes under a launcher, in the order of their start."""
    listed = subprocess.run(["pgrep", "-P", str(launcher), "-f", "bert_jax"], capture_output=True, text=True)
    return sorted(int(pid) for pid in listed.stdout.split())


def assert_same_losses(workdir: Path, reference: Path) -> None:
    """The losses so far are those of the reference. (Not bit for bit: gloo adds up in another order.)"""
    ours, theirs = losses(workdir), losses(reference)
    assert list(ours) == list(range(1, len(ours) + 1))
    np.testing.assert_allclose(list(ours.values()), [theirs[step] for step in ours], rtol=1e-5)


@pytest.fixture(scope="module")
def flag(tiny_config, tmp_path_factory) -> str:
    return config_flag(tiny_config(**SETTINGS), tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def one_process(flag, tmp_path_factory) -> Path:
    """The whole run, made by one process with four devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    run(command("pretrain", flag, f"--workdir={workdir}"), devices=4)
    assert checkpoints(workdir) == [10, 20, 30, 40]
    return workdir


@pytest.mark.slow
def test_two_processes_stop_die_and_are_taken_up_by_one(flag, one_process, tmp_path):
    workdir = tmp_path / "run"
    launcher = start_local(flag, f"--workdir={workdir}")
    signal_at(launcher, workdir, 2, signal.SIGTERM)
    done = finish(launcher)
    assert done.returncode == EXIT_STOPPED, done.stderr
    stopped_at = max(losses(workdir))
    assert stopped_at < STEPS and checkpoints(workdir)[-1] == stopped_at
    assert_same_losses(workdir, one_process)

    launcher = start_local(f"--workdir={workdir}")
    wait_until(lambda: stopped_at + 1 in losses(workdir), launcher)
    first, second = trainers(launcher.pid)
    os.kill(second, signal.SIGKILL)
    done = finish(launcher)
    assert done.returncode == 128 + signal.SIGKILL
    assert "process 1 ended with exit code 137; ending the others" in done.stderr
    assert not Path(f"/proc/{first}").exists() or sys.platform != "linux"

    run(command("pretrain", f"--workdir={workdir}"), devices=4)
    assert_same_losses(workdir, one_process)
    assert max(losses(workdir)) == STEPS


@pytest.mark.slow
def test_a_killed_and_a_stopped_process_are_survived(flag, one_process, tmp_path):
    """Under the restart loop: the process that waits for a stopped one hangs, says so, and both are started again."""
    workdir = tmp_path / "run"
    hang = ["--config.train.hang_factor=5", "--config.train.hang_seconds=3"]
    restart = ["bash", str(ROOT / "launch" / "restart.sh"), "--pause=0", "--most=3", "--"]
    process = start([*restart, *local(flag, f"--workdir={workdir}", *hang)])

    def launcher_at(step: int) -> int:
        wait_until(lambda: step in losses(workdir), process)
        return int(subprocess.run(["pgrep", "-P", str(process.pid), "bash"], capture_output=True, text=True).stdout)

    os.kill(trainers(launcher_at(5))[1], signal.SIGKILL)
    wait_until(lambda: len((workdir / "starts.jsonl").read_text().splitlines()) == 2, process)
    wait_until(lambda: 12 in losses(workdir), process)
    os.kill(trainers(launcher_at(12))[1], signal.SIGSTOP)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert "exit code 137; starting again" in done.stderr and "exit code 70; starting again" in done.stderr
    assert "error: process 0: a step has taken" in done.stderr
    # The first process also waited, in vain, for the one that was killed.
    assert all("run_training" in path.read_text() for path in (workdir / "stacks").iterdir())
    assert_same_losses(workdir, one_process)
    assert max(losses(workdir)) == STEPS and len((workdir / "starts.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_two_processes_take_up_the_run_of_one_and_stop_when_one_is_told(one_process, tmp_path):
    workdir = shutil.copytree(one_process, tmp_path / "run")
    for step in (20, 30, 40):
        shutil.rmtree(workdir / "checkpoints" / str(step))

    launcher = start_local(f"--workdir={workdir}")
    wait_until(lambda: len(losses(workdir)) == 12, launcher)  # 40, until the rows of the lost steps are taken out
    os.kill(trainers(launcher.pid)[1], signal.SIGTERM)
    done = finish(launcher)
    assert done.returncode == EXIT_STOPPED, done.stderr
    stopped_at = max(losses(workdir))
    assert 12 <= stopped_at < STEPS and checkpoints(workdir)[-1] == stopped_at
    assert_same_losses(workdir, one_process)

    run(local(f"--workdir={workdir}"))
    assert_same_losses(workdir, one_process)
    assert max(losses(workdir)) == STEPS


@pytest.mark.slow
def test_two_processes_fine_tune_and_evaluate_as_one_does(tiny_bert, tmp_path):
    """Two seeds, which stop when they get no better."""
    pairs = [(f"the {word} {thing}", thing) for word in ("old", "quiet", "a") for thing in ("river", "ship")] * 4
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": words, "label": label}) + "\n" for words, label in pairs))
    settings = {"init_from": str(tiny_bert), "data.train": str(texts), "data.validation": str(texts)}
    settings |= {"num_epochs": 30.0, "train.batch_size": 12, "train.eval_every": 3, "train.patience": 2}
    settings |= {
        "data.sequence_length": 16,
        "optimizer.learning_rate": 3e-3,
        "train.log_every": 1,
        "classifier_dropout": 0.0,
    }
    settings |= {
        "model.dropout": 0.0,
        "model.attention_dropout": 0.0,
    }  # drawn for rows, of which each device count has others
    flags = ["--config=configs/finetune/text.py", *(f"--config.{name}={value}" for name, value in settings.items())]
    one, two = tmp_path / "one", tmp_path / "two"
    run(local(*flags, "--config.seeds=2", f"--workdir={two}", name="finetune"))
    accuracies = []
    for seed in (0, 1):
        values = text.get_config()
        values.update_from_flattened_dict(settings | {"train.seed": seed})
        folder, other = one / f"seed_{seed}", two / f"seed_{seed}"
        accuracies.append(run_training(values, folder)["accuracy"])
        assert len(losses(other)) == len(losses(folder)) < 60, "stopped early"
        assert_same_losses(other, folder)
        name = "predictions/validation.txt"
        assert (other / name).read_text() == (folder / name).read_text()
    assert json.loads((two / "scores.json").read_text())["accuracy"]["seeds"] == accuracies

    run(local(f"--workdir={two}/seed_1", name="evaluate"))
    (result,) = json.loads((two / "seed_1" / "evaluation.json").read_text()).values()
    assert result["accuracy"] == accuracies[1]


@pytest.mark.slow
def test_another_job_reads_the_very_same_batches(documents, tokenizer, corpus_dir, tiny_config, tmp_path):
    """A mixture of packed documents on 8 devices of one process; stopped and resumed by two processes with two each."""
    prepare(documents[:80], tokenizer, tmp_path / "more", source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    settings = {
        "train.num_steps": 12,
        "train.log_every": 1,
        "train.hash_batches": True,
        "checkpoint.every": 6,
        "data.corpus": str(corpus_dir),
        "data.mixture": (f"0.3:{tmp_path}/more",),
        "data.packing": "documents",
    }

    def trained(workdir: Path, **more) -> Path:
        run_training(tiny_config(objectives=("mlm",), **settings, **more), workdir)
        return workdir

    whole = trained(tmp_path / "whole", **{"parallel.data": 8})
    part = trained(tmp_path / "part", **{"parallel.data": 8})
    shutil.rmtree(part / "checkpoints" / "12")
    values = tiny_config(objectives=("mlm",), **settings, **{"parallel.data": 4})
    run(local(config_flag(values, tmp_path / "config"), f"--workdir={part}"))
    hashes = [[row["batch_hash"] for row in rows(workdir) if "batch_hash" in row] for workdir in (whole, part)]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == len(hashes[0]) == 12


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


MAKE_A_BATCH = """
import json, sys
from pathlib import Path
import jax
from bert_jax import run
from bert_jax.run_folder import folder as run_folder
from bert_jax.data.pretraining.stream import CorpusStream
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import make_mesh
from bert_jax.tasks import base as tasks
from bert_jax.tasks.common.training import training_batches

hosts.start(sys.argv[2])
made = []
examples = CorpusStream.examples
CorpusStream.examples = lambda stream, *places: made.extend(places[1].tolist()) or examples(stream, *places)
task = tasks.create(run_folder.get_config(sys.argv[1]), Path("no run"))
(batch,) = training_batches(task.training, make_mesh(task.config.parallel), task.config.train.num_steps - 1)
print(json.dumps({"made": sorted(made), "description": task.training.describe(task.config.train.num_steps - 1)}))
"""


def test_each_process_makes_its_own_rows_alone(flag):
    port = free_port()
    folder = flag.split(":")[-1]
    jobs = [
        start([sys.executable, "-c", MAKE_A_BATCH, folder, f"localhost:{port},2,{number}"], devices=2)
        for number in range(2)
    ]
    results = [json.loads(finish(job).stdout.splitlines()[-1]) for job in jobs]
    halves = [result["made"] for result in results]
    assert [len(half) for half in halves] == [4, 4], "each makes half of the 8 examples"
    whole = results[0]["description"].split(": ")[1]
    assert sorted(halves[0] + halves[1]) == sorted(int(index) for index in whole.split(", "))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=0", "--"], "error: --processes=0: give a number from 1 on"),
        (["--proceses=2", "--"], "error: --proceses=2: before -- there are"),
        (["--command=serve", "--"], "error: --command=serve is not one of pretrain, finetune, evaluate, predict"),
        (["--processes=2"], "error: the flags of the command are missing; give them after --"),
    ],
)
def test_mistakes_before_the_dashes(arguments, message):
    done = run(["bash", "launch/local.sh", *arguments], code=2)
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_a_mistake_after_the_dashes_ends_all(flag, tmp_path):
    done = run(local(flag, f"--workdir={tmp_path}", "--config.train.batch_size=6"), code=2)
    assert "error: train.batch_size=6 does not divide into 2 microbatches over 4 devices" in done.stderr
    assert "Traceback" not in done.stderr
