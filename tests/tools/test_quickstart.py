"""The quickstart as a user runs it, shrunk: every stage a process, the interruption and its replay included."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pytest import approx

from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.run_folder.folder import read_config
from configs.quickstart import COMPARED_STEPS
from tests.running import environment
from tools.lib.quickstart_commands import copy_latest_checkpoint, last_step, losses, same_losses
from tools.lib.quickstart_summary import last_evaluation, over_seeds

ROOT = Path(__file__).resolve().parents[2]
SIX = re.compile(r"\b[a-z]{6}\b")
SMALL = {
    "model.vocab_size": 200,
    "model.hidden_size": 32,
    "model.num_layers": 1,
    "model.intermediate_size": 64,
    "data.sequence_length": 32,
    "train.num_steps": 60,
    "train.batch_size": 8,
    "train.eval_batch_size": 16,
    "train.eval_examples": 32,
    "train.eval_every": 0,
    "checkpoint.every": 10,
}
COMMAND = re.compile(r"^\$ (.*)$", re.MULTILINE)


def quickstart(workdir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    changes = [f"--pretrain={name}={value}" for name, value in SMALL.items()]
    changes += ["--finetune=train.num_steps=2", "--task=training=20", "--task=validation=20"]
    arguments = [sys.executable, str(ROOT / "tools" / "quickstart.py"), f"--workdir={workdir}", *changes, *flags]
    return subprocess.run(
        arguments, env=environment(1) | {"COLUMNS": "100"}, cwd=ROOT, capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope="module")
def docstrings(documents, tmp_path_factory) -> Path:
    """Documents in place of Python's documentation; words of six letters are code."""
    path = tmp_path_factory.mktemp("source") / "docstrings.jsonl"
    rows = [
        {
            "module": f"package.m{number}",
            "name": f"f{line}",
            "text": text,
            "code": [m.span() for m in SIX.finditer(text)],
        }
        for number, document in enumerate(documents)
        for line, text in enumerate(document.text.splitlines())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_the_whole_way(docstrings, tmp_path):
    workdir = tmp_path / "quickstart"
    done = quickstart(workdir, f"--task=docstrings={docstrings}")
    assert done.returncode == 0, done.stdout + done.stderr
    notes = json.loads((workdir / "pretrain" / "notes.json").read_text())

    # The same losses on one device and on 2x2, from runs that had these meshes.
    assert [step for step, _, _ in notes["meshes"]] == list(range(1, COMPARED_STEPS + 1))
    for _, one, other in notes["meshes"]:
        assert one == pytest.approx(other, rel=1e-5)
    assert notes["meshes"][0][1] != notes["meshes"][-1][1]
    sizes = [read_config(workdir / name)["parallel"] for name in ("one_device", "two_by_two")]
    assert [(of["data"], of["fsdp"]) for of in sizes] == [(-1, 1), (2, 2)]

    # One curve, no step twice, and the replay is equal to it beyond the stop.
    replay = notes["replay"]
    assert replay["from"] < notes["stopped"] < SMALL["train.num_steps"]
    assert notes["stopped"] - replay["from"] < replay["compared"] == replay["identical"]
    assert f"{replay['identical']} of {replay['compared']} losses identical to the last bit" in done.stdout
    assert sorted(losses(workdir / "pretrain")) == list(range(1, 61))
    assert len((workdir / "pretrain" / "starts.jsonl").read_text().splitlines()) >= 2  # the stop was one

    # What is shown is what the folders hold.
    words, frozen = (json.loads((workdir / name / "scores.json").read_text())["f1"] for name in ("words", "features"))
    scratch, finetuned = (last_evaluation(workdir / name)["f1"] for name in ("from_scratch", "finetuned"))
    assert [score for _, score in notes["task"]["rows"]] == [words, scratch, frozen, finetuned]
    for name, score in notes["task"]["rows"]:
        assert re.search(rf"{re.escape(name)} .* {score:.3f} ", done.stdout), name
    assert "20 labelled sentences for training, 20 held out" in notes["task"]["note"]
    assert [len(shown["words"]) for shown in notes["predictions"]] == [
        len(shown["predicted"]) for shown in notes["predictions"]
    ]
    page = (workdir / "pretrain" / "report.html").read_text()
    for section in (
        "Stopped and resumed",
        "One device and a mesh",
        "Filling masks",
        "Which words of a sentence are code",
    ):
        assert section in page

    # What every stage prints is a command that can be given again: the last one, as it stands there.
    commands = COMMAND.findall(done.stdout)
    (workdir / "predictions.conll").rename(workdir / "before.conll")
    again = next(command for command in commands if "predictions.conll" in command)
    subprocess.run(again.replace("python", sys.executable, 1), shell=True, env=environment(1), cwd=ROOT, check=True)
    assert (workdir / "predictions.conll").read_text() == (workdir / "before.conll").read_text()

    again = quickstart(workdir, f"--task=docstrings={docstrings}")
    assert again.returncode == 0, again.stderr
    assert len(COMMAND.findall(again.stdout)) == 1  # the report alone

    other = quickstart(workdir, "--objectives=mlm,nsp")
    assert other.returncode == EXIT_USER_ERROR
    assert other.stderr.startswith(f"error: {workdir}: started with ") and other.stderr.count("\n") == 1


def test_the_scores_of_several_seeds(tmp_path):
    for seed, score in enumerate((0.5, 0.6, 0.7)):
        for name in ("pretrain", "from_scratch", "finetuned"):
            (tmp_path / f"{seed}" / name).mkdir(parents=True)
            row = {"step": 9, "eval/loss": 1.0, "eval/mlm/accuracy": score / 2, "eval/f1": score}
            (tmp_path / f"{seed}" / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        for name in ("words", "features"):
            (tmp_path / f"{seed}" / name).mkdir()
            (tmp_path / f"{seed}" / name / "scores.json").write_text('{"f1": 0.25}')
    scores = over_seeds([tmp_path / f"{seed}" for seed in range(3)])
    assert scores["pretrained encoder, fine-tuned"] == {
        "mean": approx(0.6),
        "std": approx(0.1),
        "seeds": [0.5, 0.6, 0.7],
    }
    assert scores["mlm/accuracy"]["mean"] == approx(0.3)
    assert scores["linear model over words and neighbours"]["std"] == 0.0


def test_a_command_that_fails_ends_the_quickstart(tmp_path):
    done = quickstart(tmp_path / "quickstart", f"--task=docstrings={tmp_path}/none.jsonl")
    assert done.returncode == EXIT_USER_ERROR
    assert (
        "none.jsonl" in done.stderr and "exit code" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    )


def write_losses(folder: Path, values: dict[int, float]) -> Path:
    folder.mkdir(parents=True)
    rows = [{"step": step, "loss": value} for step, value in values.items()] + [{"step": max(values), "eval/loss": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_one_bit_counts(tmp_path):
    run = write_losses(tmp_path / "run", {1: 3.0, 2: 2.0, 3: 1.0})
    replay = write_losses(tmp_path / "replay", {2: 2.0000002384185791, 3: 1.0, 4: 0.5})
    assert same_losses(run, replay) == (2, 1)


def test_last_step(tmp_path):
    assert last_step(tmp_path) == 0
    run = write_losses(tmp_path / "run", {step: 1.0 / step for step in range(1, 1000)})
    assert last_step(run) == 999
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1000, "lo')  # being written
    assert last_step(run) == 999


def test_the_replay_begins_before_the_stop(tmp_path):
    run = tmp_path / "run"
    for step in (5, 10, 12):
        (run / "checkpoints" / str(step)).mkdir(parents=True)
    (run / "tokenizer").mkdir()
    (run / "config.json").write_text("{}")
    assert copy_latest_checkpoint(run, tmp_path / "replay", before=12) == 10
    assert [path.name for path in (tmp_path / "replay" / "checkpoints").iterdir()] == ["10"]
    with pytest.raises(UserError, match=r"no checkpoint before step 5"):
        copy_latest_checkpoint(run, tmp_path / "replay", before=5)
