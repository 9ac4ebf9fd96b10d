"""The leaderboard's zip: its files, their lines, and which run they are from."""

import json
import shutil
import zipfile

import pytest

from bert_jax import run
from bert_jax.data.datasets import glue
from bert_jax.errors import EXIT_USER_ERROR
from bert_jax.finetune import finetune
from configs.finetune import glue as configs
from tests.data.datasets.test_glue import write_split
from tests.data.datasets.test_glue_tfds import download_from
from tests.running import ROOT, assert_one_line, command
from tests.running import run as run_process

TASKS = ("CoLA", "STS-B", "MNLI")


def tool(*arguments: str, code: int = 0):
    python, *_ = command("predict")
    return run_process([python, str(ROOT / "tools" / "glue_submission.py"), *arguments], code=code)


@pytest.mark.slow
def test_a_submission(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    settings = {"init_from": str(tiny_bert), "data.dir": str(tmp_path), "data.sequence_length": 16}
    settings |= {"train.batch_size": 8, "train.compilation_cache": False, "num_epochs": 1.0}
    for name in TASKS:
        task = glue.TASKS[name]
        for split in ("train", *task.held_out, *(split for split, _ in task.submissions)):
            write_split(tmp_path, name, split, count=9)
        values = configs.get_config(name)
        values.update_from_flattened_dict(settings | {"seeds": 2 if name == "CoLA" else 1})
        finetune(values.to_dict(), tmp_path / "runs" / name)
    shutil.copytree(tmp_path / "runs" / "CoLA" / "seed_0", tmp_path / "others" / "SST-2")
    done = tool(
        *(f"--runs={tmp_path}/others", f"--glue_dir={tmp_path}", f"--output={tmp_path}/x.zip", "--partial"),
        code=EXIT_USER_ERROR,
    )
    assert_one_line(done.stderr, "others/SST-2: not a run of GLUE's SST-2")
    (tmp_path / "diagnostic").mkdir()
    (tmp_path / "diagnostic" / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\tthe ship\tthe river\n")

    flags = [f"--runs={tmp_path}/runs", f"--glue_dir={tmp_path}", f"--output={tmp_path}/out.zip"]
    done = tool(*flags, code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "no runs of SST-2, MRPC", "--partial")
    assert not (tmp_path / "out.zip").exists()
    done = tool(*flags, "--partial")
    assert "5 files; without SST-2, MRPC" in done.stdout
    with zipfile.ZipFile(tmp_path / "out.zip") as pack:
        found = {name: pack.read(name).decode().splitlines() for name in pack.namelist()}
    assert found.keys() == {"CoLA.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}
    for name, (header, *lines) in found.items():
        assert header == "index\tprediction" and [line.split("\t")[0] for line in lines] == [
            str(number) for number in range(1 if name == "AX.tsv" else 9)
        ]
    labels = {line.split("\t")[1] for line in found["MNLI-m.tsv"][1:] + found["AX.tsv"][1:]}
    assert labels <= {"contradiction", "entailment", "neutral"}
    assert all(0 <= float(line.split("\t")[1]) <= 5 for line in found["STS-B.tsv"][1:])
    scores = json.loads((tmp_path / "runs" / "CoLA" / "scores.json").read_text())
    assert len(scores["matthews"]["seeds"]) == 2

    download_from(tmp_path, monkeypatch)
    for task in (*(glue.TASKS[name] for name in TASKS), glue.AX):
        glue.read_split(f"tfds:{tmp_path}/data", task, task.submissions[0][0])  # prepares it
    tool(flags[0], f"--glue_dir=tfds:{tmp_path}/data", f"--output={tmp_path}/tfds.zip", "--partial")
    with zipfile.ZipFile(tmp_path / "tfds.zip") as pack:
        assert {name: pack.read(name).decode().splitlines() for name in pack.namelist()} == found
