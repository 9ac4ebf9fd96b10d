"""Rows filled with whole documents of a prepared corpus, which do not see each other.

A document of up to C tokens, the space of a row without [CLS] and [SEP], is one piece. A longer one is cut into pieces of C
tokens and one of what is left, whose place among them changes from epoch to epoch. Pieces fill rows by best fit, shard by
shard: how many rows a shard has depends on the lengths of its documents alone, and which pieces share a row on seed and epoch
too. Nothing that is kept grows with the corpus but a number for each shard.

Shapes: n rows, L length, S shards, d documents, p pieces, R rows of a shard.
"""

import functools
from typing import NamedTuple

import numpy as np

from bert_jax import random_numbers
from bert_jax.data.best_fit import Group, groups_of_documents, num_rows, numbers_of_pieces, slots
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import INDEX_FILE, REMEDY
from bert_jax.data.joining import HostBatch, number_segments
from bert_jax.data.pretraining.order import OrderOfBlocks
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

SHARDS_MIXED = 16  # shards whose rows are shuffled together
_PLANS_KEPT = 3 * SHARDS_MIXED  # of an epoch's end and the next one's beginning, and one more


class Pieces(NamedTuple):
    """Documents cut to what fits a row."""

    starts: np.ndarray  # [p], positions in the shard
    lengths: np.ndarray  # [p], tokens of text
    rows: np.ndarray  # [p], of a batch


class Plan(NamedTuple):
    """The pieces of each row of a shard in an epoch."""

    starts: np.ndarray  # [p], positions in the shard, row after row
    lengths: np.ndarray  # [p]
    first_of_row: np.ndarray  # [R + 1]

    def pieces_of(self, rows: np.ndarray, numbers: np.ndarray) -> Pieces:
        """Returns the pieces of some rows of the shard [n], which are rows `numbers` [n] of a batch."""
        firsts = self.first_of_row[rows]
        counts = self.first_of_row[rows + 1] - firsts
        places = np.arange(counts.sum()) + np.repeat(firsts - np.cumsum(counts) + counts, counts)
        return Pieces(self.starts[places], self.lengths[places], np.repeat(numbers, counts))


class PackedDocuments:
    """Rows [CLS] piece [SEP] [CLS] piece [SEP] ..., each piece a segment whose positions start anew."""

    notes = ()  # fields of the rows for objectives alone

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, length: int, seed: int, overlap: int = 0):
        """Raises UserError: an overlap that leaves nothing new to a piece, or a corpus without the lengths of its documents."""
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.length = length
        self.seed = seed
        self.overlap = overlap
        self.space = length - tokenizer.num_special_tokens(1)  # C
        if not 0 <= overlap < self.space:
            raise UserError(f"data.document_overlap={overlap} must be from 0 to {self.space - 1}, below a row's tokens")
        self.rows_of_shards = self._count_rows()  # [S]
        self._first_rows = np.concatenate([[0], np.cumsum(self.rows_of_shards)])
        self.size = int(self._first_rows[-1])  # rows in an epoch
        self.plan = functools.lru_cache(_PLANS_KEPT)(self._plan)

    def __reduce__(self):
        return PackedDocuments, (self.corpus, self.tokenizer, self.length, self.seed, self.overlap)

    def order(self, seed: int, is_shuffled: bool) -> OrderOfBlocks:
        """Returns the order of the rows: shards in random order, and the rows of `SHARDS_MIXED` of them shuffled together."""
        return OrderOfBlocks(self.rows_of_shards, SHARDS_MIXED, seed, is_shuffled)

    def rows(self, epochs: np.ndarray, indices: np.ndarray) -> HostBatch:
        """Returns packed rows: input_ids, attention_mask, token_type_ids, segment_ids and position_ids int32 [n, L].

        example_weights [n] are 1.
        """
        shards = np.searchsorted(self._first_rows, indices, side="right") - 1
        pieces = list[Pieces]()
        for epoch, shard in {*zip(epochs.tolist(), shards.tolist(), strict=True)}:
            rows = np.flatnonzero((epochs == epoch) & (shards == shard))
            pieces.append(self.plan(epoch, shard).pieces_of(indices[rows] - self._first_rows[shard], rows))
        starts, lengths, rows = map(np.concatenate, zip(*pieces, strict=True))
        order = np.argsort(rows, kind="stable")
        return self._joined(len(indices), rows[order], shards[rows[order]], starts[order], lengths[order])

    def _joined(
        self, num_rows: int, rows: np.ndarray, shards: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> HostBatch:
        """Reads pieces [p] and joins those of each row, which come one after the other."""
        shape = num_rows, self.length
        spans = lengths + self.length - self.space
        ends = np.cumsum(spans)
        firsts = ends - spans
        is_first = np.concatenate([[True], rows[1:] != rows[:-1]])
        begins = firsts - firsts[is_first][np.cumsum(is_first) - 1] + rows * self.length  # of each [CLS], in the batch
        ids = np.full(num_rows * self.length, self.tokenizer.pad_id, np.int32)
        ids[begins] = self.tokenizer.cls_id
        ids[begins + 1 + lengths] = self.tokenizer.sep_id
        # Pieces of similar lengths are read together: reading takes all of them as long as the longest.
        widths = 1 << np.ceil(np.log2(lengths)).astype(np.int64)
        for width in np.unique(widths).tolist():
            some = np.flatnonzero(widths == width)
            tokens = self.corpus.tokens(shards[some], starts[some], int(lengths[some].max()))
            places = np.arange(tokens.shape[1])
            is_own = places < lengths[some][:, None]
            ids[((begins[some] + 1)[:, None] + places)[is_own]] = tokens[is_own]
        tokens_of_rows = np.bincount(rows, spans, minlength=num_rows).astype(np.int32)
        is_begin = np.zeros(shape, bool)
        is_begin.reshape(-1)[begins] = True
        attention_mask = (np.arange(self.length, dtype=np.int32) < tokens_of_rows[:, None]).astype(np.int32)
        return {
            "input_ids": ids.reshape(shape),
            "attention_mask": attention_mask,
            "token_type_ids": np.zeros(shape, np.int32),
            "example_weights": np.ones(num_rows, np.float32),
            **number_segments(is_begin, attention_mask),
        }

    def _count_rows(self) -> np.ndarray:
        """Returns the number of rows of each shard [S], which the corpus knows of common lengths."""
        if not self.overlap and (stored := self.corpus.packed_rows(self.length)) is not None:
            return stored
        return np.array([num_rows(self._groups(shard)) for shard in range(len(self.corpus.shard_tokens))])

    def _groups(self, shard: int) -> list[Group]:
        return groups_of_documents(self.corpus.document_lengths(shard), self.length, self.space, self.overlap)

    def _pieces(self, epoch: int, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Cuts the documents of a shard; returns the positions [p] and lengths [p] of the pieces.

        Which piece of a document is not full depends on the epoch.
        """
        lengths = self.corpus.document_lengths(shard).astype(np.int64)
        begins = np.cumsum(lengths + 1) - lengths - 1  # each document ends with a separator
        counts, rest = numbers_of_pieces(lengths, self.space, self.overlap)
        documents = np.repeat(np.arange(len(lengths)), counts)
        numbers = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = self._keys(epoch, shard, "short piece")
        short = (
            random_numbers.integers(keys, np.arange(len(lengths)), counts)[documents]
            if epoch
            else counts[documents] - 1
        )
        missing = np.where(numbers > short, self.space - rest[documents], 0)
        starts = begins[documents] + numbers * (self.space - self.overlap) - missing
        return starts, np.where(numbers == short, rest[documents], self.space)

    def _keys(self, epoch: int, shard: int, purpose: str) -> np.ndarray:
        keys = random_numbers.row_keys(self.seed, np.array([epoch]), np.array([shard]))
        return random_numbers.fold_in(keys, purpose)

    def _plan(self, epoch: int, shard: int) -> Plan:
        groups = self._groups(shard)
        if num_rows(groups) != self.rows_of_shards[shard]:
            raise UserError(f"{self.corpus.place}: shard {shard} has other documents than {INDEX_FILE} says; {REMEDY}")
        starts, lengths = self._pieces(epoch, shard)
        rows, spans = slots(groups)
        keys = self._keys(epoch, shard, "pieces")
        shuffled = np.argsort(random_numbers.bits(keys, np.arange(len(rows))))
        # The pieces of each size, in random order, take the places for that size.
        of_places = np.empty(len(rows), np.int64)
        of_places[np.argsort(spans, kind="stable")] = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        first_of_row = np.searchsorted(rows, np.arange(num_rows(groups) + 1))
        return Plan(starts[of_places], lengths[of_places], first_of_row)
