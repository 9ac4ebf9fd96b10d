"""Windows of a prepared corpus: rows of one segment, found without reading anything before them.

Window `index` covers `stride` tokens of the stream, from `index * stride + offset(epoch)`; the offset changes from epoch to
epoch, so that window borders fall elsewhere each time. Shapes: n rows, L sequence length.
"""

import numpy as np

from bert_jax import random_numbers
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.joining import HostBatch, join_rows, number_segments
from bert_jax.data.pretraining.order import Order
from bert_jax.data.tokenizer.tokenizer import Tokenizer


class Windows:
    """The corpus cut into windows of `stride` tokens; the end of each shard runs on into its beginning."""

    def __init__(self, corpus: Corpus, stride: int, seed: int):
        self.corpus = corpus
        self.stride = stride
        self.seed = seed
        # The tail of a shard that fills no window is left out, another one in every epoch. A tiny shard is one window.
        self._first_window = np.concatenate([[0], np.cumsum(np.maximum(corpus.shard_tokens // stride, 1))])
        self.size = int(self._first_window[-1])  # windows in an epoch

    def places(self, epochs: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shards [n] in which windows [n] start, and the positions [n] there."""
        shards = np.searchsorted(self._first_window, indices, side="right") - 1
        # (The word decides the numbers: another one would be another version of the stream.)
        keys = random_numbers.fold_in(random_numbers.row_keys(self.seed, epochs, shards), "phase")
        offsets = np.where(epochs > 0, random_numbers.integers(keys, 0, self.stride), 0)
        starts = (indices - self._first_window[shards]) * self.stride + offsets
        return shards, starts % self.corpus.shard_tokens[shards]


class FullWindows:
    """Rows of one segment: [CLS] window [SEP], full to the last position, across documents (RoBERTa's FULL-SENTENCES)."""

    notes = ()  # fields of the rows for objectives alone: a window has none

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, length: int, seed: int, isolates_documents: bool = False):
        self.corpus = corpus
        self.isolates_documents = isolates_documents
        self.windows = Windows(corpus, length - tokenizer.num_special_tokens(1), seed)
        self.size = self.windows.size
        self.tokenizer = tokenizer
        self.length = length

    def rows(self, epochs: np.ndarray, indices: np.ndarray) -> HostBatch:
        """Returns the joined rows of windows [n]; see `join_rows`."""
        stride, corpus = self.windows.stride, self.windows.corpus
        shards, starts = self.windows.places(epochs, indices)
        tokens = corpus.tokens(shards, starts, stride)
        lengths = np.minimum(stride, corpus.shard_tokens[shards])  # less only in a shard of fewer tokens
        rows = join_rows(self.tokenizer, self.length, (tokens[np.arange(stride) < lengths[:, None]], lengths))
        if not self.isolates_documents:
            return rows
        ends = rows["input_ids"] == self.tokenizer.sep_id
        is_begin = np.concatenate([np.ones((len(ends), 1), bool), ends[:, :-1]], axis=1) & (rows["attention_mask"] > 0)
        return rows | number_segments(is_begin, rows["attention_mask"])

    def order(self, seed: int, is_shuffled: bool) -> Order:
        return Order(self.size, seed, is_shuffled)
