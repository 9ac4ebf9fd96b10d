"""Inputs to try on the page: short texts that a run was evaluated on, from the predictions in its folder."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from bert_jax.data.datasets.conll import read_sentences
from bert_jax.errors import UserError
from bert_jax.files import decode_json, read_lines
from bert_jax.run_folder.folder import PREDICTIONS

logger = logging.getLogger(__name__)
MOST_EXAMPLES = 4
MOST_ROWS = 1000  # of a file that are looked at
MOST_CHARACTERS = 160  # of an example


class _Row(TypedDict):
    """A line of validation.jsonl (see tasks/finetuning/texts.py); other fields are not needed."""

    texts: list[str]
    label: str | list[str] | float


class _Example(NamedTuple):
    texts: Sequence[str]
    label: str  # examples with different ones are preferred


def examples_of(folder: Path, fields: Sequence[str]) -> list[dict[str, str]]:
    """Returns up to `MOST_EXAMPLES` inputs of a run, texts by field; none if its predictions hold no texts.

    Damaged predictions are logged, and none are returned: a run can be served without them.
    """
    texts, words = (folder / PREDICTIONS / f"validation.{ending}" for ending in ("jsonl", "conll"))
    try:
        if texts.exists():
            return _chosen(_of_texts(texts), fields)
        return _chosen(_of_words(words), fields) if words.exists() else []
    except (UserError, ValueError) as error:
        logger.warning("no examples from the run's predictions: %s", error)
        return []


def _of_texts(path: Path) -> Iterator[_Example]:
    for line in read_lines(path):
        row = decode_json(line, _Row)
        yield _Example(row["texts"], str(row["label"]))


def _of_words(path: Path) -> Iterator[_Example]:
    """Yields sentences; the label of one with entities is the first of them."""
    for sentence in read_sentences(path):
        yield _Example([" ".join(sentence.words)], next((tag for tag in sentence.tags if tag != "O"), "O"))


def _chosen(examples: Iterable[_Example], fields: Sequence[str]) -> list[dict[str, str]]:
    """Returns the first short example of each label, and then the next ones."""
    rows = [
        example
        for example in itertools.islice(examples, MOST_ROWS)
        if len(example.texts) == len(fields)
        and all(map(str.strip, example.texts))
        and sum(map(len, example.texts)) <= MOST_CHARACTERS
    ]
    first = {example.label: number for number, example in reversed([*enumerate(rows)])}
    numbers = sorted(range(len(rows)), key=lambda number: (first[rows[number].label] != number, number))
    return [dict(zip(fields, rows[number].texts, strict=True)) for number in numbers[:MOST_EXAMPLES]]
