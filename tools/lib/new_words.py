"""Chooses the words of texts that become tokens by the number of tokens that this saves; and measures what they save."""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bert_jax.data.tokenizer.extending import Pieces
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import read_text

TEXTS_AT_ONCE = 256  # encoded together, in the engine's threads


class Word(NamedTuple):
    """A word that several tokens stand for, and how often it occurs."""

    text: str
    pieces: Pieces
    frequency: int

    @property
    def saved(self) -> int:
        """Number of tokens that texts get shorter by if the word is one token."""
        return self.frequency * (len(self.pieces) - 1)


def count_words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Counts the words of several known pieces: letters, accents and digits, without signs after them."""
    counts = Counter[Pieces]()
    for some in batches(texts):
        counts.update(word for words in tokenizer.encode_words(some) for word in words if len(word) > 1)
    words = Counter[str]()
    for pieces, count in counts.items():
        num_known = sum(1 for _ in itertools.takewhile(tokenizer.unk_id.__ne__, pieces))
        # SentencePiece's words end at spaces only: in "words," the first pieces are a word.
        beginnings = (tokenizer.decode(pieces[:end]) for end in range(num_known, 1, -1))
        if text := next((text for text in beginnings if is_word(text.strip())), ""):
            words[text] += count
    return words


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields lists of up to TEXTS_AT_ONCE texts."""
    rest = iter(texts)
    while some := list(itertools.islice(rest, TEXTS_AT_ONCE)):
        yield some


def is_word(text: str) -> bool:
    """Checks whether a text consists of letters, of which there is one at least, accents and decimal digits."""
    categories = {unicodedata.category(character) for character in text}
    kinds = {category[0] for category in categories}
    return "L" in kinds and kinds <= {"L", "M", "N"} and categories.isdisjoint({"No", "Nl"})


def best_words(tokenizer: Tokenizer, counts: Mapping[str, int], number: int, min_frequency: int) -> list[Word]:
    """Returns the words that save most, the best first; fewer if others are rarer than `min_frequency`."""
    frequent = [text for text, count in counts.items() if count >= min_frequency]
    words = [
        Word(text, split[0], counts[text])
        for text, split in zip(frequent, tokenizer.encode_words(frequent), strict=True)
        if len(split) == 1 and len(split[0]) > 1 and not tokenizer.has_word(split[0])
    ]
    return sorted(words, key=lambda word: (-word.saved, word.text))[:number]


def listed_words(tokenizer: Tokenizer, path: Path) -> list[Word]:
    """Reads words, not counted yet, from a file, one a line. Raises UserError for one that cannot become a token."""
    words = list[Word]()
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not (text := line.strip()):
            continue
        place = f"{path}: line {number}, {text!r}"
        (split,) = tokenizer.encode_words([f" {text}"])  # as after another word
        if len(split) != 1:
            raise UserError(f"{place}: several words by the rules of this tokenizer; remove this line")
        (pieces,) = split
        if tokenizer.unk_id in pieces:
            raise UserError(f"{place}: has characters that the tokenizer does not know; remove this line")
        if len(pieces) == 1 or tokenizer.has_word(pieces):
            raise UserError(f"{place}: is already in the vocabulary; remove this line")
        if any(word.pieces == pieces for word in words):
            raise UserError(f"{place}: is listed twice; remove one of the lines")
        words.append(Word(tokenizer.decode(pieces), pieces, frequency=0))
    if not words:
        raise UserError(f"{path}: has no words; write one a line")
    return words


class Lengths(NamedTuple):
    """Sizes of texts: words between spaces, and tokens of two tokenizers."""

    words: int
    before: int
    after: int


def measure(before: Tokenizer, after: Tokenizer, texts: Iterable[str]) -> Lengths:
    """Returns the lengths of texts in the tokens of two tokenizers."""
    totals = Lengths(0, 0, 0)
    for some in batches(texts):
        of_some: Sequence[int] = (
            sum(len(text.split()) for text in some),
            *(sum(map(len, tokenizer.encode(some))) for tokenizer in (before, after)),
        )
        totals = Lengths(*(total + more for total, more in zip(totals, of_some, strict=True)))
    return totals
