"""Reads questions in SQuAD's JSON format (Rajpurkar et al. 2016, 2018), and scores answers by its official rules."""

import logging
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.data.text import decoded
from bert_jax.errors import UserError, listed
from bert_jax.files import decode_json, read_bytes

logger = logging.getLogger(__name__)
_LARGEST_FILE = 1 << 27  # bytes; the training set of SQuAD 2.0 has 42 MB, and needs several times that in memory
_KINDS = {list: "a list", str: "a text", str | int: "a text", bool: "true or false", int: "an integer"}  # of JSON


class Question(NamedTuple):
    name: str  # its id
    question: str
    context: str
    answers: tuple[str, ...]  # gold answers; empty for unanswerable questions
    start: int  # of the first answer, in characters of the context; -1 without one


def read_questions(path: str | Path, for_training: bool = True) -> list[Question]:
    """Reads the questions of a file; for training, skips those whose answer is not at `answer_start`, with a warning.

    A question is unanswerable if `answers` is empty or `is_impossible` is true.

    Raises:
      UserError: the file is missing, not UTF-8 or not in SQuAD's format, or has no questions or duplicate ids.
    """
    path = Path(path)
    try:
        text = decoded(read_bytes(path, "use a file in SQuAD's format", _LARGEST_FILE), path)
        content = decode_json(text.removeprefix("\ufeff"))
    except ValueError as error:
        raise UserError(f"{path}: not a file in SQuAD's format: {error}; compare it with the official files") from None
    questions, misplaced = list[Question](), 0
    for question in _questions(content, path):
        if not question.context.strip():
            raise UserError(f"{path}: the context of question {question.name} is empty; fix it")
        is_placed = not question.answers or question.context.startswith(question.answers[0], question.start)
        if is_placed or not for_training:
            questions.append(question)
        else:
            misplaced += 1
    if misplaced:
        logger.warning("%s: skipped %d questions whose answers are not at answer_start", path, misplaced)
    if not questions:
        raise UserError(f"{path}: contains no usable questions; use another file")
    counts = Counter(question.name for question in questions)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"{path}: {len(repeated)} duplicate ids, e.g. {repeated[0]}; fix them")
    return questions


def _questions(content: Any, path: Path) -> Iterator[Question]:
    for article, of_article in enumerate(_field(content, "data", list, f"{path}: it"), 1):
        place = f"{path}: article {article}"
        for number, paragraph in enumerate(_field(of_article, "paragraphs", list, place), 1):
            of_paragraph = f"{place}, paragraph {number}"
            entries = _field(paragraph, "qas", list, of_paragraph)
            context = _field(paragraph, "context", str, of_paragraph)
            for entry in entries:
                name = str(_field(entry, "id", str | int, f"{of_paragraph}: a question"))
                yield _question(entry, name, context, f"{path}: question {name}")


def _question(entry: Any, name: str, context: str, place: str) -> Question:
    question = _field(entry, "question", str, place)
    if "is_impossible" in entry and _field(entry, "is_impossible", bool, place):
        return Question(name, question, context, (), -1)
    answers = _field(entry, "answers", list, place, "; if there is no answer, set it to [] or 'is_impossible' to true")
    texts = [_field(answer, "text", str, f"{place}: an answer") for answer in answers]
    starts = [_field(answer, "answer_start", int, f"{place}: an answer") for answer in answers]
    if not all(text.strip() for text in texts):
        raise UserError(f"{place}: the text of an answer is empty; if there is no answer, set 'answers' to []")
    return Question(name, question, context, tuple(texts), starts[0] if starts else -1)


def _field(holder: Any, name: str, kind: Any, place: str, remedy: str = "; compare it with the official files") -> Any:
    """Returns the value of a key of a JSON object. Raises UserError if it is missing or of another type."""
    if not isinstance(holder, dict):
        raise UserError(f"{place} is {str(holder)[:40]!r}, not an object; this is not a file in SQuAD's format")
    if name not in holder:
        raise UserError(f"{place} has no {name!r}, only {listed(list(holder)) or 'nothing'}{remedy}")
    value = holder[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{place}: {name!r} is {str(value)[:40]!r}, not {_KINDS[kind]}{remedy}")
    return value


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Returns text in lower case without punctuation, articles and extra white space (Rajpurkar et al. 2016, section 6.1)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """Returns 1 if the answer equals a gold answer or, without gold answers, is empty; else 0."""
    return float(normalised(answer) in {normalised(text) for text in _counted(gold)})


def f1(answer: str, gold: Sequence[str]) -> float:
    """Returns the highest F1 of words with a gold answer; if either is empty, 1 if both are."""
    words = normalised(answer).split()

    def overlap(other: list[str]) -> float:
        if not words or not other:
            return float(words == other)
        common = sum((Counter(words) & Counter(other)).values())
        return 2 * common / (len(words) + len(other))

    return max(overlap(normalised(text).split()) for text in _counted(gold))


def _counted(gold: Sequence[str]) -> list[str]:
    return [text for text in gold if normalised(text)] or [""]


def scores(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, float]:
    """Returns exact match and F1 in percent; in SQuAD 2.0 also for the questions with and without an answer.

    Results equal those of the official evaluate-v2.0.py, whose `HasAns_f1` is `HasAns/f1` here. On SQuAD 1.1 they equal
    those of evaluate-v1.1.py, except if both the answer and a gold answer are empty after normalisation: there exact match
    is 1 and F1 is 0. Here, as in 2.0, empty gold answers count only if there are no others: both scores are 0, else 1.

    Args:
      questions: as read, not for training.
      answers: answer of each question by id, '' for no answer.

    Raises:
      KeyError: a question has no answer (evaluate-v1.1.py counts 0).
    """
    parts: dict[str, Sequence[Question]] = {"": questions}
    if unanswerable := [question for question in questions if not question.answers]:  # SQuAD 2.0
        parts |= {"HasAns/": [question for question in questions if question.answers], "NoAns/": unanswerable}
    results = {}
    for part, members in parts.items():
        for name, score in (("f1", f1), ("exact", exact_match)):
            values = [score(answers[question.name], question.answers) for question in members]
            results[f"{part}{name}"] = 100 * sum(values) / max(1, len(values))
    return results
