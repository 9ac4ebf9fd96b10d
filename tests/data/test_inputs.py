"""What predict reads: lines of text, JSON, and tables, from files as people have them."""

import pytest

from bert_jax.data.inputs import json_line, output_file, read_inputs
from bert_jax.errors import UserError


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", b"old\n\nship\n"),
        ("a.txt", b"\xef\xbb\xbfold\r\nship"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "old"}\n{"text": "ship"}\n'),
        ("a.txt", b' {"text": "old"}\nship\n'),
        ("a.tsv", b"label\ttext\n1\told\n0\tship\n"),
        ("a.csv", b'\xef\xbb\xbflabel,text\n1,"old"\n0,ship\n'),
        ("a.CONLL", b"\xef\xbb\xbfold\n\nship O\r\n"),
    ],
)
def test_texts_of_a_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with read_inputs(str(tmp_path / name), ("text",)) as inputs:
        assert [values["text"] for values in inputs] == ["old", "ship"]


def test_pairs_are_separated_by_tabs_where_there_is_no_header(tmp_path):
    (tmp_path / "a.txt").write_text("the old ship\ta ship\n")
    with read_inputs(str(tmp_path / "a.txt"), ("text", "second_text")) as inputs:
        assert list(inputs) == [{"text": "the old ship", "second_text": "a ship"}]


def test_words_of_columns_are_no_pairs(tmp_path):
    (tmp_path / "a.conll").write_text("old\n")
    inputs = read_inputs(str(tmp_path / "a.conll"), ("question", "context"))
    with pytest.raises(UserError, match="the task needs question, context"), inputs:
        pass


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"old\n\xff\n", "a.txt: not UTF-8"),
        ("a.txt", b"\n", "a.txt: contains no text"),
        ("a.txt", b"a\tb\n", "a.txt: line 1: neither a JSON object nor 1 tab-separated text"),
        ("a.jsonl", b'["old"]\n', "a.jsonl: line 1: neither a JSON object"),
        ("a.jsonl", b'"old"\n', "a.jsonl: line 1: neither a JSON object"),
        ("a.jsonl", b'{"words": "old"}\n', "a.jsonl: line 1: no field 'text', only words"),
        ("a.csv", b"label\n1\n", "a.csv: line 2 has no field 'text', only label"),
        ("squad.json", b"{}", "not a file of inputs, .* bert_jax.evaluate --config.data.validation="),
    ],
)
def test_files_that_hold_no_inputs(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message), read_inputs(str(tmp_path / name), ("text",)) as inputs:
        list(inputs)


def test_outputs_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="is a folder; use a file in it"):
        output_file(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        output_file(tmp_path / "none" / "a.jsonl")


def test_answers_are_strict_json():
    assert json_line({"text": "é", "score": 1.5}) == '{"text": "é", "score": 1.5}\n'
    for number in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="not finite"):
            json_line({"text": "a", "probabilities": {"yes": number}})
