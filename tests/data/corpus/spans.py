"""Windows of a shard, one at a time."""

from typing import NamedTuple

import numpy as np

from bert_jax.data.corpus.format import Corpus


class Span(NamedTuple):
    """A window of a shard; n is less than the length asked for only at the shard's end."""

    tokens: np.ndarray  # int32 [n]
    sentence_starts: np.ndarray  # bool [n]
    document: int  # number of the document that holds the first token


def read(corpus: Corpus, shard: int, start: int, length: int) -> Span:
    """Reads the window [start, start + length) of a shard, up to the shard's end."""
    length = min(length, int(corpus.shard_tokens[shard]) - start)
    place = np.array([shard]), np.array([start])
    tokens, starts = corpus.tokens(*place, length)[0], corpus.sentence_starts(*place, length)[0]
    return Span(tokens, starts, int(corpus.documents(*place)[0]))
