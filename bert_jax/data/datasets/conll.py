"""Reads column files of labelled words: one word per line, its tag in the last column, empty lines between sentences."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from bert_jax.data.datasets import schemes
from bert_jax.data.datasets.schemes import OUTSIDE, PLAIN, SCHEMES, Entity
from bert_jax.data.text import read_text_lines
from bert_jax.errors import UserError

logger = logging.getLogger(__name__)
DOCUMENT = "-DOCSTART-"
_LINE_END = "\r\n"
_WHITE_SPACE = " \t" + _LINE_END
_SEPARATOR = re.compile(r"[ \t]+")


class Sentence(NamedTuple):
    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int
    line: int = 0  # of the first word in the file; the others follow in the next lines
    entities: tuple[Entity, ...] = ()  # see `in_scheme`


def read_sentences(path: str | Path) -> list[Sentence]:
    """Reads the sentences of a file, with the tags as written.

    Only spaces and tabs separate columns; words may contain other white space. Lines with only white space end sentences;
    -DOCSTART- lines start documents and are not sentences.

    Raises:
      UserError: the file is missing, not text or empty, or a line has no tag or fewer columns than the first word.
    """
    sentences, num_columns = [], 0
    for first_line, document, rows in _rows_of_sentences(path):
        for number, columns in enumerate(rows, first_line):
            if len(columns) < 2:
                raise UserError(f"{path}: line {number} has a word but no tag, separated by a space or tab; fix it")
            num_columns = num_columns or len(columns)
            if len(columns) < num_columns:  # the last value would be of another column
                raise UserError(f"{path}: line {number} has {len(columns)} columns instead of {num_columns}; fix it")
        words, tags = tuple(columns[0] for columns in rows), tuple(columns[-1] for columns in rows)
        sentences.append(Sentence(words, tags, document, first_line))
    return sentences


def scheme_of(path: str | Path, sentences: Sequence[Sentence]) -> str:
    """Detects the tagging scheme of a file (see schemes.py) from all its tags and their order.

    Raises:
      UserError: only some tags, not counting O, have the form of entity tags, or no scheme has all their letters.
    """
    tags = {tag for sentence in sentences for tag in sentence.tags}
    of_entities = schemes.entity_tags(tags)
    if not of_entities:
        if OUTSIDE in tags and len(tags) > 1:
            other = min(tags - {OUTSIDE})
            logger.warning("%s: tags such as O and %s are plain tags, not entities (I-TYPE)", path, other)
        return PLAIN
    remedy = f"fix it, or set data.scheme={PLAIN} if the labels do not mark entities"
    if others := tags - of_entities - {OUTSIDE}:
        tagged = [(line, tag) for sentence in sentences for line, tag in enumerate(sentence.tags, sentence.line)]
        line, tag = next((line, tag) for line, tag in tagged if tag in others)
        raise UserError(f"{path}: line {line}: tag {tag!r} is not an entity tag such as {min(of_entities)}; {remedy}")
    scheme = schemes.scheme_of_sequences(sentence.tags for sentence in sentences)
    if scheme is None:
        letters = ", ".join(sorted({tag[0] for tag in of_entities}))
        raise UserError(f"{path}: tags with {letters} match none of the schemes {', '.join(SCHEMES[:-1])}; {remedy}")
    return scheme


def in_scheme(path: str | Path, sentences: Sequence[Sentence], scheme: str) -> list[Sentence]:
    """Returns the sentences of a file with their entities, and with tags converted to `scheme`.

    With PLAIN they are returned unchanged. In IO, tags cannot separate adjacent entities of one type; `entities` can.

    Raises:
      UserError: the tags match no scheme, or violate its rules.
    """
    file_tags = {tag for sentence in sentences for tag in sentence.tags}
    if scheme == PLAIN or file_tags == {OUTSIDE}:
        return list(sentences)
    file_scheme = scheme_of(path, sentences)
    if file_scheme == PLAIN:
        tag = min(file_tags - {OUTSIDE})
        raise UserError(f"{path}: tags such as {tag!r} mark no entities, but the labels are {scheme}; use another file")
    converted, irregular = list[Sentence](), 0
    for sentence in sentences:
        marked, length = tuple(schemes.entities(sentence.tags, file_scheme)), len(sentence.words)
        pairs = zip(sentence.tags, schemes.tags_of(marked, length, file_scheme), strict=True)
        changed = [(line, tag) for line, (tag, regular) in enumerate(pairs, sentence.line) if tag != regular]
        if changed and file_scheme not in ("IO", "IOB1", "IOB2"):
            line, tag = changed[0]
            problem = f"tag {tag!r} is not part of a complete entity in {file_scheme}"
            raise UserError(f"{path}: line {line}: {problem}; fix it")
        irregular += len(changed)
        tags = schemes.tags_of(marked, length, scheme)
        converted.append(sentence._replace(tags=tuple(tags), entities=marked))
    if irregular:
        logger.info("%s: %d tags violate the rules of %s and are read leniently", path, irregular, file_scheme)
    if file_scheme != scheme:
        logger.info("%s: tags are converted from %s to %s, the scheme of the labels", path, file_scheme, scheme)
    return converted


def is_columns(path: str) -> bool:
    """Checks by its name whether a file has columns."""
    return Path(path).suffix.lower() == ".conll"


def read_words(path: str | Path) -> Iterator[tuple[list[str], int]]:
    """Yields the words of each sentence and the number of its document; words are in the first column.

    Raises:
      UserError: the file is missing, not UTF-8 or empty.
    """
    for _, document, rows in _rows_of_sentences(path):
        yield [columns[0] for columns in rows], document


def with_predictions(path: str | Path, tags: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a file with an additional column: the predicted tags of its words.

    Raises:
      UserError: the numbers of words and tags differ.
    """
    predicted = chain.from_iterable(tags)
    changed = UserError(f"{path}: has changed since it was read; predict again")
    for line in read_text_lines(Path(path)):
        if not _is_word(_columns(line)):
            yield line
            continue
        content, end = line.rstrip(_WHITE_SPACE), line[len(line.rstrip(_LINE_END)) :]
        if (tag := next(predicted, None)) is None:
            raise changed
        separator = "\t" if "\t" in line else " "
        yield f"{content}{separator}{tag}{end}"
    if next(predicted, None) is not None:
        raise changed


def _rows_of_sentences(path: str | Path) -> Iterator[tuple[int, int, list[list[str]]]]:
    """Yields the first line of each sentence, the number of its document, and the columns of its words."""
    rows, document, is_empty = list[list[str]](), 0, True
    for number, line in enumerate(chain(read_text_lines(Path(path)), [""]), 1):
        columns = _columns(line)
        if _is_word(columns):
            rows.append(columns)
            continue
        if rows:
            yield number - len(rows), document, rows
            rows, is_empty = [], False
        document += bool(columns)
    if is_empty:
        raise UserError(f"{path}: contains no sentences; use another file")


def _columns(line: str) -> list[str]:
    return _SEPARATOR.split(line.strip(_WHITE_SPACE)) if line.strip() else []


def _is_word(columns: list[str]) -> bool:
    return bool(columns) and columns[0] != DOCUMENT
