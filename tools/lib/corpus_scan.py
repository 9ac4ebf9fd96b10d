"""Counts what is in a split of a prepared corpus by reading it once, whatever version prepared it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.statistics import LENGTH_BINS

_READ_TOKENS = 1 << 20  # at a time


class Scan(NamedTuple):
    """What a split holds; separators do not count. V tokens of the vocabulary, LENGTH_BINS bins of document lengths."""

    token_counts: np.ndarray  # int64 [V]
    documents: np.ndarray  # int64 [bins], by the document's length
    tokens: np.ndarray  # int64 [bins], in documents of this length


def scan(corpus: Corpus, progress: Callable[[], None] = lambda: None) -> Scan:
    """Reads all tokens of a split; memory does not depend on its size.

    Args:
      corpus: the split.
      progress: called after each shard.

    Raises:
      UserError: a file is damaged.
    """
    separator = corpus.special_ids["sep"]
    counts = np.zeros(corpus.vocab_size, np.int64)
    documents, tokens = (np.zeros(len(LENGTH_BINS), np.int64) for _ in range(2))
    for shard, size in enumerate(corpus.shard_tokens.tolist()):
        unfinished = 0  # tokens read of the document that has not ended; none spans two shards
        for start in range(0, size, _READ_TOKENS):
            length = min(_READ_TOKENS, size - start)
            (part,) = corpus.tokens(np.array([shard]), np.array([start]), length)
            counts += np.bincount(part, minlength=corpus.vocab_size)
            ends = np.flatnonzero(part == separator)
            lengths = np.diff(ends, prepend=-1) - 1
            if len(ends):
                lengths[0] += unfinished
            unfinished = length - ends[-1] - 1 if len(ends) else unfinished + length
            bins = np.maximum(0, np.searchsorted(LENGTH_BINS, lengths, side="right") - 1)
            documents += np.bincount(bins, minlength=len(LENGTH_BINS))
            np.add.at(tokens, bins, lengths)
        progress()
    counts[separator] = 0
    return Scan(counts, documents, tokens)
