"""Splits plain text into words and punctuation, and finds the boundaries of grapheme clusters (user-perceived characters)."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise, takewhile
from typing import Any, NamedTuple

from bert_jax.errors import UserError

_JOINER = "\u200d"  # joins emoji


class Word(NamedTuple):
    text: str
    start: int  # in characters of the text
    end: int


def words_of(text: str) -> list[Word]:
    """Splits a text at white space, and each leading or trailing punctuation mark or symbol off as a word of its own.

    Inner marks stay: don't, 3.5, state-of-the-art. So does the last full stop of an abbreviation such as U.N. Combining
    marks and invisible characters belong to the character before. Every character except white space is in one word.
    """
    return [
        Word(text[start:end], start, end)
        for chunk in re.finditer(r"\S+", text)
        for start, end in pairwise(chunk.start() + cut for cut in _cuts(chunk[0]))
    ]


def locate(words: Iterable[str], text: str) -> list[Word] | None:
    """Finds the positions of the words of a text; None if it does not consist of these words and white space."""
    located, end = list[Word](), 0
    for word in words:
        start = text.find(word, end)
        if not word or start < 0 or text[end:start].strip():
            return None
        end = start + len(word)
        located.append(Word(word, start, end))
    return None if text[end:].strip() else located


def words_in(values: dict[str, Any]) -> list[Word]:
    """Returns the words of an input of `predict`. Raises UserError if its `words` do not make up its `text`."""
    text, words = values["text"], values.get("words")
    if not isinstance(words, list):
        return words_of(text)
    if not all(isinstance(word, str) for word in words) or (located := locate(words, text)) is None:
        raise UserError(f"words {str(words)[:80]} do not make up the text {text[:80]!r}; fix them, or leave them out")
    return located


def continues(text: str, place: int) -> bool:
    """Checks whether the character at `place` is in the same grapheme cluster as the one before.

    True for combining marks (categories Mn, Mc and Me: accents, vowel signs, variation selectors, keycaps), vowels and final
    consonants of decomposed Hangul, skin tones of emoji, tag characters (in flags of regions), the zero-width joiner, a
    symbol after a joiner, and the second letter of a flag. These are the rules GB6 to GB9a and GB11 to GB13 of Unicode's
    annex 29; GB9b and GB9c (letters joined by a prefix or a virama) are not covered.
    """
    character = text[place]
    if _extends(character) or character == _JOINER:
        return True
    if _is_flag_letter(character):
        before = len(list(takewhile(_is_flag_letter, reversed(text[:place]))))
        return before % 2 == 1
    if not unicodedata.category(character).startswith("S") or text[max(0, place - 1)] != _JOINER:
        return False
    joined = next((other for other in reversed(text[: place - 1]) if not _extends(other)), " ")
    return unicodedata.category(joined).startswith("S")


def _extends(character: str) -> bool:
    is_tone, is_tag = "\U0001f3fb" <= character <= "\U0001f3ff", "\U000e0020" <= character <= "\U000e007f"
    is_part = "\u1160" <= character <= "\u11ff"  # of a syllable of Hangul
    return is_tone or is_tag or is_part or unicodedata.category(character).startswith("M")


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def whole_characters(text: str, start: int, end: int) -> tuple[int, int]:
    """Extends a non-empty span on both sides to whole grapheme clusters (see `continues`)."""
    while start > 0 and continues(text, start) and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and continues(text, end):
        end += 1
    return start, end


def _cuts(chunk: str) -> list[int]:
    """Returns where the words of a chunk begin, and its end."""
    categories = [unicodedata.category(character) for character in chunk]
    bases = [place for place, category in enumerate(categories) if category != "Cf" and not continues(chunk, place)]
    bounds = [0, *bases[1:], len(chunk)]  # of grapheme clusters
    is_mark = [categories[place][0] in "PS" for place in bases]
    if all(is_mark):
        return bounds
    first, after = is_mark.index(False), len(is_mark) - is_mark[::-1].index(False)
    core = chunk[bounds[first] : bounds[after]]
    # The last full stop of "3.5." ends the sentence.
    if chunk.startswith(".", bounds[after]) and "." in core and not chunk[bases[after - 1]].isdigit():
        after += 1
    return [*bounds[: first + 1], *bounds[after:]]
