"""Pairs of segments of a prepared corpus: [CLS] a [SEP] b [SEP], made of sentences of one document and, perhaps, of another.

Shapes: n rows, W tokens that are read for each.
"""

from typing import Any, NamedTuple

import numpy as np

from bert_jax import random_numbers
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.joining import HostBatch, join_rows, kept_lengths
from bert_jax.data.pretraining.order import Order
from bert_jax.data.pretraining.windows import Windows
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.random_numbers import fold_in

OTHER_DOCUMENT_TRIES = 10  # create_pretraining_data.py, create_instances_from_document


class SentencePairs:
    """Rows of two segments of consecutive whole sentences; an objective decides what the second one is.

    The rules are those of google-research/bert create_pretraining_data.py, but for one: there a document is walked from its
    start, sentences that a random second segment leaves over are put back, and so no example can be made without those
    before it. Here pair i starts at the first sentence of window i, in a document of that window.
    """

    # Fields of the rows that objectives make labels of; they do not get to the devices.
    notes = ("is_other_document", "is_swapped")

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, length: int, seed: int, short_seq_prob: float, objective: Any
    ):
        self.max_tokens = length - tokenizer.num_special_tokens(2)  # for tokens of text
        self.windows = Windows(corpus, self.max_tokens, seed)
        self.size = self.windows.size
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.length = length
        self.seed = seed
        self.short_seq_prob = short_seq_prob
        self.objective = objective
        self._shard_ends = np.cumsum(corpus.shard_tokens)

    def rows(self, epochs: np.ndarray, indices: np.ndarray) -> HostBatch:
        """Returns joined pairs (see `join_rows`), and what became of the second segments, bool [n].

        is_other_document: it is text of another document, as the objective wanted; a corpus may have no other.
        is_swapped: the two consecutive segments are swapped. A single token cannot be.
        """
        keys = fold_in(random_numbers.row_keys(self.seed, epochs, indices), "pairs")
        is_short = random_numbers.uniform(keys, 0) < self.short_seq_prob
        targets = np.where(is_short, 2 + random_numbers.integers(keys, 1, self.max_tokens - 1), self.max_tokens)
        chunks = self._chunks(*self.windows.places(epochs, indices), targets, random_numbers.uniform(keys, 2))
        cuts = chunks.random_borders(random_numbers.uniform(keys, 3))
        wanted = self.objective.second_segments(cuts < chunks.ends, fold_in(keys, "second segment"))

        tokens, begins, ends = chunks.tokens, chunks.begins, chunks.ends
        asked = np.flatnonzero(wanted.is_other_document)
        shards, positions = chunks.places()
        documents = self.corpus.documents(shards[asked], positions[asked])
        rest = np.maximum(1, targets - (cuts - begins))
        rows, others = self._other_documents(documents, rest[asked], fold_in(keys[asked], "other document"))
        is_other = np.zeros(len(tokens), bool)
        is_other[asked[rows]] = True
        # A lone segment is cut in its middle to have two.
        cuts = np.where((cuts == ends) & ~is_other, begins + (ends - begins + 1) // 2, cuts)
        is_swapped = wanted.is_swapped & (cuts < ends) & ~is_other
        first = np.where(is_swapped, cuts, begins), np.where(is_swapped, ends, cuts)
        second = np.where(is_swapped, begins, cuts), np.where(is_swapped, cuts, ends)
        second[0][is_other], second[1][is_other] = others.begins, others.ends

        kept_a, kept_b = kept_lengths(first[1] - first[0], second[1] - second[0], targets)
        a = _cut(tokens, *first, kept_a, fold_in(keys, "cut a"))
        tokens[is_other] = others.tokens
        b = _cut(tokens, *second, kept_b, fold_in(keys, "cut b"))
        joined = join_rows(self.tokenizer, self.length, (a, kept_a), (b, kept_b))
        return joined | dict(zip(self.notes, (is_other, is_swapped), strict=True))

    def order(self, seed: int, is_shuffled: bool) -> Order:
        return Order(self.size, seed, is_shuffled)

    def _other_documents(
        self, documents: np.ndarray, targets: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, "Chunks"]:
        """Finds for each of `documents` [n] a chunk outside it, from a random place, of `targets` [n] tokens or a little more.

        Places are drawn evenly over the corpus, so a document's share of them is its length (the original draws documents
        evenly, for which one would have to know where each starts).

        Returns:
          The rows, ascending, for which one of the tries hit another document, and the chunks [rows] that they hit.
        """
        pending, hits = np.arange(len(targets)), list[tuple[np.ndarray, Chunks]]()
        for attempt in range(OTHER_DOCUMENT_TRIES):
            place = random_numbers.integers(keys[pending], 2 * attempt, self._shard_ends[-1])
            shards = np.searchsorted(self._shard_ends, place, side="right")
            starts = place - (self._shard_ends - self.corpus.shard_tokens)[shards]
            anchors = random_numbers.uniform(keys[pending], 2 * attempt + 1)
            chunks = self._chunks(shards, starts, targets[pending], anchors)
            is_other = self.corpus.documents(*chunks.places()) != documents[pending]
            hits.append((pending[is_other], chunks.of(is_other)))
            pending = pending[~is_other]
            if not len(pending):
                break
        rows = np.concatenate([rows for rows, _ in hits])
        chunks = Chunks(*map(np.concatenate, zip(*(chunks for _, chunks in hits), strict=True)))
        order = np.argsort(rows)
        return rows[order], chunks.of(order)

    def _chunks(self, shards: np.ndarray, starts: np.ndarray, targets: np.ndarray, anchors: np.ndarray) -> "Chunks":
        """Reads consecutive whole sentences of one document, at least `targets` [n] tokens unless it ends before.

        The document is the one that holds a random token of the window that starts there, so a window that straddles documents
        takes each with the chance of its share.

        Args:
          shards, starts: [n], of the windows.
          targets: [n], tokens.
          anchors: random floats [n] in [0, 1) that choose the token.

        Raises:
          UserError: there are only separators, which no valid corpus has.
        """
        # The window's first sentence may have begun before it, and the last one may reach beyond the target.
        stride, width = self.windows.stride, 3 * self.windows.stride
        starts = np.where(
            starts == self.corpus.shard_tokens[shards] - 1, 0, starts
        )  # the last separator: on at the start
        tokens = self.corpus.tokens(shards, starts, width)
        limits = np.minimum(self.corpus.shard_tokens[shards] - starts, width)
        is_inside = np.arange(width, dtype=np.int32) < limits.astype(np.int32)[:, None]
        is_separator = tokens == self.tokenizer.sep_id
        sentence_starts = self.corpus.sentence_starts(shards, starts, width) & is_inside
        sentences, separators, text = map(
            _Marks, (sentence_starts, is_separator & is_inside, is_inside & ~is_separator)
        )
        # The rest of a sentence that began before is left out; without it, a document may have no more in the window.
        lowest = sentences.next(np.zeros_like(starts))
        lowest = np.where(lowest < stride, lowest, 0)
        num_text = text.count(lowest, np.full_like(lowest, width))
        if not num_text.all():
            row = int(np.argmin(num_text))
            where = f"{self.corpus.place}: shard {shards[row]}"
            raise UserError(f"{where} has nothing but separators from token {starts[row]}; prepare the corpus again")
        anchor = text.next(lowest, (anchors * np.minimum(stride, num_text)).astype(np.int64))
        begins = separators.last_before(anchor) + 1
        document_ends = np.minimum(separators.next(anchor), limits)
        first = sentences.next(begins)
        begins = np.where(first < document_ends, first, begins)  # else in the middle of a very long sentence
        ends = np.minimum(sentences.next(begins + targets), document_ends)
        return Chunks(tokens, begins, ends, sentence_starts, shards, starts)


class Chunks(NamedTuple):
    """Consecutive sentences of one document in each row."""

    tokens: np.ndarray  # int32 [n, W], of which the chunk is a part:
    begins: np.ndarray  # [n]
    ends: np.ndarray  # [n]
    sentence_starts: np.ndarray  # bool [n, W]
    shards: np.ndarray  # [n] ...
    starts: np.ndarray  # ... and [n], where the tokens lie in the corpus

    def of(self, rows: np.ndarray) -> "Chunks":
        """Returns those of some rows, given by numbers or as bool [n]."""
        return Chunks(*(array[rows] for array in self))

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shards and the positions [n] at which the chunks begin."""
        return self.shards, self.starts + self.begins

    def random_borders(self, draws: np.ndarray) -> np.ndarray:
        """Returns where one of the sentences after the first begins, [n], chosen by floats in [0, 1); the end if none does."""
        sentences = _Marks(self.sentence_starts)
        number = sentences.count(self.begins + 1, self.ends)
        return np.minimum(sentences.next(self.begins + 1, (draws * number).astype(np.int64)), self.ends)


class _Marks:
    """The places of a mask [n, W] that are True, in order, for questions about one position [n] of each row."""

    def __init__(self, mask: np.ndarray):
        self._row_starts = np.arange(len(mask)) * mask.shape[1]
        # Sentinels: before the first place and beyond the last one.
        self._places = np.concatenate([[-1], np.flatnonzero(mask), [mask.size + mask.shape[1]]])

    def _first(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._places, self._row_starts + positions)

    def next(self, positions: np.ndarray, skipped: np.ndarray | int = 0) -> np.ndarray:
        """Returns the first place at or after each position, or the one that so many come before; W or more if none is."""
        return self._places[np.minimum(self._first(positions) + skipped, len(self._places) - 1)] - self._row_starts

    def last_before(self, positions: np.ndarray) -> np.ndarray:
        """Returns the last place before each position, -1 if none is."""
        return np.maximum(self._places[self._first(positions) - 1] - self._row_starts, -1)

    def count(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Returns the number of places in [starts, stops) of each row."""
        return self._first(stops) - self._first(starts)


def _cut(tokens: np.ndarray, begins: np.ndarray, ends: np.ndarray, kept: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns `kept` [n] tokens of each segment, row after row; each excess token is dropped at the front with probability 1/2.

    Source: google-research/bert create_pretraining_data.py, truncate_seq_pair.
    """
    start = begins + random_numbers.coin_flips(keys, ends - begins - kept)
    positions = np.arange(tokens.shape[1], dtype=np.int32)
    start, stop = start.astype(np.int32), (start + kept).astype(np.int32)
    return tokens[(positions >= start[:, None]) & (positions < stop[:, None])]
