"""Question answering: windows, spans, the rules by which answers are chosen, training and prediction."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special

from bert_jax.data.datasets.squad import Question, f1
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import qa
from bert_jax.tasks.finetuning.spans import (
    Answers,
    Candidate,
    best_answer_temperature,
    best_null_threshold,
    make_windows,
    most_context,
    rank_answers,
    window_spans,
)
from bert_jax.trained import load_predictor, run_evaluation
from tests.data.datasets.test_squad import write_questions

MARKS = "\u0301\ufe0f\u20e3"
CONTEXT = "The old ship, lying on the quiet river, was a ship of the river and was old. A river ship!"


@pytest.fixture(scope="module")
def small_tokenizer():
    return Tokenizer.train([CONTEXT, "where was it, who lies"] * 3, 80)


@pytest.mark.parametrize("answer", ["old ship", "quiet river", "river ship!", "The", "a ship of the river and was old"])
def test_the_answer_is_where_the_labels_say(answer, small_tokenizer):
    question = Question("0", "where was it", CONTEXT, (answer,), CONTEXT.index(answer))
    windows = make_windows(small_tokenizer, [question], length=24, doc_stride=5, max_query_length=6)
    assert len(windows) > 2
    holding = 0
    for window in windows:
        ids = window.item.tokens["input_ids"]
        assert len(ids) <= 24 and ids[0] == small_tokenizer.cls_id and ids[-1] == small_tokenizer.sep_id
        assert window.item.tokens["token_type_ids"][window.first] == 1
        start, end = window.item.values["spans"]
        if start:
            holding += 1
            offsets = window.offsets[[start - window.first, end - window.first]]
            assert CONTEXT[offsets[0, 0] : offsets[1, 1]] == answer
    assert holding
    shown = np.concatenate([window.offsets[window.is_best] for window in windows])
    assert len(shown) == len(np.unique(shown, axis=0)), "a token has its most context in one window alone"
    assert {tuple(row) for window in windows for row in window.offsets} == {tuple(row) for row in shown}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_window_holds_an_answer_whose_tokens_are_all_in_it(kind):
    context, length, stride = "An old \U0001f642 ship,  on it.", 11, 1
    tokenizer = Tokenizer.train(["an old ship"], 40 if kind == "wordpiece" else 261, kind=kind)  # of few pieces
    ((_, offsets),) = tokenizer.encode_with_offsets([context])
    counts = set()
    for begin, end in itertools.combinations(range(len(context) + 1), 2):
        question = Question("0", "is it", context, (context[begin:end],), begin)
        windows = make_windows(tokenizer, [question], length, stride, max_query_length=3)
        tokens = [number for number, (start, stop) in enumerate(offsets) if start < end and stop > begin]
        held = 0
        for start, window in enumerate(windows):
            inside = bool(tokens) and start <= tokens[0] and tokens[-1] < start + len(window.offsets)
            expected = [tokens[0] - start + window.first, tokens[-1] - start + window.first] if inside else [0, 0]
            assert window.item.values["spans"].tolist() == expected, (context[begin:end], start)
            held += inside
        counts.add(held)
    assert len(counts) > 3 and 0 in counts


@pytest.mark.parametrize("kind, cased", [("wordpiece", False), ("wordpiece", True), ("bpe", True), ("unigram", False)])
def test_answers_are_whole_characters(kind, cased):
    """Uncased tokenizers remove marks, others may put them in tokens of their own."""
    context = "a cafe\u0301 (e\u0301tude\u0301) 1\ufe0f\u20e3 end"
    tokenizer = Tokenizer.train(
        [context.replace("\u20e3", "")] * 3, 300 if kind == "bpe" else 40, cased=cased, kind=kind
    )
    question = Question("0", "a", context, (), -1)
    (window,) = make_windows(tokenizer, [question], length=90, doc_stride=90, max_query_length=3)
    texts = set()
    for first, last in itertools.combinations_with_replacement(range(len(window.offsets)), 2):
        logits = np.full((window.item.length, 2), -10.0)
        logits[window.first + first, 0] = logits[window.first + last, 1] = 10.0
        for found in rank_answers([question], [window], [logits], 1, 90)["0"].candidates:
            assert found.text == context[found.start : found.end]
            assert found.text[0] not in MARKS and (found.end == len(context) or context[found.end] not in MARKS)
            texts.add(found.text)
    assert {"cafe\u0301", "e\u0301tude\u0301", "1\ufe0f\u20e3"} <= texts and "cafe" not in texts


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_white_space_before_a_question_takes_no_tokens(kind):
    tokenizer = Tokenizer.train([CONTEXT, "where was it, who lies"] * 3, 400, kind=kind)
    (expected,) = tokenizer.encode(["where was it"])
    for question in ("where was it", " " * 9 + "where was it", "\n\t where was it"):
        context = f"  {CONTEXT} "
        (window,) = make_windows(
            tokenizer, [Question("0", question, context, ("old ship",), 6)], 200, 100, len(expected)
        )
        ids = window.item.tokens["input_ids"]
        assert ids[1 : 1 + len(expected)].tolist() == expected.tolist()
        assert window.first == 1 + len(expected) + tokenizer.separators_between
        start, end = window.item.values["spans"] - window.first
        assert context[window.offsets[start, 0] : window.offsets[end, 1]] == "old ship", "the context stays as it is"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.integers(1, 300), st.integers(1, 300))
@example(400, 250, 125)  # the last window is a hundred tokens shorter
def test_the_rule_of_the_most_context(size, width, stride):
    step = min(stride, width)
    bounds = [(start, min(start + width, size)) for start in range(0, max(1, size - width + step), step)]
    found = most_context(bounds)
    for place in range(size):
        shown = [min(place - s, e - 1 - place) + 0.01 * (e - s) if s <= place < e else -1 for s, e in bounds]
        winner = shown.index(max(shown))
        for which in (number for number, score in enumerate(shown) if score >= 0):
            assert found[which][place - bounds[which][0]] == (which == winner)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 8))
def test_spans_of_a_window_are_the_likeliest(seed, n_best, longest):
    rng = np.random.default_rng(seed)
    logits, is_best = rng.standard_normal((12, 2)), rng.random(12) < 0.8
    found = window_spans(logits, is_best, n_best, longest)
    starts, ends = (set(np.argsort(-logits[:, side])[:n_best]) for side in range(2))
    expected = {(s, e) for s in starts for e in ends if is_best[s] and s <= e < s + longest}
    assert {(s, e) for s, e, _ in found} == expected
    assert all(logit == pytest.approx(logits[s, 0] + logits[e, 1]) for s, e, logit in found)


def test_answers_over_all_windows(small_tokenizer):
    question = Question("0", "where", CONTEXT, (), -1)
    windows = make_windows(small_tokenizer, [question], length=20, doc_stride=5, max_query_length=6)
    rng = np.random.default_rng(0)
    logits = [rng.standard_normal((window.item.length, 2)).astype(np.float32) for window in windows]
    found = rank_answers([question], windows, logits, 20, 30)["0"]
    assert found.null_logit == pytest.approx(min(row[0].sum() for row in logits))
    assert [c.logit for c in found.candidates] == sorted((c.logit for c in found.candidates), reverse=True)
    assert all(CONTEXT[c.start : c.end] == c.text for c in found.candidates)
    assert len({c.text for c in found.candidates}) == len(found.candidates) <= 20
    described, (*probabilities, of_none) = found.to_json(2.0), found.probabilities(2.0)
    assert [entry["probability"] for entry in described] == probabilities and sum(
        probabilities
    ) + of_none == pytest.approx(1)
    assert np.log(probabilities[0] / of_none) == pytest.approx(-found.null_score_diff / 2)
    assert found.text(None) == found.candidates[0].text == found.text(found.null_score_diff)
    assert found.text(found.null_score_diff - 1e-3) == ""


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from(["a", "b", None])), min_size=1, max_size=10))
def test_the_threshold_is_the_best_there_is(cases):
    questions = [Question(str(n), "?", "x", (gold,) if gold else (), 0) for n, (_, gold) in enumerate(cases)]
    answers = {str(n): Answers((Candidate("a", 0, 1, 0.0),), odds) for n, (odds, _) in enumerate(cases)}

    def score(threshold):
        return np.mean([f1(answers[q.name].text(threshold), q.answers) for q in questions])

    every = [odds for odds, _ in cases]
    best = max(score(threshold) for threshold in [*every, min(every) - 1])
    assert score(best_null_threshold(questions, answers)) == pytest.approx(best)


def test_the_temperature_is_that_of_the_odds_by_which_answers_are_right():
    rng, temperature = np.random.default_rng(0), 2.5
    questions, answers = [], {}
    for number in range(3000):
        candidates = tuple(
            Candidate(f"w{i}", i, i + 1, logit) for i, logit in enumerate(rng.normal(0, 4, rng.integers(5)))
        )
        found = Answers(candidates, float(rng.normal(0, 4)))
        right = rng.choice(len(candidates) + 1, p=special.softmax(found.logits / temperature))
        gold = ("elsewhere", candidates[right].text) if right < len(candidates) else ()
        questions.append(Question(str(number), "?", "x", gold, 0))
        answers[str(number)] = found
    assert best_answer_temperature(questions, answers) == pytest.approx(temperature, rel=0.1)
    lost = [question._replace(answers=("elsewhere",)) for question in questions]
    assert best_answer_temperature(questions + [q._replace(name="0") for q in lost], answers) == pytest.approx(
        best_answer_temperature(questions, answers)
    ), "questions whose answer was not found have no say"
    assert best_answer_temperature(lost, answers) == 1.0


ROWS = [("where is the ship", "the ship is on the river", "on the river")] * 8
DATA = {"data.sequence_length": 17, "data.max_query_length": 5, "data.doc_stride": 4}
FAST = {"optimizer.learning_rate": 1e-2, "model.dropout": 0.0, "model.attention_dropout": 0.0}


@pytest.mark.parametrize("may_decline", [False, True])
def test_training_and_prediction(may_decline, train, tmp_path):
    rows = [("where is the ship", f"the {word} ship is on the river", "on the river") for word in ("old", "quiet")] * 4
    rows += [("who is old", "the river was a quiet river", None)] * 4 if may_decline else []
    path = write_questions(tmp_path / "squad.json", rows)
    config = qa.Config(data=qa.DataConfig(train=path, validation=path), calibrated=may_decline)
    scores, workdir = train(config, num_epochs=20.0, **DATA, **FAST)
    assert scores["f1"] > 60 and ("NoAns/f1" in scores) == may_decline
    predictions = json.loads((workdir / "predictions" / "predictions.json").read_text())
    assert predictions.keys() == {f"q{number}" for number in range(len(rows))}
    assert (workdir / run_folder.THRESHOLD).exists() == may_decline

    if may_decline:  # on other data the run's threshold counts, not the best for it
        (again,) = run_evaluation(run_folder.get_config(str(workdir)), workdir, [], workdir).values()
        assert again["f1"] == pytest.approx(scores["f1"]) and again["best_f1"] >= again["f1"]
        assert again["null_threshold"] == scores["null_threshold"]
    task, params = load_predictor(run_folder.get_config(str(workdir)), workdir, None)
    answers = task.predict(params, [{"question": question, "context": context} for question, context, _ in rows])
    with pytest.raises(UserError, match="question 'who': its context is empty"):
        task.predict(params, [{"question": "who", "context": " \n"}])
    assert [answer["answer"] for answer in answers] == list(predictions.values()), "predicted as it was measured"
    na_prob = json.loads((workdir / "predictions" / "na_prob.json").read_text())
    by_odds = sorted(zip((answer["null_score_diff"] for answer in answers), na_prob.values(), strict=True))
    assert [share for _, share in by_odds] == sorted(na_prob.values()) and max(na_prob.values()) <= 1, (
        "evaluate-v2.0.py declines above its threshold, 1 if none is given, and finds the best by their order"
    )
    assert task.temperature == scores.get("temperature", 1.0) and (task.temperature != 1.0) == may_decline
    n_best = json.loads((workdir / "predictions" / "nbest_predictions.json").read_text())
    for answer, kept in zip(answers, n_best.values(), strict=True):
        shown = [[candidate["probability"] for candidate in row] for row in (answer["candidates"], kept)]
        assert shown[0] == pytest.approx(shown[1], abs=1e-5)
    for answer, (_, context, _) in zip(answers, rows, strict=True):
        if answer["answer"]:
            assert context[answer["start"] : answer["end"]] == answer["answer"]
        else:
            assert answer["start"] == answer["end"] == -1


def test_a_threshold_may_be_chosen_later(train, tmp_path):
    path = write_questions(tmp_path / "squad.json", ROWS)
    _, workdir = train(qa.Config(data=qa.DataConfig(train=path, validation=path)), num_epochs=2.0, **DATA, **FAST)
    values = run_folder.get_config(str(workdir))
    with pytest.raises(UserError, match="nothing to tune"):
        run_evaluation(values, workdir, [], workdir, tunes=True)
    other = [("who is old", "the river was a quiet river", None)] * 9
    values.data.validation = write_questions(tmp_path / "other.json", ROWS + other)
    (scores,) = run_evaluation(values, workdir, [], tmp_path / "results", tunes=True).values()
    assert scores["f1"] == scores["best_f1"] >= 100 * 9 / 17
    assert (
        load_predictor(run_folder.get_config(str(workdir)), workdir, None)[0].null_threshold == scores["null_threshold"]
    )
    assert not (tmp_path / "results" / run_folder.THRESHOLD).exists()


def test_windows_that_cannot_be(train, tmp_path):
    path = write_questions(tmp_path / "squad.json", ROWS)
    config = qa.Config(data=qa.DataConfig(train=path, validation=path))
    with pytest.raises(UserError, match="doc_stride=4: a window has space for 3 tokens of context"):
        train(config, **(DATA | {"data.max_query_length": 11}))
    with pytest.raises(UserError, match="leaves no space for a context after"):
        train(config, **(DATA | {"data.max_query_length": 30}))
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_never_counts_as_no_answer(train, tmp_path):
    path = write_questions(tmp_path / "squad.json", ROWS)
    renamed = tmp_path / "renamed.json"
    renamed.write_text((tmp_path / "squad.json").read_text().replace('"answers"', '"answer"'))
    config = qa.Config(data=qa.DataConfig(train=path, validation=str(renamed)))
    with pytest.raises(
        UserError, match=r"renamed.json: question q0 has no 'answers', only .*; if there is no answer, set it to"
    ):
        train(config, **DATA)
    assert not (tmp_path / "run").exists()


def test_a_sample_is_always_the_same():
    questions = [Question(str(number), "?", "x", (), -1) for number in range(50)]
    found = qa.sample(questions, 10)
    assert found == qa.sample(questions, 10) and len(found) == 10
    assert [question for question in questions if question in found] == found, "in their order"
    assert qa.sample(questions, 0) == questions == qa.sample(questions, 99)
