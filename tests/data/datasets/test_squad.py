"""SQuAD's files, and the official scores computed anew from their definition."""

import json
import lzma
import re
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.datasets import squad
from bert_jax.data.datasets.squad import Question, read_questions
from bert_jax.errors import UserError


def entry(number: int, question: str, context: str, answer: str | None) -> dict:
    asked: dict = {"id": f"q{number}", "question": question, "is_impossible": answer is None}
    asked["answers"] = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
    return {"context": context, "qas": [asked]}


def write_questions(path: Path, rows) -> str:
    """A file of (question, context, answer or None), one paragraph each."""
    paragraphs = [entry(number, *row) for number, row in enumerate(rows)]
    path.write_text(json.dumps({"version": "2.0", "data": [{"title": "x", "paragraphs": paragraphs}]}))
    return str(path)


ROWS = [("who?", "It was Ada, they said.", "Ada"), ("when?", "Nobody knows.", None)]


def test_questions_with_and_without_an_answer(tmp_path, caplog):
    path = Path(write_questions(tmp_path / "a.json", ROWS))
    first, second = read_questions(path)
    assert first == Question("q0", "who?", "It was Ada, they said.", ("Ada",), 7)
    assert second.answers == () and second.start == -1

    data = json.loads(path.read_text())
    data["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 3
    path.write_text(json.dumps(data))
    assert [question.name for question in read_questions(path)] == ["q1"]
    assert len(read_questions(path, for_training=False)) == 2, "scores are of texts alone"
    assert "skipped 1 questions whose answers are not at answer_start" in caplog.text


def test_what_is_refused(tmp_path):
    path = tmp_path / "a.json"
    for content, message in [
        ("{", "not a file in SQuAD's format"),
        (
            '{"data": [{"paragraphs": [{"qas": [{}], "context": "x"}]}]}',
            "article 1, paragraph 1: a question has no 'id'",
        ),
        ('{"data": []}', "contains no usable questions"),
        ('{"rows": []}', "it has no 'data', only rows"),
        ('{"data": {}}', "'data' is '{}', not a list"),
        ("[1]", "not a file in SQuAD's format"),
        (
            r'{"data": [{"paragraphs": [{"context": "a \udc00"}]}]}',
            "format: contains the escape of an unpaired surrogate",
        ),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_questions(path)
    path.write_bytes(b'{"data": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read_questions(path)
    paragraphs = [entry(0, "who?", "a b", "a"), entry(0, "who?", "a b", "b")]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    with pytest.raises(UserError, match=r"1 duplicate ids, e\.g\. q0"):
        read_questions(path)
    write_questions(path, [("who?", " ", None)])
    with pytest.raises(UserError, match="context of question q0 is empty"):
        read_questions(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda _, q: q.update(answer=q.pop("answers")),
            "a.json: question q0 has no 'answers', only id, question, is_impossi",
        ),
        (lambda _, q: q.update(answers=None), "question q0: 'answers' is 'None', not a list"),
        (
            lambda _, q: q.update(answers={"text": ["Ada"], "answer_start": [7]}),
            "question q0: 'answers' is .*, not a list",
        ),
        (lambda _, q: q.update(answers=["Ada"]), "question q0: an answer is 'Ada', not an object"),
        (
            lambda _, q: q.update(answers=[{"txt": "Ada", "answer_start": 7}]),
            "q0: an answer has no 'text', only txt, ans",
        ),
        (
            lambda _, q: q.update(answers=[{"text": "Ada", "start": 7}]),
            "q0: an answer has no 'answer_start', only text, start",
        ),
        (
            lambda _, q: q.update(answers=[{"text": "Ada", "answer_start": 7.5}]),
            "'answer_start' is '7.5', not an integer",
        ),
        (lambda _, q: q.update(answers=[{"text": None, "answer_start": 7}]), "'text' is 'None', not a text"),
        (lambda _, q: q.update(answers=[{"text": " ", "answer_start": 6}]), "q0: the text of an answer is empty"),
        (lambda _, q: q.update(is_impossible="false"), "question q0: 'is_impossible' is 'false', not true or false"),
        (lambda _, q: q.update(query=q.pop("question")), "question q0 has no 'question', only id"),
        (lambda _, q: q.update(key=q.pop("id")), "article 1, paragraph 1: a question has no 'id', only question"),
        (lambda p, _: p.update(text=p.pop("context")), "article 1, paragraph 1 has no 'context', only qas, text"),
        (lambda p, _: p.update(context=["It was Ada"]), "article 1, paragraph 1: 'context' is .*, not a text"),
    ],
)
@pytest.mark.parametrize("for_training", [True, False])
def test_keys_that_are_missing_or_of_another_type(change, message, for_training, tmp_path):
    path = Path(write_questions(tmp_path / "a.json", ROWS))
    content = json.loads(path.read_text())
    paragraph = content["data"][0]["paragraphs"][0]
    change(paragraph, paragraph["qas"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_questions(path, for_training)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_says_that_there_is_no_answer(tmp_path):
    path = Path(write_questions(tmp_path / "a.json", [ROWS[1]] * 3))
    content = json.loads(path.read_text())
    asked = [paragraph["qas"][0] for paragraph in content["data"][0]["paragraphs"]]
    del asked[0]["is_impossible"], asked[1]["answers"]  # one of the two is enough
    asked[2]["answers"] = [{"text": "Nobody", "answer_start": 0}]  # impossible all the same
    path.write_text(json.dumps(content))
    assert [question.answers for question in read_questions(path)] == [(), (), ()]


# ----------------------------------------------------------------------------------------------------------------------
# The published definition: lower case, no punctuation, no articles, single spaces; F1 over bags of words
# ----------------------------------------------------------------------------------------------------------------------


def bag(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return [word for word in re.sub(r"\b(a|an|the)\b", " ", kept).split() if word]


def f1_by_hand(answer: str, gold: str) -> float:
    mine, theirs = bag(answer), bag(gold)
    if not mine or not theirs:
        return float(mine == theirs)
    rest, common = list(theirs), 0
    for word in mine:
        if word in rest:
            rest.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(mine), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


words = st.lists(st.sampled_from(["The", "ship", "a", "ship's", "old,", "—", "river!", "an"]), max_size=5).map(" ".join)


@given(st.lists(st.tuples(words, st.lists(words, max_size=3)), min_size=1, max_size=8))
def test_scores_are_the_official_ones(pairs):
    questions = [Question(str(n), "?", "x", tuple(gold), 0) for n, (_, gold) in enumerate(pairs)]
    answers = {str(n): answer for n, (answer, _) in enumerate(pairs)}
    found = squad.scores(questions, answers)
    expected_f1, expected_exact = [], []
    for answer, gold in pairs:
        counted = [text for text in gold if bag(text)] or [""]
        expected_f1.append(max(f1_by_hand(answer, text) for text in counted))
        expected_exact.append(max(float(bag(answer) == bag(text)) for text in counted))
    assert found["f1"] == pytest.approx(100 * np.mean(expected_f1))
    assert found["exact"] == pytest.approx(100 * np.mean(expected_exact))
    without = [n for n, (_, gold) in enumerate(pairs) if not gold]
    assert ("NoAns/f1" in found) == bool(without)
    if without:
        assert found["NoAns/f1"] == pytest.approx(100 * np.mean([expected_f1[n] for n in without]))


@given(words, st.lists(words, min_size=1, max_size=3))
def test_where_the_first_official_script_differs(answer, gold):
    """evaluate-v1.1.py: all gold answers count, and F1 is 0 where no word is common."""
    first_exact = max(float(bag(answer) == bag(text)) for text in gold)
    first_f1 = max(f1_by_hand(answer, text) if bag(answer) else 0.0 for text in gold)
    found = squad.scores([Question("0", "?", "x", tuple(gold), 0)], {"0": answer})
    if not bag(answer) and not all(map(bag, gold)):
        assert (first_exact, first_f1) == (1, 0)
        assert found["exact"] == found["f1"] == 100 * (not any(map(bag, gold)))
    else:
        assert found["exact"] == 100 * first_exact and found["f1"] == pytest.approx(100 * first_f1)


@pytest.mark.real
def test_official_counts(real_data):
    folder = real_data / "squad"
    assert len(read_questions(folder / "dev-v1.1.json")) == 10570
    questions = read_questions(folder / "dev-v2.0.reconstructed.json")
    assert len(questions) == 11873 and sum(not question.answers for question in questions) == 5945
    perfect = {question.name: (question.answers or ("",))[0] for question in questions}
    assert set(squad.scores(questions, perfect).values()) == {100.0}


@pytest.mark.real
def test_official_count_of_the_training_file(real_data, tmp_path):
    packed, path = real_data / "squad" / "train-v1.1.reconstructed.json.xz", tmp_path / "train.json"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    assert len(read_questions(path, for_training=True)) == 87599
