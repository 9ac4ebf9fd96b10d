"""Cleans documents before they are tokenized: normalises their text, and drops some of them, each counted by its reason.

What concerns a document alone may be done in worker processes; duplicates are decided in the order of the documents.
"""

import hashlib
import importlib.metadata
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple

from bert_jax.data.corpus.duplicates import HashSet, band_hashes
from bert_jax.data.sources.documents import Document
from bert_jax.errors import UserError, listed, optional_package

NORMAL_FORMS = ("none", "NFC", "NFKC")
# Reasons, in the order in which they are checked.
SHORT, REGEX, LANGUAGE, DUPLICATE, NEAR_DUPLICATE = "short", "regex", "language", "duplicate", "near_duplicate"
REASONS = (SHORT, REGEX, LANGUAGE, DUPLICATE, NEAR_DUPLICATE)
LANGUAGE_CHARACTERS = 300  # of a document, which decide about its language: a quarter of a millisecond in py3langid
_CHUNK_CHARACTERS = 1 << 20  # of the documents that a worker process gets at a time
_LEAST_SIMILAR = 0.5  # of what can be called near duplicates


@dataclass(frozen=True)
class Cleaning:
    """Options of cleaning, which are applied in this order. By default nothing is changed or dropped.

    Raises:
      UserError: a value out of range, an invalid regex, an unknown language, or an option whose package is missing.
    """

    unicode: str = "none"  # normal form of the text: none, NFC or NFKC
    min_characters: int = 0  # drop shorter documents; white space at both ends does not count
    drop_regex: tuple[str, ...] = ()  # drop documents in which one of these regexes matches somewhere
    languages: tuple[str, ...] = ()  # drop documents in other languages than these (ISO 639); empty: keep all
    drop_duplicates: bool = False  # drop documents whose text is that of an earlier one
    drop_near_duplicates: float = 0.0  # drop documents at least about so similar (Jaccard) to an earlier one; 0: none

    def __post_init__(self) -> None:
        if self.unicode not in NORMAL_FORMS:
            raise UserError(f"unicode={self.unicode!r}: unknown normal form; use one of {', '.join(NORMAL_FORMS)}")
        if self.min_characters < 0:
            raise UserError(f"min_characters={self.min_characters}: is negative; use 0 or more characters")
        for pattern in self.drop_regex:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"drop_regex={pattern!r}: an invalid regex ({error}); correct it") from None
        similarity = self.drop_near_duplicates
        if similarity and not _LEAST_SIMILAR <= similarity < 1.0:  # also for NaN
            problem = f"is not from {_LEAST_SIMILAR} to below 1"
            raise UserError(f"drop_near_duplicates={similarity}: {problem}; use e.g. 0.8, or 0 to keep them")
        if similarity:
            optional_package("rensa", "drop_near_duplicates", "clean")
        if self.languages and (unknown := sorted(set(self.languages) - set(_known_languages()))):
            problem = f"not known to py3langid, only {' '.join(_known_languages())}"
            raise UserError(f"languages={listed(unknown)}: {problem}; use some of these")

    @property
    def settings(self) -> dict[str, Any]:
        """The options that differ from the defaults, and the versions of the packages that decide with them."""
        default = asdict(Cleaning())
        changed = {name: value for name, value in asdict(self).items() if value != default[name]}
        packages = [("rensa", self.drop_near_duplicates), ("py3langid", self.languages)]
        versions = {name: importlib.metadata.version(name) for name, is_used in packages if is_used}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
        return values | ({"packages": versions} if versions else {})

    @property
    def is_costly(self) -> bool:
        """Whether a document takes about as long to inspect as to tokenize."""
        return bool(self.drop_near_duplicates or self.languages)


NO_CLEANING = Cleaning()


class Inspected(NamedTuple):
    """A document by itself, after cleaning."""

    document: Document
    reason: str  # why it is dropped; '' if it is not
    bands: list[int]  # hashes that near duplicates share with it; empty unless these are dropped


# Calls a function for each item, in other processes, and yields the results in order.
InOrder = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def clean(
    documents: Iterable[Document], cleaning: Cleaning, dropped: Counter[str], in_order: InOrder | None = None
) -> Iterator[Document]:
    """Yields the documents that are not dropped, in order, and counts the others by their reason in `dropped`.

    The first of several duplicates stays, and so does the first of near duplicates, whether it is held out or not. So no two
    documents that stay are duplicates of each other, in the same split or in two, and documents that are added at the end of
    a source change nothing before them. Needs about 26 bytes of memory for each hash of a document that stays: one for
    duplicates, and as many as there are bands for near duplicates.

    Args:
      documents: always in the same order.
      cleaning: the options.
      dropped: is changed.
      in_order: what maps chunks of documents in worker processes; without it, each is inspected when it has been read.
    """
    inspected: Iterable[Inspected] = map(partial(inspect, cleaning), documents)
    if in_order is not None:
        inspected = chain.from_iterable(in_order(partial(_inspect_chunk, cleaning), _chunks(documents)))
    duplicates = Duplicates(cleaning)
    for document, reason, bands in inspected:
        if reason := reason or duplicates.reason(duplicates.key(document.text), bands):
            dropped[reason] += 1
        else:
            yield document


class Duplicates:
    """Finds the duplicates among documents that come in order and are not dropped for another reason."""

    def __init__(self, cleaning: Cleaning):
        self._drops_exact = cleaning.drop_duplicates
        self._keys, self._bands = HashSet(), HashSet()

    def key(self, text: str) -> int:
        """Returns the hash by which `reason` compares a text; 0 if duplicates stay."""
        return text_hash(text) if self._drops_exact else 0

    def reason(self, key: int, bands: Sequence[int]) -> str:
        """Returns why the next document is dropped, or '', and remembers a document that stays.

        Args:
          key: the hash of its text, see `key`.
          bands: see `Inspected`.
        """
        if self._drops_exact and key in self._keys:
            return DUPLICATE
        if any(band in self._bands for band in bands):
            return NEAR_DUPLICATE
        if self._drops_exact:
            self._keys.add(key)
        for band in bands:
            self._bands.add(band)
        return ""


def inspect(cleaning: Cleaning, document: Document) -> Inspected:
    """Does what concerns a document alone: normalises its text, and finds a reason to drop it."""
    text = document.text
    if cleaning.unicode != "none":
        text = unicodedata.normalize(cleaning.unicode, text)  # type: ignore[arg-type]
        document = Document(document.id, text)
    if len(text.strip()) < cleaning.min_characters:
        return Inspected(document, SHORT, [])
    if any(re.search(pattern, text) for pattern in cleaning.drop_regex):
        return Inspected(document, REGEX, [])
    if cleaning.languages and language(text) not in cleaning.languages:
        return Inspected(document, LANGUAGE, [])
    threshold = cleaning.drop_near_duplicates
    return Inspected(document, "", band_hashes(text, threshold) if threshold else [])


def language(text: str) -> str:
    """Returns the ISO 639 code of the most probable language, by the first LANGUAGE_CHARACTERS characters."""
    package = optional_package("py3langid", "languages", "clean")
    return str(package.classify(text.strip()[:LANGUAGE_CHARACTERS])[0])


def _inspect_chunk(cleaning: Cleaning, documents: list[Document]) -> list[Inspected]:
    return [inspect(cleaning, document) for document in documents]


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Groups documents, of about _CHUNK_CHARACTERS characters together."""
    chunk, size = list[Document](), 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def text_hash(text: str) -> int:
    """Returns 64 bits by which texts are compared."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@cache
def _known_languages() -> list[str]:
    return sorted({code for code, _ in optional_package("py3langid", "languages", "clean").rank("")})
