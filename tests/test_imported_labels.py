"""Classes of an imported head in config.json: their names, and the problem type."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import special

import bert_jax
from bert_jax.conversion import convert as conversion
from bert_jax.errors import UserError
from bert_jax.formats.huggingface_config import label_names
from bert_jax.run_folder import folder as run_folder
from bert_jax.trained import run_evaluation
from tests.running import command, run

TEXTS = ["the old ship", "a quiet river", "and the river and the ship", "old"]
NUMBERS = [3, 10, 7]  # as names


def change(source: Path, **changes) -> Path:
    config = json.loads((source / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (source / "config.json").write_text(json.dumps(config))
    return source


def with_outputs(source: Path, num_outputs: int, **changes) -> Path:
    """The classifier of three classes with the first of its outputs, named by numbers."""
    tensors = load_file(source / "model.safetensors")
    tensors |= {name: tensors[name][:num_outputs] for name in ("classifier.weight", "classifier.bias")}
    save_file(tensors, source / "model.safetensors")
    names = dict(enumerate(NUMBERS[:num_outputs]))
    return change(source, id2label=names, label2id={str(name): number for number, name in names.items()}, **changes)


def logits_of(source: Path) -> np.ndarray:
    """The prediction for each text on its own."""
    encoder = bert_jax.load(source)
    tokenizer = encoder.tokenizer
    ids = [[tokenizer.cls_id, *pieces, tokenizer.sep_id] for pieces in tokenizer.encode(TEXTS)]
    return np.concatenate([encoder(np.array([row])).logits["classification"] for row in ids])


def evaluated(workdir: Path, labels: list, folder: Path) -> dict[str, float]:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = run_folder.get_config(str(workdir))
    values.data.validation = str(folder / "rows.jsonl")
    (scores,) = run_evaluation(values, workdir, [], folder / "out").values()
    return scores


@pytest.mark.parametrize("problem, outputs", [(None, 2), ("single_label", 3)])
def test_classes_named_by_numbers(problem, outputs, model_folder, tmp_path):
    told = {"problem_type": problem and f"{problem}_classification"}
    source = with_outputs(model_folder("distilbert/sequence_classification"), outputs, **told)
    conversion.import_run(source, tmp_path / "run")
    names = list(map(str, NUMBERS[:outputs]))
    assert run_folder.read_value(tmp_path / "run", run_folder.LABELS, None) == names
    assert bert_jax.load(source).labels == bert_jax.load(tmp_path / "run").labels == names
    logits = logits_of(source)
    likeliest = logits.argmax(-1)
    for number, answer in enumerate(bert_jax.Predictor.load(tmp_path / "run").predict(TEXTS)):
        assert answer["label"] == names[likeliest[number]]
        expected = dict(zip(names, special.softmax(logits[number]), strict=True))
        assert answer["probabilities"] == pytest.approx(expected, rel=1e-4)
    gold = [NUMBERS[number] for number in likeliest]
    gold[0] = NUMBERS[1 - min(1, likeliest[0])]  # a wrong one
    assert evaluated(tmp_path / "run", gold, tmp_path)["accuracy"] == 0.75
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["id2label"] == {str(number): name for number, name in enumerate(names)}
    assert config["label2id"] == {name: number for number, name in enumerate(names)}
    assert config["problem_type"] == "single_label_classification"


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_several_labels(outputs, model_folder, tmp_path):
    """Also a single label, which an example has or lacks."""
    source = with_outputs(
        model_folder("distilbert/sequence_classification"), outputs, problem_type="multi_label_classification"
    )
    conversion.import_run(source, tmp_path / "run")
    names, logits = list(map(str, NUMBERS[:outputs])), logits_of(source)
    assert 0 < (logits > 0).mean() < 1
    for row, answer in zip(logits, bert_jax.Predictor.load(tmp_path / "run").predict(TEXTS), strict=True):
        assert answer["labels"] == [name for name, logit in zip(names, row, strict=True) if logit > 0]
        expected = dict(zip(names, special.expit(row), strict=True))
        assert answer["probabilities"] == pytest.approx(expected, rel=1e-4)
    predicted = logits > 0
    gold = predicted.copy()
    gold[0, 0] = not gold[0, 0]
    labels = [[NUMBERS[number] for number in np.flatnonzero(row)] for row in gold]
    scores = evaluated(tmp_path / "run", labels, tmp_path)
    assert scores["exact"] == 0.75
    assert scores["micro_f1"] == pytest.approx(2 * (gold & predicted).sum() / (gold.sum() + predicted.sum()))
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and len(config["id2label"]) == outputs


@pytest.mark.parametrize("problem", [None, "regression"])
def test_a_number(problem, model_folder, tmp_path):
    """A single output is a regression if problem_type is unset, as in transformers."""
    source = with_outputs(model_folder("distilbert/sequence_classification"), 1, problem_type=problem)
    conversion.import_run(source, tmp_path / "run")
    numbers = logits_of(source)[:, 0]
    answers = bert_jax.Predictor.load(tmp_path / "run").predict(TEXTS)
    assert [answer["score"] for answer in answers] == pytest.approx(numbers.tolist(), rel=1e-4)
    scores = evaluated(tmp_path / "run", (numbers + np.array([1, -1, 1, -1])).tolist(), tmp_path)
    assert scores["mean_squared_error"] == pytest.approx(1.0, rel=1e-3)


REFUSED_PROBLEMS = {
    "regression": (2, r"problem_type='regression' with a head of 2 outputs: only a single number can be predicted"),
    "regression ": (3, r"problem_type='regression' with a head of 3 outputs: only a single number can be predicted"),
    "single_label_classification": (
        1,
        r"with a head of 1 outputs: a single class always has probability 1; set multi_label",
    ),
    "ranking": (
        2,
        r"problem_type='ranking' is not one of single_label_classification, multi_label_classification, reg",
    ),
}


@pytest.mark.parametrize("problem", REFUSED_PROBLEMS)
def test_what_no_task_solves_is_refused(problem, model_folder, tmp_path):
    outputs, message = REFUSED_PROBLEMS[problem]
    told = {"problem_type": problem.strip()}
    source = with_outputs(model_folder("distilbert/sequence_classification"), outputs, **told)
    with pytest.raises(UserError, match=message) as raised:
        conversion.import_run(source, tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()
    assert bert_jax.load(source)(np.array([[5, 6]])).logits["classification"].shape == (1, outputs)


REFUSED_NAMES = {
    "twice": ({"0": "bad", "1": "good", "2": "bad"}, r"gives the classes 0 and 2 the same name, 'bad'; rename one"),
    "twice, once as a number": ({"0": 1, "1": "1", "2": 2}, r"gives the classes 0 and 1 the same name, '1'"),
    "fewer": (
        {"0": "bad", "1": "good"},
        r"the head has 3 classes, but id2label names the numbers 0, 1; name 0 to 2",
    ),
    "more": (
        {str(n): f"x{n}" for n in range(4)},
        r"the head has 3 classes, but id2label names the numbers 0, 1, 2, 3",
    ),
    "a gap": ({"0": "a", "1": "b", "3": "c"}, r"the head has 3 classes, but id2label names the numbers 0, 1, 3"),
    "from one": ({"1": "a", "2": "b", "3": "c"}, r"but id2label names the numbers 1, 2, 3; name 0 to 2"),
    "by name": ({"a": 0, "b": 1, "c": 2}, r"id2label does not map numbers to names: a, b, c; number the labels from 0"),
    "a list": (["a", "b", "c"], r"Expected `object . null`, got `array` - at `\$.id2label`"),
    "no name": ({"0": "a", "1": None, "2": "c"}, r"id2label gives class 1 the name None; use a string"),
}


@pytest.mark.parametrize("case", ["bert/sequence_classification", "bert/token_classification"])
@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_names_that_name_nothing_are_refused(name, case, model_folder):
    names, message = REFUSED_NAMES[name]
    if case.endswith("token_classification"):  # of four classes
        names, message = more(names), message.replace("has 3 classes", "has 4 classes").replace("0 to 2", "0 to 3")
        message = message.split("numbers")[0].split("number: ")[0]
    with pytest.raises(UserError, match=message) as raised:
        bert_jax.load(change(model_folder(case), id2label=names))
    assert "\n" not in str(raised.value)


def more(names):
    return [*names, "last"] if isinstance(names, list) else names | {("4" if "3" in names else "3"): "last"}


def test_names_and_numbers_that_contradict_each_other():
    names = {"0": "bad", "1": "good"}
    assert label_names({"id2label": names, "label2id": {"bad": "0", "good": 1, "LABEL_0": 1}}, 2) == ["bad", "good"]
    with pytest.raises(UserError, match=r"class 'bad' is number 0 in id2label and 1 in label2id; correct one"):
        label_names({"id2label": names, "label2id": {"bad": 1, "good": 0}}, 2)
    assert label_names({}, 3) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert label_names({"id2label": {"1": True, "0": 0.5}}, 2) == ["0.5", "True"]


def test_names_of_a_head_that_has_no_classes_do_not_matter(model_folder):
    source = change(model_folder("bert/masked_lm"), id2label={"0": "x", "1": "x", "7": None})
    assert bert_jax.load(source).labels == []


def test_tokens_named_by_numbers(model_folder, tmp_path):
    source = change(model_folder("bert/token_classification"), id2label={str(number): number for number in range(4)})
    conversion.import_run(source, tmp_path / "run")
    assert bert_jax.load(tmp_path / "run").labels == ["0", "1", "2", "3"]


def test_evaluating_classes_named_by_numbers(model_folder, tmp_path):
    """With the command, whose input also has numbers."""
    source = with_outputs(model_folder("distilbert/sequence_classification"), 3)
    conversion.import_run(source, tmp_path / "run")
    labels = [NUMBERS[number] for number in logits_of(source).argmax(-1)]
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, labels, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.data.validation={tmp_path / 'rows.jsonl'}"]
    assert "accuracy            │ 1.0000" in run(command("evaluate", *flags)).stdout
