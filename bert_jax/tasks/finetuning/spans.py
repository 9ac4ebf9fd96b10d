"""Windows over the contexts of questions, and answers out of the logits of all windows of a question.

The rules are those of google-research/bert run_squad.py, but where `answer_tokens`, `found_answers` and `ranked` say
otherwise: above all spans are found by the characters of each token, so answers are parts of the context as it is written.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from bert_jax.data import joining
from bert_jax.data.datasets.squad import Question, exact_match, f1
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.data.words import whole_characters
from bert_jax.tasks.finetuning.packing import Item
from bert_jax.tasks.finetuning.scores import best_temperature

logger = logging.getLogger(__name__)
NO_CANDIDATE = -1e9  # the logit of a place without one


class Window(NamedTuple):
    """Some tokens of a context, with the question before them."""

    item: Item
    question: int  # which of the questions
    first: int  # place of the first token of the context within the item
    offsets: np.ndarray  # int [tokens of the context, 2]: from and to which character of the context each reaches
    is_best: np.ndarray  # bool, whether no other window shows more context around the token


class Candidate(NamedTuple):
    text: str
    start: int  # characters of the context
    end: int
    logit: float  # of start and end together


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was found for a question, the best first."""

    candidates: tuple[Candidate, ...]
    null_logit: float  # of no answer: the least over the windows

    @property
    def best_text(self) -> str:
        return self.candidates[0].text if self.candidates else ""

    @property
    def null_score_diff(self) -> float:
        """How much likelier no answer is than the best one, in logits."""
        return self.null_logit - (self.candidates[0].logit if self.candidates else NO_CANDIDATE)

    @property
    def null_probability(self) -> float:
        """That of no answer, where nothing but the best one could be instead; it grows with the odds."""
        return float(special.expit(self.null_score_diff))

    def text(self, threshold: float | None) -> str:
        """The best answer, or none where that is likelier by more than the threshold, if there is one."""
        return "" if threshold is not None and self.null_score_diff > threshold else self.best_text

    @property
    def logits(self) -> np.ndarray:
        """Of the candidates and, last, of no answer."""
        return np.array([*(candidate.logit for candidate in self.candidates), self.null_logit])

    def probabilities(self, temperature: float) -> list[float]:
        """Of the candidates and, last, of no answer."""
        return special.softmax(self.logits / temperature).tolist()

    def described(self, temperature: float) -> list[dict[str, Any]]:
        """The candidates as JSON."""
        pairs = zip(self.candidates, self.probabilities(temperature)[:-1], strict=True)
        return [candidate._asdict() | {"probability": probability} for candidate, probability in pairs]


def windows_of(
    tokenizer: Tokenizer, questions: Sequence[Question], length: int, doc_stride: int, max_query_length: int
) -> list[Window]:
    """Windows of `length` tokens at most over each question's context, each `doc_stride` tokens after the one before.

    The span of an answer that is not wholly in a window is its first token, [CLS]. Leading white space of a question is
    removed, as in transformers' run_qa.py: byte-level BPE would make tokens of it. Trailing white space stays, as there: 334 of
    the 10,570 questions of SQuAD 1.1's development set end with a space, and imported models were trained with its token.
    """
    question_ids = tokenizer.encode([question.question.lstrip() for question in questions])
    if cut := sum(len(ids) > max_query_length for ids in question_ids):
        logger.warning("%d questions are longer than %d tokens and cut to them", cut, max_query_length)
    question_ids = [ids[:max_query_length] for ids in question_ids]
    contexts = list(dict.fromkeys(question.context for question in questions))
    encoded = dict(zip(contexts, tokenizer.encode_with_offsets(contexts), strict=True))
    windows = []
    for number, (question, asked) in enumerate(zip(questions, question_ids, strict=True)):
        ids, offsets = encoded[question.context]
        room = length - tokenizer.num_special_tokens(2) - len(asked)
        starts = [0]
        while starts[-1] + room < len(ids):
            starts.append(starts[-1] + doc_stride)
        bounds = [(start, min(start + room, len(ids))) for start in starts]
        first = 1 + len(asked) + tokenizer.separators_between
        answer = answer_tokens(question, offsets)
        for (start, end), is_best in zip(bounds, most_context(bounds), strict=True):
            example = joining.join(
                tokenizer, len(asked) + end - start + tokenizer.num_special_tokens(2), asked, ids[start:end]
            )
            is_inside = answer is not None and start <= answer[0] and answer[1] < end
            span = np.array(answer, np.int32) - start + first if is_inside else np.zeros(2, np.int32)
            item = Item({name: example[name] for name in ("input_ids", "token_type_ids")}, {"spans": span})
            windows.append(Window(item, number, first, offsets[start:end], is_best))
    return windows


def answer_tokens(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """The first and the last token of a context that hold characters of the answer, from the `offsets` [n, 2] of all n.

    None without an answer, or where no token holds any of it. Where an answer is no whole number of words between blanks,
    run_squad.py looks for tokens among theirs that spell it, and takes the words if there are none.
    """
    if not question.answers:
        return None
    begin, end = question.start, question.start + len(question.answers[0])
    touched = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > begin))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def most_context(bounds: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """For each token of each window, whether that window is the first of those that show the most context around it.

    That is min(left, right) + 0.01 * length of the window. `bounds` are the first token of each and the one after its last.
    """
    most = np.full(max(end for _, end in bounds), -1.0)
    best = np.zeros(len(most), np.int32)
    for number, (start, end) in enumerate(bounds):
        places = np.arange(start, end)
        context = np.minimum(places - start, end - 1 - places) + 0.01 * (end - start)
        is_more = context > most[start:end]
        most[start:end][is_more] = context[is_more]
        best[start:end][is_more] = number
    return [best[start:end] == number for number, (start, end) in enumerate(bounds)]


def found_answers(
    questions: Sequence[Question],
    windows: Sequence[Window],
    logits: Sequence[np.ndarray],
    n_best_size: int,
    max_answer_length: int,
) -> dict[str, Answers]:
    """The answers to each question by id, from the logits [n, 2] of start and end of the tokens of each window.

    As in run_squad.py an answer starts where its window shows the most context, and the logit of no answer is the least over
    the windows. There the `n_best_size` starts and ends are of all tokens of a window, and those outside the context dropped;
    here they are of the context's, so that spans are tried which would be crowded out there.
    """
    spans: list[dict[tuple[int, int], float]] = [{} for _ in questions]
    null = np.full(len(questions), np.inf)
    for window, of_window in zip(windows, logits, strict=True):
        null[window.question] = min(null[window.question], float(of_window[0].sum()))
        of_context = of_window[window.first : window.first + len(window.offsets)]
        for start, end, logit in window_spans(of_context, window.is_best, n_best_size, max_answer_length):
            characters = int(window.offsets[start, 0]), int(window.offsets[end, 1])
            known = spans[window.question].get(characters, -np.inf)
            spans[window.question][characters] = max(known, logit)
    return {
        question.name: ranked(question.context, of_question, float(null_logit), n_best_size)
        for question, of_question, null_logit in zip(questions, spans, null, strict=True)
    }


def window_spans(
    logits: np.ndarray, is_best: np.ndarray, n_best_size: int, max_answer_length: int
) -> list[tuple[int, int, float]]:
    """First token, last token and logit of the spans between the likeliest starts and ends of a window."""
    starts, ends = (np.argsort(-logits[:, side], kind="stable")[:n_best_size] for side in range(2))
    starts = starts[is_best[starts]]
    lengths = ends[None, :] - starts[:, None] + 1
    chosen = np.argwhere((lengths > 0) & (lengths <= max_answer_length))
    return [
        (int(starts[i]), int(ends[j]), float(logits[starts[i], 0] + logits[ends[j], 1])) for i, j in chosen.tolist()
    ]


def ranked(context: str, spans: Mapping[tuple[int, int], float], null_logit: float, n_best_size: int) -> Answers:
    """The `n_best_size` likeliest spans, each text once with its best span.

    In run_squad.py texts are compared with white space collapsed to single spaces, here as written. There no answer
    is one of the n best, and in the softmax of their probabilities, for SQuAD 2.0 alone; here it is always in the softmax and
    never among the n best. Without any span the answer there is the text "empty"; here it is "". There an answer ends where its
    last token does, which may be before a mark that the tokenizer removed; here answers are whole grapheme clusters.
    """
    best: dict[str, tuple[int, int, float]] = {}
    for (start, end), logit in sorted(spans.items(), key=lambda entry: -entry[1]):
        end = start + len(context[start:end].rstrip())  # tokens may consist of spaces alone
        if start < end:
            start, end = whole_characters(context, start, end)
            best.setdefault(context[start:end], (start, end, logit))
    kept = list(best.items())[:n_best_size]
    return Answers(tuple(Candidate(text, *span) for text, span in kept), null_logit)


def best_answer_temperature(questions: Sequence[Question], answers: Mapping[str, Answers]) -> float:
    """The temperature that suits the probability of the likeliest right answer, or of none where that is right.

    Questions without a right answer among what was found have no say; where there are only such it is 1.
    """
    rows, gold = [], []
    for question in questions:
        found = answers[question.name]
        if question.answers:
            is_right = [exact_match(candidate.text, question.answers) == 1 for candidate in found.candidates]
        else:
            is_right = [False] * len(found.candidates) + [True]
        if any(is_right):
            rows.append(found.logits)
            gold.append(is_right.index(True))
    if not rows:
        return 1.0
    logits_NxC = np.full((len(rows), max(map(len, rows))), NO_CANDIDATE)
    for number, row in enumerate(rows):
        logits_NxC[number, : len(row)] = row
    return best_temperature(logits_NxC, np.array(gold))


def best_null_threshold(questions: Sequence[Question], answers: Mapping[str, Answers]) -> float:
    """The threshold of `null_score_diff` that gives the best mean F1 (the official evaluate-v2.0.py, find_best_thresh).

    There it is the odds of a question; here it lies between two, so that rounding does not change what is answered.
    """
    odds = np.array([answers[question.name].null_score_diff for question in questions])
    gains = np.array(
        [
            f1(answers[question.name].best_text, question.answers)
            if question.answers
            else -float(bool(answers[question.name].best_text))
            for question in questions
        ]
    )
    order = np.argsort(odds, kind="stable")  # answered first where an answer is likeliest
    bounds = np.concatenate([[odds.min() - 1.0], odds[order], [odds.max() + 1.0]])
    totals = np.concatenate([[0.0], np.cumsum(gains[order])])
    totals[bounds[1:] == bounds[:-1]] = -np.inf  # no threshold lies between equal odds
    best = int(totals.argmax())
    return float(bounds[best] + bounds[best + 1]) / 2
