"""Fine-tuning on texts: classes, several labels, numbers, rare classes, and GLUE's files."""

import dataclasses
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from scipy import special

import bert_jax
from bert_jax.config import to_config_dict
from bert_jax.errors import UserError
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import glue, text
from bert_jax.tasks.base import create
from bert_jax.tasks.finetuning.options import in_order
from bert_jax.tasks.text import balanced_weights, check_classes, is_multi_hot, weights_in_order
from bert_jax.train.writers.jsonl import evaluations, read_rows
from bert_jax.trained import load_predictor, run_evaluation
from tests.data.datasets.test_glue import write_split
from tests.data.datasets.test_glue_tfds import download_from
from tests.running import command, run

TEXTS = ["the old river", "a quiet ship", "the ship was old", "a river", "on the quiet river", "old"] * 6


FAST = {"optimizer.learning_rate": 1e-2, "model.dropout": 0.0, "model.attention_dropout": 0.0}


def write_rows(path, labels, texts=TEXTS):
    lines = [json.dumps({"text": words, "label": label}) for words, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def predictions(workdir, texts):
    task, params = load_predictor(run_folder.get_config(str(workdir)), workdir, None)
    return task.predict(params, [{"text": words} for words in texts])


def test_several_labels_at_once(train, tmp_path):
    labels = [[word for word in ("river", "ship", "old") if word in words] for words in TEXTS]
    path = write_rows(tmp_path / "rows.jsonl", labels)
    data = text.DataConfig(train=path, validation=path)
    scores, workdir = train(text.Config(data=data, problem="multi_label"), num_epochs=30.0, **FAST)
    assert json.loads((workdir / "labels.json").read_text()) == ["old", "river", "ship"]
    assert scores["micro_f1"] > 0.8 and {"macro_f1", "exact"} <= scores.keys()
    right = [
        set(answer["labels"]) == set(label) for answer, label in zip(predictions(workdir, TEXTS), labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(scores["exact"]), "prediction is what was measured"
    stored = [json.loads(line) for line in (workdir / "predictions" / "validation.jsonl").read_text().splitlines()]
    assert [row["label"] for row in stored] == [sorted(label) for label in labels]
    assert [row["label"] == row["predicted"] for row in stored] == right


def test_numbers(train, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [len(words) / 10 for words in TEXTS])
    scores, workdir = train(
        text.Config(data=text.DataConfig(train=path, validation=path), problem="regression"), num_epochs=30.0, **FAST
    )
    assert scores["spearman"] > 0.5 and not (workdir / "labels.json").exists()
    found = [answer["score"] for answer in predictions(workdir, TEXTS)]
    error = np.mean((np.array(found) - [len(words) / 10 for words in TEXTS]) ** 2)
    assert error == pytest.approx(scores["mean_squared_error"], rel=1e-4)
    assert scores["loss"] == pytest.approx(scores["mean_squared_error"], rel=1e-4)
    stored = [json.loads(line) for line in (workdir / "predictions" / "validation.jsonl").read_text().splitlines()]
    assert [row["texts"] for row in stored] == [[words] for words in TEXTS]
    assert [row["predicted"] for row in stored] == pytest.approx(found, abs=1e-4)
    assert [row["label"] for row in stored] == pytest.approx([len(words) / 10 for words in TEXTS])


def test_rare_classes_may_count_as_much_as_others(train, tmp_path):
    assert balanced_weights(np.array([0, 0, 0, 1]), 2) == pytest.approx((4 / 6, 4 / 2))
    path = write_rows(tmp_path / "rows.jsonl", ["river" if "river" in words else "none" for words in TEXTS])
    config = text.Config(data=text.DataConfig(train=path, validation=path), class_weights="balanced")
    scores, workdir = train(config, num_epochs=3.0)
    again = run_evaluation(run_folder.get_config(str(workdir)), workdir, [], workdir)
    assert next(iter(again.values()))["accuracy"] == scores["accuracy"]


@pytest.mark.parametrize("name, scores", [("CoLA", {"matthews", "accuracy"}), ("STS-B", {"spearman", "pearson"})])
def test_glue(train, tmp_path, name, scores):
    for split in ("train", "dev"):
        write_split(tmp_path, name, split, count=20)
    found, workdir = train(glue.Config(data=glue.DataConfig(name=name, dir=str(tmp_path))), num_epochs=1.0)
    assert scores == found.keys() - {"loss", "classification/loss"}
    first = {"CoLA": "matthews", "STS-B": "spearman"}[name]
    assert run_folder.read_config(workdir)["checkpoint"]["best_metric"] == f"eval/{first}"
    task, params = load_predictor(run_folder.get_config(str(workdir)), workdir, None)
    (answer,) = task.predict(params, [dict.fromkeys(task.input_fields, "the old river")])
    assert answer.keys() == ({"score"} if name == "STS-B" else {"label", "probabilities"})


@pytest.mark.slow
def test_seeds_and_all_of_glue(tiny_bert, tmp_path):
    for name in ("CoLA", "RTE"):
        for split in ("train", "dev"):
            write_split(tmp_path, name, split, count=16)
    settings = [
        "data.sequence_length=16",
        "train.batch_size=8",
        "train.compilation_cache=False",
        "num_epochs=1.0",
        "seeds=2",
    ]
    flags = ["--config=configs/finetune/glue.py:all", f"--workdir={tmp_path}/all", f"--config.init_from={tiny_bert}"]
    flags += [f"--config.data.dir={tmp_path}", *(f"--config.{setting}" for setting in settings)]
    done = run(command("finetune", *flags))
    assert "2 seeds" in done.stdout and "left out: SST-2, MRPC" in done.stderr
    scores = json.loads((tmp_path / "all" / "RTE" / "scores.json").read_text())["accuracy"]
    assert scores["mean"] == pytest.approx(sum(scores["seeds"]) / 2) == scores["median"] and len(scores["seeds"]) == 2
    folders = [tmp_path / "all" / name / f"seed_{seed}" for name in ("CoLA", "RTE") for seed in (0, 1)]
    assert [run_folder.read_config(folder)["train"]["seed"] for folder in folders] == [0, 1, 0, 1]
    before = [(folder / "metrics.jsonl").read_text() for folder in folders]
    run(command("finetune", *flags))
    assert [(folder / "metrics.jsonl").read_text() for folder in folders] == before, (
        "what is complete is not done again"
    )


def test_both_development_sets_of_mnli(train, tmp_path):
    for split, count in (("train", 9), ("dev_matched", 6), ("dev_mismatched", 9)):
        write_split(tmp_path, "MNLI", split, count)
    found, _ = train(glue.Config(data=glue.DataConfig(name="MNLI", dir=str(tmp_path))), num_epochs=1.0)
    assert {"accuracy", "dev_mismatched/accuracy"} <= found.keys()


def test_a_tensorflow_dataset_trains_the_same_run(train, tmp_path, monkeypatch):
    for split, count in (
        ("train", 9),
        ("dev_matched", 6),
        ("dev_mismatched", 9),
        ("test_matched", 1),
        ("test_mismatched", 1),
    ):
        write_split(tmp_path, "MNLI", split, count)
    download_from(tmp_path, monkeypatch)
    data = glue.DataConfig(name="MNLI", dir=str(tmp_path))
    found, _ = train(glue.Config(data=data), "files", num_epochs=2.0, **FAST)
    data = glue.DataConfig(name="MNLI", dir=f"tfds:{tmp_path / 'data'}")
    again, _ = train(glue.Config(data=data), "tfds", num_epochs=2.0, **FAST)
    assert again == found


def test_a_run_goes_on_as_if_it_had_not_stopped(train, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["river" if "river" in words else "none" for words in TEXTS])
    config = text.Config(data=text.DataConfig(train=path, validation=path))
    whole, workdir = train(config, "whole", num_epochs=3.0)
    half = {"num_epochs": 3.0, "checkpoint.every": 4}

    def losses(folder):
        rows = read_rows(folder / "metrics.jsonl")
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    train(config, "half", **half)
    stopped = tmp_path / "half"
    for step in (12, 15):
        for path in (stopped / "checkpoints").glob(f"{step}*"):
            shutil.rmtree(path)
    again, _ = train(config, "half", **half)
    assert losses(stopped) == losses(workdir) and again == whole


def test_another_task_does_not_take_over_a_run(train, tmp_path):
    for name in ("CoLA", "SST-2"):
        for split in ("train", "dev"):
            write_split(tmp_path, name, split, count=16)
    train(glue.Config(data=glue.DataConfig(name="CoLA", dir=str(tmp_path))), num_epochs=1.0)
    with pytest.raises(UserError, match=r"holds another run \(data.name is CoLA there, SST-2 here\)"):
        train(glue.Config(data=glue.DataConfig(name="SST-2", dir=str(tmp_path))), num_epochs=1.0)


def test_lists_and_numbers_that_are_none(train, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [["river"]] * len(TEXTS))
    with pytest.raises(UserError, match="line 1: 'label' is a list; give a single value, or use --config"):
        train(text.Config(data=text.DataConfig(train=path, validation=path)))
    path = write_rows(tmp_path / "rows.jsonl", ["nan"] * len(TEXTS))
    with pytest.raises(UserError, match="line 1: label 'nan' is not a number"):
        train(text.Config(data=text.DataConfig(train=path, validation=path), problem="regression"))
    with pytest.raises(UserError, match=r"sequence_length=3: 3 special tokens leave no space for text"):
        train(text.Config(data=text.DataConfig(train=path, validation=path)), **{"data.sequence_length": 3})


REFUSED = {
    "label": ({"problem": "regression"}, "rows.jsonl: line 1: label 'river' is not a number"),
    "problem": ({"problem": "ranking"}, "problem='ranking' is not one of classification, multi_label"),
    "weights": ({"class_weights": "inverse"}, "class_weights='inverse' is neither"),
    "weights of numbers": ({"class_weights": "balanced", "problem": "regression"}, "problem=regression has no classes"),
    "no encoder": ({"init_from": ""}, "init_from is empty"),
    "one label": ({}, "has a single label, river; there is nothing to classify"),
    "the same field": ({"data.second_field": "text"}, "must be different fields"),
    "epochs": ({"num_epochs": float("nan")}, "num_epochs=nan: must be a finite number"),
    "no epochs": ({"num_epochs": 0.0}, "num_epochs=0.0 must be a number above 0"),
    "warm-up": ({"warmup_ratio": 2.0}, "warmup_ratio=2.0 must be from 0 to 1"),
    "learning rate": ({"optimizer.learning_rate": -1.0}, "optimizer.learning_rate=-1.0 must be at least 0"),
    "no file": (
        {"data.train": "none.jsonl"},
        f"data.train={Path.cwd()}/none.jsonl: no such file; set --config.data.train",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, train, tmp_path):
    changes, message = REFUSED[case]
    path = write_rows(tmp_path / "rows.jsonl", ["river"] * len(TEXTS))
    with pytest.raises(UserError, match=message):
        train(text.Config(data=text.DataConfig(train=path, validation=path)), **changes)
    assert not (tmp_path / "run").exists()


def test_a_file_of_several_labels_without_any(train, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [[]] * len(TEXTS))
    with pytest.raises(UserError, match="has no label; there is nothing to classify"):
        train(text.Config(data=text.DataConfig(train=path, validation=path), problem="multi_label"))


def test_a_predictor_serves_several_threads(train, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["river" if "river" in words else "none" for words in TEXTS])
    _, workdir = train(text.Config(data=text.DataConfig(train=path, validation=path)), num_epochs=1.0)
    predictor = bert_jax.Predictor.load(workdir)
    expected = predictor.predict(TEXTS)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: predictor.predict(TEXTS[number : number + 5]), range(30)))
    for number, answers in enumerate(found):
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected[number : number + 5]]
        for answer, other in zip(answers, expected[number : number + 5], strict=True):
            assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    assert predictor.predict([]) == []
    for wrong in ({"words": "the old river"}, None, ("the", "river"), 3):
        with pytest.raises(UserError, match="must hold texts as text"):
            predictor.predict([wrong])
    with pytest.raises(UserError, match="inputs='the old river': is a single text; put it in a list"):
        predictor.predict("the old river")


def test_predict_spreads_its_rows_over_the_devices(train, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["river" if "river" in words else "none" for words in TEXTS])
    _, workdir = train(text.Config(data=text.DataConfig(train=path, validation=path)), num_epochs=1.0)
    predictor = bert_jax.Predictor.load(workdir)
    devices = set()

    def starts(params, batch):
        shards = batch["input_ids"].addressable_shards
        devices.update(shard.device for shard in shards)
        assert len({str(shard.index) for shard in shards}) == len(jax.devices())
        return {"found": batch["starts"][0]}

    assert len(predictor.task.run(starts, predictor.params, predictor.task.held_out_items)) == len(TEXTS)
    assert devices == set(jax.devices())
    alone = dataclasses.replace(predictor, params=jax.device_put(predictor.params, jax.devices()[3]))
    for answer, other in zip(predictor.predict(TEXTS), alone.predict(TEXTS), strict=True):
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_stops_early_and_predicts_with_the_best(train, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["river" if "river" in words else "none" for words in TEXTS])
    other = write_rows(tmp_path / "noise.jsonl", ["none" if "river" in words else "river" for words in TEXTS])
    config = text.Config(
        data=text.DataConfig(train=path, validation=other)
    )  # the better it learns, the worse it scores
    settings = FAST | {"train.eval_every": 2, "train.patience": 3, "checkpoint.every": 100, "num_epochs": 20.0}
    scores, workdir = train(config, **settings)
    found = {step: row["eval/accuracy"] for step, row in evaluations(workdir / "metrics.jsonl")}
    best = max(found, key=lambda step: found[step])
    assert scores["accuracy"] == found[best] > found[max(found)] and max(found) == best + 6 < 90
    labels = (workdir / "predictions" / "validation.txt").read_text().split()
    assert [answer["label"] for answer in predictions(workdir, TEXTS)] == labels, "predicts with another checkpoint"
    again, _ = train(config, **settings)
    assert again == scores and max(step for step, _ in evaluations(workdir / "metrics.jsonl")) == max(found)


def test_probabilities_may_be_calibrated(train, tmp_path):
    labels = ["river" if "river" in words else "none" for words in TEXTS]
    path = write_rows(tmp_path / "rows.jsonl", labels)
    noisy = write_rows(tmp_path / "noise.jsonl", ["none" if n % 4 == 0 else label for n, label in enumerate(labels)])
    data = text.DataConfig(train=path, validation=noisy)
    _, workdir = train(text.Config(data=data), "plain", num_epochs=20.0, **FAST)
    scores, calibrated = train(text.Config(data=data, calibrated=True), "calibrated", num_epochs=20.0, **FAST)
    assert scores["temperature"] > 1.5, "it is surer than it may be, as a quarter of the labels is wrong"
    before, after = (
        np.array([[*answer["probabilities"].values()] for answer in predictions(folder, TEXTS)])
        for folder in (workdir, calibrated)
    )
    np.testing.assert_allclose(after, special.softmax(np.log(before) / scores["temperature"], axis=-1), rtol=1e-3)
    gold = np.array([json.loads(line)["label"] == "river" for line in Path(noisy).read_text().splitlines()]).astype(int)
    losses = [-np.log(found[np.arange(len(gold)), gold]).mean() for found in (before, after)]
    assert losses[1] < losses[0]

    lines = [json.loads(line) for line in (calibrated / "predictions" / "validation.jsonl").read_text().splitlines()]
    assert [line["texts"] for line in lines] == [[words] for words in TEXTS]
    assert [line["label"] == "river" for line in lines] == gold.astype(bool).tolist()
    stored = special.softmax(np.array([line["logits"] for line in lines]) / scores["temperature"], axis=-1)
    np.testing.assert_allclose(stored, after, atol=1e-4)


def test_several_labels_may_be_calibrated(train, tmp_path):
    labels = [[word for word in ("river", "old") if word in words] for words in TEXTS]
    path = write_rows(tmp_path / "rows.jsonl", labels)
    config = text.Config(data=text.DataConfig(train=path, validation=path), problem="multi_label", calibrated=True)
    scores, workdir = train(config, num_epochs=2.0)
    task, params = load_predictor(run_folder.get_config(str(workdir)), workdir, None)
    plain = dataclasses.replace(task, temperature=1.0)
    (answer,), (before,) = (of.predict(params, [{"text": "old"}]) for of in (task, plain))
    for label, probability in before["probabilities"].items():
        expected = special.expit(special.logit(probability) / scores["temperature"])
        assert answer["probabilities"][label] == pytest.approx(expected, rel=1e-4)


def test_weights_of_classes(train, tiny_bert, tmp_path):
    labels = ["river" if "river" in words else "none" for words in TEXTS]
    path = write_rows(tmp_path / "rows.jsonl", [*labels[:-1], "river"])
    config = text.Config(data=text.DataConfig(train=path, validation=path))
    _, workdir = train(config, num_epochs=1.0, class_weights="balanced")
    kept = json.loads(run_folder.read_config(workdir)["class_weights"])
    assert kept == pytest.approx({"none": 36 / (2 * 17), "river": 36 / (2 * 19)})  # by name, for a reader

    for given in ("river=2.5,none=0.5", "0.5,2.5"):
        values = to_config_dict(dataclasses.replace(config, init_from=str(tiny_bert), class_weights=given))
        values.data.sequence_length = 16
        assert create(values, tmp_path / "none").objectives["classification"].class_weights == (0.5, 2.5)
    for wrong, message in (
        ("1", "the labels are none, river"),
        ("1,x", "numbers above 0"),
        ("1,-1", "numbers above 0"),
        ("river=0", "numbers above 0"),
        ("river=2,3", "numbers above 0"),
        ("=2", "numbers above 0"),
        ('{"river": "2"}', "numbers above 0"),
        ("rivr=2", "class_weights: 'rivr' is not among the labels none, river"),
    ):
        with pytest.raises(UserError, match=message):
            train(config, "wrong", num_epochs=1.0, class_weights=wrong)


def test_weights_by_name(monkeypatch):
    assert weights_in_order("b=2.5,a=1", ["a", "b", "c"]) == (1.0, 2.5, 1.0)
    assert weights_in_order("x=y=2", ["other", "x=y"]) == (1.0, 2.0)
    assert weights_in_order('{"a, b": 3}', ["a, b", "c"]) == (3.0, 1.0)
    assert weights_in_order("10=3,2=0.5", ["1", "2", "10"]) == (1.0, 0.5, 3.0)
    monkeypatch.setattr(sys, "argv", ["program", "--config.class_weights=b=2.5,a=1"])
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", to_config_dict(text.Config()), flag_values=values)
    values(sys.argv)
    assert values.config.class_weights == "b=2.5,a=1", "as a command is given it"


def test_labels_that_are_numbers_are_in_their_order(tiny_bert, tmp_path):
    labels = [[0, 1, 10, 2, -1, "x", 1.0][number % 7] for number in range(len(TEXTS))]
    path = write_rows(tmp_path / "rows.jsonl", labels)
    data = text.DataConfig(train=path, validation=path, sequence_length=16)
    config = text.Config(init_from=str(tiny_bert), data=data, class_weights="balanced")
    task = create(to_config_dict(config), tmp_path / "none")
    assert task.labels == ["-1", "0", "1", "2", "10", "x"]
    counts = [labels.count(label) for label in (-1, 0, 1, 2, 10, "x")]
    assert task.class_weights == pytest.approx([36 / (6 * count) for count in counts]) and len(set(counts)) > 2
    assert in_order(["b", "2.5", "10", "a", "2"]) == ["2", "2.5", "10", "a", "b"]


MULTI_HOT = {
    "numbers": (
        [[1, 0, 1], [0, 0, 1]] * 18,
        "labels are 0 or 1 for each class, such as .'1', '0', '1'.; list the names of",
    ),
    "text": (["1,0", "0,1"] * 18, "labels are 0 or 1 for each class"),
    "bools": ([[True, False]] * 36, "line 1: field 'label' is a list that contains True"),
    "written": (["['old', 'ship']"] * 36, "line 1: .* is a list written as text; separate labels only by commas"),
}


@pytest.mark.parametrize("case", MULTI_HOT)
def test_labels_that_are_no_names(case, train, tmp_path):
    labels, message = MULTI_HOT[case]
    path = write_rows(tmp_path / "rows.jsonl", labels)
    with pytest.raises(UserError, match=message):
        train(text.Config(data=text.DataConfig(train=path, validation=path), problem="multi_label"))
    assert not (tmp_path / "run").exists()
    numbers = [[0], [1], [0, 1], []] * 9
    assert not is_multi_hot(numbers) and is_multi_hot([["0", "1"]]) and not is_multi_hot([["1"]])


def test_decimals_as_classes(caplog):
    check_classes("rows.csv", ["0.5", "1", "2.5"])
    assert (
        "rows.csv: labels are numbers such as 0.5, used as 3 classes; to predict numbers, set problem=regression"
        in caplog.text
    )
    with pytest.raises(UserError, match=r"rows.csv: has the labels 1 and 1\.0; write the number in one way"):
        check_classes("rows.csv", ["1", "1.0", "2"])


def test_the_first_of_equal_evaluations_is_kept_and_predicts(train, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["river" if "river" in words else "none" for words in TEXTS])
    config = text.Config(data=text.DataConfig(train=path, validation=path))
    settings = {"train.eval_every": 1, "checkpoint.every": 1, "checkpoint.keep_last": 1, "num_epochs": 2.0}
    scores, workdir = train(config, **settings, **{"optimizer.learning_rate": 1e-9})  # all evaluations are alike
    found = {step: row["eval/accuracy"] for step, row in evaluations(workdir / "metrics.jsonl")}
    assert len(found) == 10 and set(found.values()) == {scores["accuracy"]}
    assert sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir()) == [1, 10]
    assert len(predictions(workdir, TEXTS)) == len(TEXTS)
    shutil.rmtree(workdir / "checkpoints" / "1")  # as if the run had been killed before it was written
    assert len(predictions(workdir, TEXTS)) == len(TEXTS)
