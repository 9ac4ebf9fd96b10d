"""What preparation counts of the texts that it tokenizes: words, unknown tokens, a histogram of document lengths."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from bert_jax.data.corpus.index import TextCounts

# Bins of document lengths in tokens, two for each power of two: 1, 2, 3, 4, 6, 8, 12, 16 ... The last one is open.
LENGTH_BINS = (1, *(size for power in range(1, 26) for size in (1 << power, 3 << (power - 1))))


def count_text(texts: Sequence[str], tokens: np.ndarray, starts: np.ndarray, unk_id: int) -> TextCounts:
    """Counts texts that have been tokenized.

    Args:
      texts: of d documents, none without a token.
      tokens: [n], with a separator after each document.
      starts: [d], positions of the first tokens of the documents.
      unk_id: of the unknown token.
    """
    lengths = np.diff(np.append(starts, len(tokens))) - 1
    bins = np.bincount(np.searchsorted(LENGTH_BINS, lengths, side="right") - 1, minlength=len(LENGTH_BINS))
    encoded = [text.encode() for text in texts]
    return {
        "text_bytes": sum(map(len, encoded)),
        "words": sum(map(_count_words, encoded)),
        "unknown_tokens": int(np.count_nonzero(tokens == unk_id)),
        "longest_document": int(lengths.max(initial=0)),
        "lengths": _nonempty(Counter(dict(zip(LENGTH_BINS, bins.tolist(), strict=True)))),
    }


def add_counts(parts: Iterable[TextCounts]) -> TextCounts:
    """Returns the counts of the documents of all parts."""
    bins = Counter[int]()
    total: TextCounts = {"text_bytes": 0, "words": 0, "unknown_tokens": 0, "longest_document": 0, "lengths": []}
    for part in parts:
        bins.update(dict(part["lengths"]))
        total["longest_document"] = max(total["longest_document"], part["longest_document"])
        for name in ("text_bytes", "words", "unknown_tokens"):
            total[name] += part[name]
    return total | {"lengths": _nonempty(bins)}


def median_length(lengths: Sequence[tuple[int, int]]) -> float:
    """Returns about the median of document lengths: the place in its bin if those were evenly spread."""
    half, done = sum(count for _, count in lengths) / 2, 0
    for start, count in lengths:
        if done + count >= half:
            return start + (half - done) / count * (_end_of_bin(start) - start)
        done += count
    return 0.0


def _end_of_bin(start: int) -> int:
    following = LENGTH_BINS.index(start) + 1 if start in LENGTH_BINS else len(LENGTH_BINS)
    return LENGTH_BINS[following] if following < len(LENGTH_BINS) else start


def _nonempty(bins: Counter[int]) -> list[tuple[int, int]]:
    return sorted((start, count) for start, count in bins.items() if count)


def _count_words(text: bytes) -> int:
    """Returns the number of words; splitting the text would take ten times as long."""
    is_space = np.frombuffer(text, np.uint8) <= 32
    return int(np.count_nonzero(is_space[:-1] & ~is_space[1:])) + int(len(text) > 0 and not is_space[0])
