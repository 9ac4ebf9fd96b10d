"""The sheet of experiments: its grid, real runs of a small one, and that it goes on where it stopped."""

import csv
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from scipy import sparse

from bert_jax.config import from_dict
from bert_jax.data.datasets.conll import Sentence
from bert_jax.errors import UserError
from bert_jax.tasks import text, tokens
from bert_jax.tasks.base import model_of_run
from configs.sheets import transfer
from tests.conftest import ROOT
from tests.data.datasets.test_glue import write_split
from tests.running import environment
from tools import experiment_sheet, linear_models
from tools.experiment_sheet import Cell, cells_of
from tools.lib.sheet_page import Result, markdown

NER = "\n\n".join(
    "\n".join(f"{word} {'B-thing' if word == 'ship' else 'O'}" for word in text.split())
    for text in (
        "the old ship",
        "a quiet river",
        "the river and a ship",
        "ship on the river",
        "the old river",
        "a ship was quiet",
    )
)


@pytest.fixture
def data(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / "data" / "glue").mkdir(parents=True, exist_ok=True)
        write_split(tmp_path / "data" / "glue", "CoLA", split, count=16)
        folder = tmp_path / "data" / "ner" / "wnut17"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.conll").write_text(NER + "\n")
    return tmp_path / "data"


def test_the_grid(tiny_bert, tmp_path):
    grid = transfer.get_config().to_dict() | {"encoders": f"a={tiny_bert},b={tiny_bert}", "data": str(tmp_path)}
    cells = list(cells_of(grid))
    folders = {cell.folder(ROOT) for cell in cells}
    assert len(folders) == len(cells), "two experiments share a folder"
    of_squad = [cell for cell in cells if cell.task == "SQuAD"]
    assert len(of_squad) == 2 * 3 * 3 and all(cell.kind == "finetune" for cell in of_squad)
    assert [cell.seed for cell in cells if (cell.task, cell.way) == ("CoLA", "words")] == [0], (
        "nothing is drawn, no encoder read"
    )
    frozen = next(cell for cell in of_squad if cell.way == "frozen")
    assert frozen.settings["optimizer.trainable"] == "heads/" and frozen.settings["data.train"].endswith(
        "squad/train-v1.1.json"
    )
    for change, message in (
        ({"encoders": "tiny"}, "encoders='tiny': set"),
        ({"encoders": "a=/none"}, "/none: not a run"),
        ({"data": "/none"}, "no such folder"),
        ({"data": ""}, "data='': no such folder"),
        ({"only": "CoLA,X"}, "only=X: no such task"),
    ):
        with pytest.raises(UserError, match=message):
            list(cells_of(grid | change))


def sheet(output, data, tiny_bert, *more, config="configs/sheets/transfer.py"):
    command = [sys.executable, "tools/experiment_sheet.py", f"--output={output}", f"--config={config}"]
    command += [f"--config.encoders=tiny={tiny_bert}", f"--config.data={data}", "--config.seeds=2", *more]
    return subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=500)


@pytest.fixture
def short(tmp_path):
    """The grid with two steps for each run."""
    short = tmp_path / "short.py"
    short.write_text(
        "from configs.sheets import transfer\n\n\ndef get_config():\n    config = transfer.get_config()\n"
        "    for task in config.tasks.values():\n        with task.unlocked():\n"
        "            task.settings.train = {'num_steps': 2}\n            task.settings.data.sequence_length = 16\n"
        "    return config\n"
    )
    return short


@pytest.mark.slow
def test_runs_a_grid_and_goes_on_where_it_stopped(data, tiny_bert, short, tmp_path):
    output, some = tmp_path / "sheet", ["--config.only=CoLA", "--config.seeds=1"]
    done = sheet(output, data, tiny_bert, *some, config=short)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 experiments" in done.stdout
    rows = list(csv.DictReader((output / "sheet.csv").open()))
    assert {(row["task"], row["way"]) for row in rows} == {
        ("CoLA", way) for way in ("fine-tuned", "frozen", "from scratch", "words")
    }
    assert (output / "sheet.html").read_text().count("<svg") == 1 and "| CoLA (matthews) |" in (
        output / "sheet.md"
    ).read_text()
    assert not list(output.glob("cells/**/checkpoints"))
    one = output / "cells" / "CoLA" / "tiny" / "fine-tuned" / "seed_0" / "result.json"
    known = {path: path.stat().st_mtime_ns for path in output.glob("cells/**/result.json") if path != one}
    one.unlink()
    (one.parent / "run" / "config.json").unlink()
    again = sheet(output, data, tiny_bert, *some, config=short)
    assert again.returncode == 0 and again.stderr.count("CoLA, tiny") == 1 and one.exists(), again.stderr
    assert {path: path.stat().st_mtime_ns for path in known} == known
    longer = tmp_path / "longer.py"
    longer.write_text(short.read_text().replace("'num_steps': 2", "'num_steps': 3"))
    other = sheet(output, data, tiny_bert, *some, config=longer)
    assert other.returncode == 2 and "another experiment with the same names" in other.stderr


@pytest.mark.slow
def test_an_experiment_that_fails_is_told_and_the_others_run(data, tiny_bert, short, tmp_path):
    (data / "ner" / "wnut17" / "train.conll").write_text("word\n")
    done = sheet(tmp_path / "sheet", data, tiny_bert, "--config.only=wnut17", "--config.seeds=1", config=short)
    assert done.returncode == 2 and "experiments failed; see log.txt in" in done.stderr
    assert "has a word but no tag" in done.stderr and "Traceback" not in done.stderr


def test_told_to_stop_it_stops_the_experiment_as_well(tmp_path, monkeypatch):
    cell = Cell("e", "w", "T", 0, "finetune", "c", {}, "f1", 1.0)
    saves = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(75))); "
    program = [sys.executable, "-uc", saves + "print('began'); time.sleep(60)"]
    monkeypatch.setattr(experiment_sheet, "command", lambda *_: program)
    log = cell.folder(tmp_path) / "log.txt"

    def tell_to_stop():
        while not (log.exists() and "began" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=tell_to_stop)
    thread.start()
    with pytest.raises(SystemExit, match="75"):
        experiment_sheet.run_cell(cell, cell.folder(tmp_path))
    thread.join()
    assert log.read_text() == "began\nsaved\n" and signal.getsignal(signal.SIGTERM) == handler
    assert not (cell.folder(tmp_path) / "result.json").exists()


def test_a_score_that_is_not_measured(tmp_path, monkeypatch):
    cell = Cell("e", "w", "T", 0, "words", "c", {}, "acc", 1.0)
    program = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"accuracy\": 1.0}')"
    monkeypatch.setattr(
        experiment_sheet, "command", lambda cell, folder: [sys.executable, "-c", program, str(folder / "scores.json")]
    )
    with pytest.raises(UserError, match="T: score 'acc' of the grid is not measured, only accuracy"):
        experiment_sheet.run_cell(cell, cell.folder(tmp_path))


def test_means_and_deviations():
    results = [
        Result("T", "e", "fine-tuned", seed, "f1", 1.0, {"f1": value}, 60.0)
        for seed, value in enumerate((0.5, 0.6, 0.7))
    ]
    results.append(Result("Q", "e", "fine-tuned", 0, "f1", 100.0, {"f1": 81.25, "exact": 70.0}, None))
    text = markdown(results)
    assert "| T (f1) | 0.600 ± 0.100 (n=3, 1.0 min) |" in text and "| Q (f1) | 0.812 (n=1) |" in text


def test_pairs_have_a_product_of_what_both_hold():
    train, held_out = linear_models.tfidf([("old ship", "ship"), ("river", "old")], [("ship", "ship")])
    assert train.shape[1] == 3 * 4 and sparse.issparse(held_out)
    products = train.toarray()[:, 8:]
    assert (products[0] > 0).sum() == 1 and (products[1] == 0).all()
    np.testing.assert_allclose(held_out.toarray()[0, 8:].sum(), 1.0)


def test_linear_models_of_words_in_sentences(data, tiny_bert, tmp_path):
    path = str(data / "ner" / "wnut17" / "train.conll")
    given = tokens.Config(init_from=str(tiny_bert), model=model_of_run(tiny_bert))
    task = tokens.Task.create(dataclasses.replace(given, data=tokens.DataConfig(path, path, "sentence", 16)), tmp_path)
    assert linear_models.on_words(task)["f1"] == 1.0
    scores = linear_models.on_features(task, tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as kept:
        kept_features = kept["train"]
    assert len(kept_features) == sum(len(sentence.words) for sentence in task.sentences("train"))
    assert linear_models.on_features(task, tmp_path / "features.npz") == scores and scores["f1"] > 0
    linear_models.on_features(task, tmp_path / "features.npz", layer=0)
    with np.load(tmp_path / "features.npz") as other:
        assert not np.allclose(other["train"], kept_features), "of another layer"
    with pytest.raises(UserError, match="--layer=9: the encoder has 0"):
        linear_models.on_features(task, tmp_path / "features.npz", layer=9)
    fresh = dataclasses.replace(task, raw_config=dataclasses.replace(task.raw_config, from_scratch=True))
    with pytest.raises(UserError, match="features are those of the pretrained encoder"):
        linear_models.on_features(fresh, tmp_path / "features.npz")


def test_linear_models_of_several_labels(tiny_bert, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [("the old ship", ["old", "ship"]), ("a ship", ["ship"]), ("an old river", ["old"]), ("a river", [])] * 4
    path.write_text("".join(json.dumps({"text": words, "label": labels}) + "\n" for words, labels in rows))
    given = text.Config(init_from=str(tiny_bert), model=model_of_run(tiny_bert), problem="multi_label")
    data = text.DataConfig(train=str(path), validation=str(path), sequence_length=16)
    task = text.Task.create(dataclasses.replace(given, data=data), tmp_path)
    assert linear_models.on_words(task) == {"micro_f1": 1.0, "macro_f1": 1.0, "exact": 1.0}


def test_what_a_linear_model_knows_of_words():
    first, second = linear_models.word_features(Sentence(("McDonald", "1985"), ("O", "O"), 0))
    assert first == {
        "word": "mcdonald",
        "ending": "ald",
        "shape": "XxXx",
        "before": "<s>",
        "after": "1985",
        "shape before": "<x>",
        "shape after": "9",
        "ending before": "s>",
        "ending after": "85",
    }
    assert second["shape"] == "9" and second["after"] == "</s>" and second["shape before"] == "XxXx"


def test_settings_of_the_grid_are_options_of_its_configs(tiny_bert, tmp_path):
    grid = transfer.get_config().to_dict() | {"encoders": f"a={tiny_bert}", "data": str(tmp_path), "seeds": 1}
    trained = [cell for cell in cells_of(grid) if cell.kind == "finetune"]
    assert len(trained) == 2 * len(grid["tasks"]) + 1, "fine-tuned and from scratch; of questions also frozen"
    for cell in trained:
        file, _, argument = cell.config.partition(":")
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        values = module.get_config(*filter(None, [argument]))
        values.update_from_flattened_dict(cell.settings)
        config = from_dict(importlib.import_module(f"bert_jax.tasks.{values.task}").Config(), values)
        assert config.init_from == str(tiny_bert) and config.from_scratch == (cell.way == "from scratch")
        if cell.config.startswith("configs/finetune/glue.py"):
            assert (config.data.name, config.data.dir) == (cell.task, f"{tmp_path}/glue")
