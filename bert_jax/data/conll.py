"""Column files of labelled words: one word a line, its tag in the last column, a blank line after each sentence."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from operator import ne
from pathlib import Path
from typing import NamedTuple

from bert_jax.data.tables import read_lines, read_text
from bert_jax.errors import UserError

DOCUMENT = "-DOCSTART-"
OUTSIDE = "O"
_LINE_END = "\r\n"
_BLANKS = " \t" + _LINE_END
_SEPARATOR = re.compile(r"[ \t]+")


class Sentence(NamedTuple):
    words: tuple[str, ...]
    tags: tuple[str, ...]  # BIO: B-TYPE begins an entity, I-TYPE goes on with it
    document: int
    line: int = 0  # of the first word in the file
    mended: int = 0  # entities that begin with I- there


def read_sentences(path: str | Path) -> list[Sentence]:
    """The sentences of a file whose tags are BIO or IOB1 (of CoNLL-2003: an entity begins with I-, unless one of the same
    type ends right before it). Columns are separated by blanks or tabs, and by no other white space: a word may hold it. A
    line of white space alone is a blank line; -DOCSTART- lines begin documents and are no sentences.

    Raises:
      UserError: the file is missing, not UTF-8 or empty, or a line has no tag or one of another scheme.
    """
    path = Path(path)
    sentences, words, tags, document = [], list[str](), list[str](), 0
    for number, line in enumerate([*read_text(path).split("\n"), ""], 1):
        columns = _columns(line)
        if _is_word(columns):
            if len(columns) < 2:
                raise UserError(f"{path}: line {number} has a word and no tag behind a blank or a tab; mend it")
            if not is_tag(columns[-1]):
                raise UserError(
                    f"{path}: line {number}: tag {columns[-1]!r} is none of O, B-TYPE, I-TYPE; convert the file"
                )
            words.append(columns[0])
            tags.append(columns[-1])
            continue
        if words:
            bio = tuple(as_bio(tags))
            mended = sum(map(ne, tags, bio))
            sentences.append(Sentence(tuple(words), bio, document, number - len(words), mended))
            words, tags = [], []
        document += bool(columns)
    if not sentences:
        raise UserError(f"{path}: holds no sentences; name a file with some")
    return sentences


def is_columns(path: str) -> bool:
    """Whether a file that may hold anything is one of columns, by its name."""
    return Path(path).suffix.lower() == ".conll"


def read_words(path: str | Path) -> Iterator[tuple[list[str], int]]:
    """The words of each sentence of a file and the number of its document, a sentence at a time.

    A word is what is in the first column, whatever others there are.

    Raises:
      UserError: the file is missing, not UTF-8 or empty.
    """
    words, document, is_empty = list[str](), 0, True
    for line in itertools.chain(read_lines(Path(path)), [""]):
        columns = _columns(line)
        if _is_word(columns):
            words.append(columns[0])
            continue
        if words:
            yield words, document
            words, is_empty = [], False
        document += bool(columns)
    if is_empty:
        raise UserError(f"{path}: holds no sentences; name a file with some")


def with_predictions(path: str | Path, tags: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a file with one column more, the tags predicted for the words of its sentences. None changes its place.

    Raises:
      UserError: there are more words in it than tags, or fewer.
    """
    predicted = itertools.chain.from_iterable(tags)
    changed = UserError(f"{path}: has changed since it was read; predict again")
    for line in read_lines(Path(path)):
        if not _is_word(_columns(line)):
            yield line
            continue
        content, end = line.rstrip(_BLANKS), line[len(line.rstrip(_LINE_END)) :]
        if (tag := next(predicted, None)) is None:
            raise changed
        separator = "\t" if "\t" in line else " "
        yield f"{content}{separator}{tag}{end}"
    if next(predicted, None) is not None:
        raise changed


def _columns(line: str) -> list[str]:
    return _SEPARATOR.split(line.strip(_BLANKS)) if line.strip() else []


def _is_word(columns: list[str]) -> bool:
    return bool(columns) and columns[0] != DOCUMENT


def is_tag(label: str) -> bool:
    """Whether it is O, B-TYPE or I-TYPE."""
    return label == OUTSIDE or (label[:2] in ("B-", "I-") and len(label) > 2)


def as_bio(tags: Sequence[str]) -> list[str]:
    """Tags in which every entity begins with B-: an I- that goes on with nothing becomes one."""
    found = list[str]()
    for tag in tags:
        before = found[-1] if found else OUTSIDE
        goes_on = tag[:2] == "I-" and before[2:] == tag[2:] and before != OUTSIDE
        found.append(tag if tag == OUTSIDE or goes_on else f"B-{tag[2:]}")
    return found


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, word after the last) of the entities of BIO tags."""
    found = list[tuple[str, int, int]]()
    for place, tag in enumerate(as_bio(tags)):
        if tag[:2] == "B-":
            found.append((tag[2:], place, place + 1))
        elif tag[:2] == "I-":
            found[-1] = (*found[-1][:2], place + 1)
    return found
