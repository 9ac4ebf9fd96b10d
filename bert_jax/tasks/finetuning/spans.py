"""Windows over the contexts of questions, and answers from the logits of all windows of a question.

The rules are those of google-research/bert run_squad.py, except for what `answer_tokens`, `rank_answers` and `rank_spans`
document. Above all, spans are located by the characters of each token, so answers are exact substrings of the context.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from bert_jax.data.datasets.squad import Question, exact_match, f1
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.data.words import whole_characters
from bert_jax.tasks.common.packing import Item, joined
from bert_jax.tasks.finetuning.scores import best_temperature

logger = logging.getLogger(__name__)
NO_CANDIDATE = -1e9  # logit of a missing candidate


class Window(NamedTuple):
    """A question and consecutive tokens of its context."""

    item: Item
    question: int  # index of the question
    first: int  # index of the first token of the context within the item
    offsets: np.ndarray  # int [tokens of the context, 2]: first character, and last + 1, of each token in the context
    is_best: np.ndarray  # bool [tokens of the context]: whether this window has the most context around the token


class Candidate(NamedTuple):
    text: str
    start: int  # characters of the context
    end: int
    logit: float  # sum for start and end


@dataclasses.dataclass(frozen=True)
class Answers:
    """Candidate answers of a question, best first."""

    candidates: tuple[Candidate, ...]
    null_logit: float  # logit of "no answer": the lowest of all windows

    @property
    def null_score_diff(self) -> float:
        """Logit of "no answer" minus that of the best candidate."""
        return self.null_logit - (self.candidates[0].logit if self.candidates else NO_CANDIDATE)

    def text(self, threshold: float | None) -> str:
        """Returns the best answer; '' if there is none, or null_score_diff exceeds the threshold, if any."""
        declines = threshold is not None and self.null_score_diff > threshold
        return self.candidates[0].text if self.candidates and not declines else ""

    @property
    def logits(self) -> np.ndarray:
        """Logits of the candidates and, last, of "no answer"."""
        return np.array([*(candidate.logit for candidate in self.candidates), self.null_logit])

    def probabilities(self, temperature: float) -> list[float]:
        """Returns the probabilities of the candidates and, last, of "no answer"."""
        return special.softmax(self.logits / temperature).tolist()

    def to_json(self, temperature: float) -> list[dict[str, Any]]:
        """Returns the candidates with their probabilities."""
        pairs = zip(self.candidates, self.probabilities(temperature)[:-1], strict=True)
        return [candidate._asdict() | {"probability": probability} for candidate, probability in pairs]


def make_windows(
    tokenizer: Tokenizer, questions: Sequence[Question], length: int, doc_stride: int, max_query_length: int
) -> list[Window]:
    """Returns windows of at most `length` tokens over each question's context, `doc_stride` tokens apart.

    If an answer is not completely in a window, its span there is the first token, [CLS]. Leading white space of questions is
    removed, as in transformers' run_qa.py, because byte-level BPE would make tokens of it. Trailing white space stays, as in
    that script: 334 of the 10,570 questions of SQuAD 1.1's development set end with a space, and imported models were trained
    with its token.
    """
    question_ids = tokenizer.encode([question.question.lstrip() for question in questions])
    if cut := sum(len(ids) > max_query_length for ids in question_ids):
        logger.warning("%d questions have more than %d tokens and are cut", cut, max_query_length)
    question_ids = [ids[:max_query_length] for ids in question_ids]
    contexts = list(dict.fromkeys(question.context for question in questions))
    encoded = dict(zip(contexts, tokenizer.encode_with_offsets(contexts), strict=True))
    windows = []
    for number, (question, query) in enumerate(zip(questions, question_ids, strict=True)):
        ids, offsets = encoded[question.context]
        size = length - len(query) - tokenizer.num_special_tokens(2)
        starts = [0]
        while starts[-1] + size < len(ids):
            starts.append(starts[-1] + doc_stride)
        bounds = [(start, min(start + size, len(ids))) for start in starts]
        first = 1 + len(query) + tokenizer.separators_between
        answer = answer_tokens(question, offsets)
        for (start, end), is_best in zip(bounds, most_context(bounds), strict=True):
            is_inside = answer is not None and start <= answer[0] and answer[1] < end
            span = np.array(answer, np.int32) - start + first if is_inside else np.zeros(2, np.int32)
            item = Item(joined(tokenizer, query, ids[start:end]), {"spans": span})
            windows.append(Window(item, number, first, offsets[start:end], is_best))
    return windows


def answer_tokens(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """Returns the first and the last token that overlap the answer; None if there is no answer, or no such token.

    `offsets` [n, 2] are those of all n tokens of the context. If an answer is only a part of words, run_squad.py instead
    searches their tokens for a sequence that spells it, and otherwise takes the whole words.
    """
    if not question.answers:
        return None
    begin, end = question.start, question.start + len(question.answers[0])
    overlapping = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > begin))
    return (int(overlapping[0]), int(overlapping[-1])) if len(overlapping) else None


def most_context(bounds: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Returns for each token of each window whether this is the first window with the most context around the token.

    `bounds` are (first token, last token + 1) of the windows. The context is min(left, right) + 0.01 * length of the window.
    """
    most = np.full(max(end for _, end in bounds), -1.0)
    best = np.zeros(len(most), np.int32)
    for number, (start, end) in enumerate(bounds):
        tokens = np.arange(start, end)
        context = np.minimum(tokens - start, end - 1 - tokens) + 0.01 * (end - start)
        is_more = context > most[start:end]
        most[start:end][is_more] = context[is_more]
        best[start:end][is_more] = number
    return [best[start:end] == number for number, (start, end) in enumerate(bounds)]


def rank_answers(
    questions: Sequence[Question],
    windows: Sequence[Window],
    logits: Sequence[np.ndarray],
    n_best_size: int,
    max_answer_length: int,
) -> dict[str, Answers]:
    """Returns the answers to each question by id, from the logits of start and end [n, 2] of each window's tokens.

    As in run_squad.py, an answer starts in the window with the most context around its first token, and the logit of "no
    answer" is the lowest of all windows. That script takes the `n_best_size` starts and ends from all tokens of a window and
    then drops those outside the context; here they are taken from the context only, so more spans are tried.
    """
    spans: list[dict[tuple[int, int], float]] = [{} for _ in questions]
    null_logits = np.full(len(questions), np.inf)
    for window, window_logits in zip(windows, logits, strict=True):
        null_logits[window.question] = min(null_logits[window.question], float(window_logits[0].sum()))
        context_logits = window_logits[window.first : window.first + len(window.offsets)]
        for start, end, logit in window_spans(context_logits, window.is_best, n_best_size, max_answer_length):
            characters = int(window.offsets[start, 0]), int(window.offsets[end, 1])
            known = spans[window.question].get(characters, -np.inf)
            spans[window.question][characters] = max(known, logit)
    return {
        question.name: rank_spans(question.context, question_spans, float(null_logit), n_best_size)
        for question, question_spans, null_logit in zip(questions, spans, null_logits, strict=True)
    }


def window_spans(
    logits: np.ndarray, is_best: np.ndarray, n_best_size: int, max_answer_length: int
) -> list[tuple[int, int, float]]:
    """Returns first token, last token and logit of the spans between the likeliest starts and ends of a window."""
    starts, ends = (np.argsort(-logits[:, side], kind="stable")[:n_best_size] for side in range(2))
    starts = starts[is_best[starts]]
    lengths = ends[None, :] - starts[:, None] + 1
    chosen = np.argwhere((lengths > 0) & (lengths <= max_answer_length))
    return [
        (int(starts[i]), int(ends[j]), float(logits[starts[i], 0] + logits[ends[j], 1])) for i, j in chosen.tolist()
    ]


def rank_spans(context: str, spans: Mapping[tuple[int, int], float], null_logit: float, n_best_size: int) -> Answers:
    """Returns the `n_best_size` likeliest texts, each with its best span.

    Differences from run_squad.py: Texts are compared as written, not after white space is collapsed. "No answer" is always
    part of the softmax and never one of the n best; there it is both, but only for SQuAD 2.0. Without any span the answer is
    "", not "empty". Answers are whole grapheme clusters; there they end with the last token, maybe before a combining mark
    that the tokenizer removed.
    """
    best: dict[str, tuple[int, int, float]] = {}
    for (start, end), logit in sorted(spans.items(), key=lambda entry: -entry[1]):
        end = start + len(context[start:end].rstrip())  # tokens may consist of spaces only
        if start < end:
            start, end = whole_characters(context, start, end)
            best.setdefault(context[start:end], (start, end, logit))
    kept = list(best.items())[:n_best_size]
    return Answers(tuple(Candidate(text, *span) for text, span in kept), null_logit)


def best_answer_temperature(questions: Sequence[Question], answers: Mapping[str, Answers]) -> float:
    """Returns the temperature with the lowest loss of the likeliest correct answer, which may be "no answer".

    Questions without a correct candidate are ignored; the result is 1 if there are no others.
    """
    rows, gold = [], []
    for question in questions:
        ranked = answers[question.name]
        if question.answers:
            is_correct = [exact_match(candidate.text, question.answers) == 1 for candidate in ranked.candidates]
        else:
            is_correct = [False] * len(ranked.candidates) + [True]
        if any(is_correct):
            rows.append(ranked.logits)
            gold.append(is_correct.index(True))
    if not rows:
        return 1.0
    logits_NxC = np.full((len(rows), max(map(len, rows))), NO_CANDIDATE)
    for number, row in enumerate(rows):
        logits_NxC[number, : len(row)] = row
    return best_temperature(logits_NxC, np.array(gold))


def best_null_threshold(questions: Sequence[Question], answers: Mapping[str, Answers]) -> float:
    """Returns the threshold of `null_score_diff` with the best mean F1 (the official evaluate-v2.0.py, find_best_thresh).

    In that script it equals the value of a question; here it is between two values, so that rounding does not matter.
    """
    texts = [answers[question.name].text(None) for question in questions]
    diffs = np.array([answers[question.name].null_score_diff for question in questions])
    pairs = zip(texts, questions, strict=True)
    # In total F1, if the question is answered.
    gains = np.array([f1(text, asked.answers) if asked.answers else -float(bool(text)) for text, asked in pairs])
    order = np.argsort(diffs, kind="stable")  # from the most to the least answerable
    bounds = np.concatenate([[diffs.min() - 1.0], diffs[order], [diffs.max() + 1.0]])
    totals = np.concatenate([[0.0], np.cumsum(gains[order])])
    totals[bounds[1:] == bounds[:-1]] = -np.inf  # no threshold lies between equal values
    best = int(totals.argmax())
    return float(bounds[best] + bounds[best + 1]) / 2
