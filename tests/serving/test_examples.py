"""Inputs to try, from the predictions in a run folder."""

import json
import logging

import pytest

from bert_jax.run_folder.folder import PREDICTIONS
from bert_jax.serving.examples import MOST_CHARACTERS, examples_of


@pytest.fixture
def predictions(tmp_path):
    """`predictions("validation.jsonl", text)`: a run folder with this file alone."""

    def write(name: str, text: str):
        (tmp_path / PREDICTIONS).mkdir(exist_ok=True)
        (tmp_path / PREDICTIONS / name).write_text(text)
        return tmp_path

    return write


def lines(*rows: tuple[list[str], str | list[str] | float]) -> str:
    return "".join(json.dumps({"texts": texts, "label": label, "predicted": "x"}) + "\n" for texts, label in rows)


def test_short_texts_of_different_labels_come_first(predictions):
    rows = [(["a" * (MOST_CHARACTERS + 1)], "far"), ([" "], "far")]
    rows += [([f"{label} {number}"], label) for label in ("good", "bad") for number in range(4)]
    folder = predictions("validation.jsonl", lines(*rows))
    assert [values["text"] for values in examples_of(folder, ("text",))] == ["good 0", "bad 0", "good 1", "good 2"]


def test_pairs_have_their_fields_and_other_numbers_of_texts_are_left_out(predictions):
    folder = predictions("validation.jsonl", lines((["a", "b"], "same"), (["a"], "other")))
    assert examples_of(folder, ("first", "second")) == [{"first": "a", "second": "b"}]


def test_several_labels_and_numbers(predictions):
    texts = [["a fine film"], ["a good film"], ["a dull film"]]
    for labels in ([["good"], ["good"], ["bad"]], [4.5, 4.5, 1.0]):
        folder = predictions("validation.jsonl", lines(*zip(texts, labels, strict=True)))
        assert [values["text"] for values in examples_of(folder, ("text",))] == [
            "a fine film",
            "a dull film",
            "a good film",
        ]


def test_sentences_of_columns(predictions):
    text = "the O O\nriver O O\n\nAda B-PER O\nsleeps O O\n\nBob B-PER O\n"
    folder = predictions("validation.conll", text)
    assert examples_of(folder, ("text",)) == [{"text": "the river"}, {"text": "Ada sleeps"}, {"text": "Bob"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [("validation.jsonl", '{"texts": 3}\n'), ("validation.jsonl", "{"), ("validation.conll", "word\n")],
)
def test_damaged_predictions_are_no_examples(predictions, name, text, caplog):
    with caplog.at_level(logging.WARNING):
        assert examples_of(predictions(name, text), ("text",)) == []
    assert "no examples from the run's predictions" in caplog.text


def test_no_predictions_are_no_examples(tmp_path):
    assert examples_of(tmp_path, ("text",)) == []
