"""The quickstart as a user runs it, shrunk: every stage a real process, the interruption and its replay included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.errors import EXIT_USER_ERROR, UserError
from tests.running import environment
from tools.quickstart_lib import copy_newest_checkpoint, last_step, losses, same_losses

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "model.vocab_size": 200,
    "model.hidden_size": 32,
    "model.num_layers": 1,
    "model.intermediate_size": 64,
    "data.sequence_length": 32,
    "train.num_steps": 60,
    "train.batch_size": 16,
    "train.eval_batch_size": 16,
    "train.eval_examples": 32,
    "train.eval_every": 30,
    "checkpoint.every": 10,
}


def quickstart(workdir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    changes = [f"--pretrain={name}={value}" for name, value in SMALL.items()]
    changes += ["--finetune=train.num_steps=4", "--finetune=data.sequence_length=32"]
    arguments = [sys.executable, str(ROOT / "tools" / "quickstart.py"), f"--workdir={workdir}", *changes, *flags]
    return subprocess.run(
        arguments, env=environment(1) | {"COLUMNS": "100"}, cwd=ROOT, capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope="module")
def docstrings(documents, tmp_path_factory) -> Path:
    """Documents of three packages in the place of Python's documentation."""
    path = tmp_path_factory.mktemp("source") / "docstrings.jsonl"
    rows = []
    for number, document in enumerate(documents):
        package = ("alpha", "beta", "gamma")[number % 3]
        rows += [
            {"module": f"{package}.m{number}", "name": f"f{line}", "text": paragraph}
            for line, paragraph in enumerate(document.text.splitlines())
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_whole_way(docstrings, tmp_path):
    workdir = tmp_path / "quickstart"
    done = quickstart(workdir, f"--docstrings={docstrings}")
    assert done.returncode == 0, done.stdout + done.stderr

    notes = json.loads((workdir / "pretrain" / "notes.json").read_text())
    replay = notes["replay"]
    assert replay["from"] < notes["stopped"] < SMALL["train.num_steps"]
    assert notes["stopped"] - replay["from"] < replay["compared"] == replay["identical"]  # beyond the stop
    assert f"{replay['identical']} of {replay['compared']} losses identical to the last bit" in done.stdout
    assert sorted(losses(workdir / "pretrain")) == list(range(1, 61))  # one curve, no step twice

    for shown in (
        "mlm accuracy",
        "nsp accuracy",
        "unigrams",
        "TF-IDF, logistic regression",
        "pretrained encoder, frozen",
    ):
        assert shown in done.stdout
    assert len(notes["task"]["rows"]) == 5 and len(notes["predictions"]) == 6
    assert len(notes["fill_mask"]) == 6 and notes["fill_mask"][0]["before"] != notes["fill_mask"][0]["after"]
    page = (workdir / "pretrain" / "report.html").read_text()
    assert "Stopped and resumed" in page and "Filling masks" in page and "Which package" in page
    # What every stage prints is a command that can be given again.
    assert done.stdout.count("$ python ") == 17

    again = quickstart(workdir, f"--docstrings={docstrings}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("complete, ") == 14 and again.stdout.count("$ python ") == 1  # the report alone

    other = quickstart(workdir, "--objectives=mlm")
    assert other.returncode == EXIT_USER_ERROR
    assert other.stderr.startswith(f"error: {workdir}: begun with ") and other.stderr.count("\n") == 1


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
    assert copy_newest_checkpoint(run, tmp_path / "replay", before=12) == 10
    assert [path.name for path in (tmp_path / "replay" / "checkpoints").iterdir()] == ["10"]
    with pytest.raises(UserError, match=r"no checkpoint before step 5"):
        copy_newest_checkpoint(run, tmp_path / "replay", before=5)
