"""Column files of labelled words: one word a line, its tag in the last column, an empty line after each sentence."""

import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from operator import ne
from pathlib import Path
from typing import NamedTuple

from bert_jax.data.datasets.schemes import (
    OUTSIDE,
    PLAIN,
    SCHEMES,
    Entity,
    entities,
    entity_tags,
    scheme_of_sequences,
    tags_of,
)
from bert_jax.data.text import read_lines
from bert_jax.errors import UserError

logger = logging.getLogger(__name__)
DOCUMENT = "-DOCSTART-"
_LINE_END = "\r\n"
_BLANKS = " \t" + _LINE_END
_SEPARATOR = re.compile(r"[ \t]+")


class Sentence(NamedTuple):
    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int
    line: int = 0  # of the first word in the file; the others follow in the next lines
    entities: tuple[Entity, ...] = ()  # see `in_scheme`


def read_sentences(path: str | Path) -> list[Sentence]:
    """Reads the sentences of a file, with the tags as written.

    Columns are separated by spaces or tabs, and by no other white space: a word may hold it. A line of white space alone ends a
    sentence; -DOCSTART- lines begin documents and are not sentences.

    Raises:
      UserError: the file is missing, not text or empty, or a line has no tag, or fewer columns than the first word.
    """
    path = Path(path)
    sentences, words, tags, document, most = [], list[str](), list[str](), 0, 0
    for number, line in enumerate(itertools.chain(read_lines(path), [""]), 1):
        columns = _columns(line)
        if _is_word(columns):
            if len(columns) < 2:
                raise UserError(f"{path}: line {number} has a word and no tag after a space or a tab; fix it")
            most = most or len(columns)
            if len(columns) < most:  # the last of fewer is another column's value
                raise UserError(f"{path}: line {number} has {len(columns)} columns, the first word has {most}; fix it")
            words.append(columns[0])
            tags.append(columns[-1])
            continue
        if words:
            sentences.append(Sentence(tuple(words), tuple(tags), document, number - len(words)))
            words, tags = [], []
        document += bool(columns)
    if not sentences:
        raise UserError(f"{path}: holds no sentences; name a file with some")
    return sentences


def scheme_of(path: str | Path, sentences: Sequence[Sentence]) -> str:
    """Detects the tagging scheme of a file (see schemes.py) from all of its tags and their order.

    Raises:
      UserError: some tags have the form of entity tags and others, except O, do not, or no scheme has all of their letters.
    """
    tags = {tag for sentence in sentences for tag in sentence.tags}
    of_entities = entity_tags(tags)
    if not of_entities:
        if OUTSIDE in tags and len(tags) > 1:
            logger.warning("%s: tags are O and %s: read as plain tags, not as entities (I-TYPE)", path, _other(tags))
        return PLAIN
    remedy = f"fix it, or set data.scheme={PLAIN} for labels that mark no entities"
    if others := tags - of_entities - {OUTSIDE}:
        line, tag = _first(sentences, others)
        raise UserError(
            f"{path}: line {line}: tag {tag!r} does not have the form of the others, such as {min(of_entities)}; {remedy}"
        )
    scheme = scheme_of_sequences(sentence.tags for sentence in sentences)
    if scheme is None:
        letters = ", ".join(sorted({tag[0] for tag in of_entities}))
        raise UserError(f"{path}: tags with {letters} fit none of the schemes {', '.join(SCHEMES[:-1])}; {remedy}")
    return scheme


def in_scheme(path: str | Path, sentences: Sequence[Sentence], scheme: str) -> list[Sentence]:
    """Returns the sentences of a file with their entities, and with tags converted to `scheme`.

    With PLAIN they are returned unchanged. IO cannot separate adjacent entities of one type: only `entities` does.

    Raises:
      UserError: the tags of the file fit no scheme, or do not follow its rules.
    """
    tags_there = {tag for sentence in sentences for tag in sentence.tags}
    if scheme == PLAIN or tags_there == {OUTSIDE}:
        return list(sentences)
    there = scheme_of(path, sentences)
    if there == PLAIN:
        tag = _other(tags_there)
        raise UserError(
            f"{path}: tags such as {tag!r} mark no entities, but the labels are {scheme}; name another file"
        )
    converted, irregular = list[Sentence](), 0
    for sentence in sentences:
        found = tuple(entities(sentence.tags, there))
        regular = tags_of(found, len(sentence.words), there)
        if changed := [place for place, pair in enumerate(zip(sentence.tags, regular, strict=True)) if ne(*pair)]:
            if there not in ("IO", "IOB1", "IOB2"):
                line, tag = sentence.line + changed[0], sentence.tags[changed[0]]
                raise UserError(f"{path}: line {line}: tag {tag!r} is not part of a complete entity in {there}; fix it")
            irregular += len(changed)
        tags = tags_of(found, len(sentence.words), scheme)
        converted.append(sentence._replace(tags=tuple(tags), entities=found))
    if irregular:
        logger.info("%s: %d tags are not as %s requires; they are read nevertheless", path, irregular, there)
    if there != scheme:
        logger.info("%s: its tags are %s; they are converted to %s, the scheme of the labels", path, there, scheme)
    return converted


def _other(tags: set[str]) -> str:
    return min(tags - {OUTSIDE}, default=OUTSIDE)


def _first(sentences: Sequence[Sentence], tags: set[str]) -> tuple[int, str]:
    """Returns the line and the tag of the first occurrence of any of `tags`."""
    return next(
        (sentence.line + place, tag) for sentence in sentences for place, tag in enumerate(sentence.tags) if tag in tags
    )


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
