"""The words of a plain text: what blanks separate, without the punctuation around it, or those that are given with it."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from bert_jax.errors import UserError

_CHUNK = re.compile(r"\S+")


class Word(NamedTuple):
    text: str
    start: int  # characters of the text that it is cut from
    end: int


def words_of(text: str) -> list[Word]:
    """Cuts a text at white space, and each punctuation mark or symbol at the ends of what lies between off as a word.

    What stands within stays: don't, 3.5, state-of-the-art. So does the stop that ends an abbreviation with others in it:
    U.N. Combining marks and invisible characters belong to what they follow. Every character but white space is in one word.
    """
    return [
        Word(text[start:end], start, end)
        for chunk in _CHUNK.finditer(text)
        for start, end in pairwise(chunk.start() + cut for cut in _cuts(chunk[0]))
    ]


def located(words: Iterable[str], text: str) -> list[Word] | None:
    """The words that a text is already cut into, where they stand in it; None if it is more than these and white space."""
    found, end = list[Word](), 0
    for word in words:
        start = text.find(word, end)
        if not word or start < 0 or text[end:start].strip():
            return None
        end = start + len(word)
        found.append(Word(word, start, end))
    return None if text[end:].strip() else found


def words_in(values: dict[str, Any]) -> list[Word]:
    """Returns the words of an input of `predict`. Raises UserError for a list of words that is not its text, cut."""
    text, words = values["text"], values.get("words")
    if not isinstance(words, list):
        return words_of(text)
    if not all(isinstance(word, str) for word in words) or (found := located(words, text)) is None:
        raise UserError(
            f"words {str(words)[:80]}: are not those of the text {text[:80]!r}; fix them, or leave them out"
        )
    return found


def _cuts(chunk: str) -> list[int]:
    """Where the words of a chunk begin, and its end."""
    categories = [unicodedata.category(character) for character in chunk]
    bases = [place for place, category in enumerate(categories) if category[0] != "M" and category != "Cf"]
    bounds = [0, *bases[1:], len(chunk)]  # of characters with all that belongs to them
    is_mark = [categories[place][0] in "PS" for place in bases]
    if all(is_mark):
        return bounds
    first, after = is_mark.index(False), len(is_mark) - is_mark[::-1].index(False)
    core = chunk[bounds[first] : bounds[after]]
    # Of "3.5." the last stop ends the sentence.
    if chunk.startswith(".", bounds[after]) and "." in core and not chunk[bases[after - 1]].isdigit():
        after += 1
    return [*bounds[: first + 1], *bounds[after:]]
