"""Pairs of segments made by walking documents from their start, as create_pretraining_data.py of google-research/bert does.

Source of all rules: create_instances_from_document and truncate_seq_pair there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bert_jax.data.corpus.block_files import num_blocks
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import BLOCK_TOKENS
from bert_jax.data.joining import kept_lengths
from bert_jax.data.pretraining.pairs import OTHER_DOCUMENT_TRIES

_BLOCKS = 256  # read at a time to find the documents
_RANDOM_NEXT = 0.5  # probability, where the document has a next segment


class Pair(NamedTuple):
    """Two segments, int32 each."""

    a: np.ndarray
    b: np.ndarray
    is_random_next: bool  # b was drawn from a random document


class Document(NamedTuple):
    """The tokens of a document, int32, and where its sentences start, with the end of the last one, int64 [sentences + 1]."""

    tokens: np.ndarray
    borders: np.ndarray

    def text(self, first: int, end: int) -> np.ndarray:
        """Returns the tokens of the sentences from `first` to `end` - 1."""
        return self.tokens[self.borders[first] : self.borders[end]]

    def end_of(self, first: int, num_tokens: int) -> int:
        """Returns the end of the sentences from `first` on that have at least so many tokens, or of the document."""
        end = int(np.searchsorted(self.borders, self.borders[first] + num_tokens))
        return min(max(end, first + 1), len(self.borders) - 1)


class Documents:
    """The documents of a split of a corpus by number; only their places are in memory."""

    def __init__(self, corpus: Corpus):
        """Finds the documents by the separators after them."""
        self._corpus = corpus
        parts = [_document_places(corpus, shard) for shard in range(len(corpus.shard_tokens))]
        self._shards = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        self._places = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Document:
        """Reads a document."""
        shard, (start, length) = self._shards[number : number + 1], self._places[number]
        place = shard, np.array([start]), int(length)
        is_start = self._corpus.sentence_starts(*place)[0]
        is_start[0] = True
        return Document(self._corpus.tokens(*place)[0], np.append(np.flatnonzero(is_start), length))


def _document_places(corpus: Corpus, shard: int) -> np.ndarray:
    """Returns the start and the length of each document of a shard that has text, int64 [documents, 2]."""
    size, ends = int(corpus.shard_tokens[shard]), list[np.ndarray]()
    for start in range(0, num_blocks(size) * BLOCK_TOKENS, _BLOCKS * BLOCK_TOKENS):
        length = min(_BLOCKS * BLOCK_TOKENS, size - start)
        tokens = corpus.tokens(np.array([shard]), np.array([start]), length)[0]
        ends.append(start + np.flatnonzero(tokens == corpus.special_ids["sep"]))
    starts = np.concatenate([[0], np.concatenate(ends) + 1])
    places = np.stack([starts[:-1], np.diff(starts) - 1], axis=1)
    return places[places[:, 1] > 0]


def pairs_of_document(
    documents: Documents, number: int, max_tokens: int, short_seq_prob: float, rng: np.random.Generator
) -> Iterator[Pair]:
    """Yields the pairs of one document, which cover it once but for what is truncated.

    Args:
      documents: all documents, of which random next segments are taken.
      number: the document.
      max_tokens: the most tokens of a pair.
      short_seq_prob: probability that the pairs of this document aim at a random shorter length.
      rng: source of all random choices.
    """
    document = documents[number]
    target = int(rng.integers(2, max_tokens + 1)) if rng.random() < short_seq_prob else max_tokens
    begin, num_sentences = 0, len(document.borders) - 1
    while begin < num_sentences:
        end = document.end_of(begin, target)
        cut = begin + int(rng.integers(1, end - begin)) if end - begin > 1 else end
        a = document.text(begin, cut)
        # A lone sentence is always followed by random text, so that this is the case of more than half of the pairs.
        is_random_next = cut == end or rng.random() < _RANDOM_NEXT
        if is_random_next:
            b = _random_text(documents, number, target - len(a), rng)
            end = cut  # the sentences that b would have had are put back
        else:
            b = document.text(cut, end)
        yield Pair(*_truncated(a, b, max_tokens, rng), is_random_next)
        begin = end


def _random_text(documents: Documents, number: int, num_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Returns sentences from a random one of a random document on, of another one than `number` if there are several."""
    for _ in range(OTHER_DOCUMENT_TRIES):
        if (other := int(rng.integers(len(documents)))) != number:
            break
    document = documents[other]
    first = int(rng.integers(len(document.borders) - 1))
    return document.text(first, document.end_of(first, num_tokens))


def _truncated(
    a: np.ndarray, b: np.ndarray, max_tokens: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both segments without the excess of the longer one; each token is dropped at either end with probability 1/2."""
    kept = kept_lengths(len(a), len(b), max_tokens)
    fronts = [int(rng.binomial(len(segment) - size, 0.5)) for segment, size in zip((a, b), kept, strict=True)]
    return a[fronts[0] : fronts[0] + kept[0]], b[fronts[1] : fronts[1] + kept[1]]
