"""A run folder works from any working directory: its stored paths lead to the same place from everywhere."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from bert_jax import Predictor, run, trained
from bert_jax.conversion import convert as conversion
from bert_jax.errors import UserError
from bert_jax.run_folder import folder as run_folder
from tests.running import ROOT, checkpoints, command, config_flag, losses
from tests.running import run as run_command
from tools import report


@pytest.fixture(scope="module")
def place(tiny_config, corpus_dir, tmp_path_factory) -> Path:
    """A folder with two projects, worked on in their folders with relative paths alone: `first` holds a corpus and a run,
    `second` labelled texts and a run fine-tuned from it."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(corpus_dir, place / "first" / "corpora" / "mine")
    (place / "second").mkdir()
    rows = [{"text": f"the {word} river", "label": word} for word in ("old", "quiet")] * 8
    (place / "second" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flag = config_flag(tiny_config(**{"data.corpus": "corpora/mine", "train.num_steps": 2}), place / "config")
    run_command(command("pretrain", flag, "--workdir=runs/x"), folder=place / "first")
    settings = {"data.train": "rows.jsonl", "data.validation": "rows.jsonl", "data.sequence_length": 16}
    settings |= {"train.num_steps": 1, "train.batch_size": 8}
    flags = [
        f"--config={ROOT}/configs/finetune/text.py",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]
    run_command(
        command("finetune", *flags, "--config.init_from=../first/runs/x", "--workdir=runs/y"), folder=place / "second"
    )
    return place


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)


@pytest.mark.slow
def test_commands_from_another_folder(place):
    flags = ["--workdir=../first/runs/x", "--config.train.num_steps=3"]
    run_command(command("pretrain", *flags), folder=place / "second")
    assert sorted(losses(place / "first" / "runs" / "x")) == [1, 2, 3] and checkpoints(place / "first/runs/x")[-1] == 3
    run_command(command("evaluate", "--workdir=second/runs/y"), folder=place)
    scores = json.loads((place / "second" / "runs" / "y" / "evaluation.json").read_text())
    assert scores["1"]["accuracy"] >= 0
    shown = run_command(
        [sys.executable, str(ROOT / "tools" / "inspect_batch.py"), "--workdir=first/runs/x", "--rows=1"], folder=place
    )
    assert "example 0 of 8" in shown.stdout


@pytest.mark.slow
def test_the_rest_of_the_commands_from_another_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_x, run_y = place / "first" / "runs" / "x", place / "second" / "runs" / "y"
    (answer,) = Predictor.load(run_y).predict(["the old river"])
    assert answer["label"] in ("old", "quiet")
    (row,) = trained.run_evaluation(run_folder.get_config(str(run_x)), run_x, [], run_x).values()
    assert row["loss"] > 0
    conversion.export_run(run_x, tmp_path / "exported")
    assert f"{place}/first/corpora/mine" in report.write_report(run_x).read_text()


def test_what_config_json_keeps(place):
    config = run_folder.read_config(place / "second" / "runs" / "y")
    stored = json.loads((place / "second" / "runs" / "y" / "config.json").read_text())
    assert stored["data"]["train"] == config["data"]["train"] == f"{place}/second/rows.jsonl"
    assert Path(stored["init_from"]).is_absolute() and Path(stored["init_from"]).samefile(
        place / "first" / "runs" / "x"
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("GLUE", "/base/GLUE"),
        ("/data/GLUE", "/data/GLUE"),
        ("tfds", "tfds"),
        ("tfds:", "tfds:"),
        ("tfds:sets", "tfds:/base/sets"),
        ("tfds:/sets", "tfds:/sets"),
        ("", ""),
    ],
)
def test_folders_of_glue(given, kept):
    config = {"init_from": "", "data": {"dir": given, "name": "RTE"}, "train": {"seed": 0}}
    assert run_folder.with_paths_from("/base", config) == config | {"data": {"dir": kept, "name": "RTE"}}


def test_moved_data_are_named_with_the_option_that_says_where_they_are(place, tmp_path):
    shutil.copytree(place / "first", tmp_path / "first")
    workdir = tmp_path / "first" / "runs" / "x"
    config = run_folder.get_config(str(workdir))
    config.data.corpus = str(tmp_path / "first" / "gone")
    with pytest.raises(
        UserError,
        match=rf"^{tmp_path}/first/gone: no such corpus folder; .* set its path in data.corpus, data.mixture,",
    ):
        trained.run_evaluation(config, workdir, [], workdir)
    config.data.corpus = str(tmp_path / "first" / "corpora" / "mine")
    assert trained.run_evaluation(config, workdir, [], workdir)
    tuned = shutil.copytree(place / "second" / "runs" / "y", tmp_path / "y")
    values = run_folder.get_config(str(tuned))
    values.data.validation = "gone.jsonl"
    with pytest.raises(
        UserError, match=r"data.validation=.*/gone.jsonl: no such file; set --config.data.validation to"
    ):
        trained.run_evaluation(values, tuned, [], tuned)


def test_an_older_run_with_paths_as_they_were_typed(place, tmp_path, monkeypatch):
    """They are resolved against the folder of the last start of the run; if it has moved, against the working directory."""
    workdir = shutil.copytree(place / "first" / "runs" / "x", tmp_path / "x")
    stored = json.loads((workdir / "config.json").read_text())
    stored["data"]["corpus"] = "corpora/mine"
    (workdir / "config.json").write_text(json.dumps(stored))
    first_start = (place / "first" / "runs" / "x" / "starts.jsonl").read_text().splitlines()[0]
    assert json.loads(first_start)["folder"] == str(place / "first")
    (workdir / "starts.jsonl").write_text(first_start + "\n" + '{"step": 1, "fol')  # the last line was cut off
    monkeypatch.chdir(tmp_path)
    assert run_folder.read_config(workdir)["data"]["corpus"] == f"{place}/first/corpora/mine"
    assert trained.run_evaluation(run_folder.get_config(str(workdir)), workdir, [], workdir)
    (workdir / "starts.jsonl").write_text(json.dumps({"folder": "/no/more"}) + "\n")
    (tmp_path / "corpora" / "mine").mkdir(parents=True)
    assert run_folder.read_config(workdir)["data"]["corpus"] == f"{tmp_path}/corpora/mine"
