"""Windows: each token once an epoch, borders that move, full rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.joining import join
from bert_jax.data.pretraining.windows import FullWindows, Windows
from tests.data.corpus.spans import read
from tests.data.pretraining.corpora import corpus_of

SEED = 3


@pytest.fixture(scope="module")
def corpus(corpus_dir):
    return Corpus.open(corpus_dir)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 3))
def test_windows_cover_each_token_once_an_epoch(sizes, stride, epoch):
    corpus = corpus_of(*(1000 + number * 1000 + np.arange(size) for number, size in enumerate(sizes)))
    windows = Windows(corpus, stride, SEED)
    places = windows.places(np.full(windows.size, epoch), np.arange(windows.size))
    lengths = np.minimum(stride, corpus.shard_tokens[places[0]])
    read = [tokens[:length] for tokens, length in zip(corpus.tokens(*places, stride), lengths, strict=True)]
    tokens = np.concatenate(read)
    assert len(np.unique(tokens)) == len(tokens), "a token comes twice"
    for shard, size in enumerate(sizes):
        own = [window for window in read if window[0] // 1000 == shard + 1]
        covered = sum(len(window) for window in own)
        assert covered == (size // stride * stride if size >= stride else size), f"shard {shard} of {size} tokens"
        for window in own:
            steps = np.diff(window)
            assert ((steps == 1) | (steps == 1 - size)).all(), "a window is not consecutive text"


def test_phases_differ_between_epochs_and_shards(corpus):
    windows = Windows(corpus, 30, SEED)
    first = windows._first_window[:-1]
    starts = [(windows.places(np.full_like(first, epoch), first)[1] % 30).tolist() for epoch in range(6)]
    assert starts[0] == [0] * len(starts[0])
    assert len({tuple(phases) for phases in starts}) == 6, "two epochs cut the corpus at the same places"
    assert all(len(set(phases)) > 1 for phases in starts[1:]), "all shards are cut alike"


def test_full_windows_are_full(corpus, tokenizer):
    source = FullWindows(corpus, tokenizer, 32, SEED)
    epochs, indices = np.array([0, 1, 2]), np.array([0, 5, source.size - 1])
    rows = source.rows(epochs, indices)
    assert (rows["attention_mask"] == 1).all(), "there is padding"
    assert (rows["input_ids"][:, 0] == tokenizer.cls_id).all() and (rows["input_ids"][:, -1] == tokenizer.sep_id).all()
    assert (rows["token_type_ids"] == 0).all()
    for row, place in enumerate(zip(*source.windows.places(epochs, indices), strict=True)):
        expected = read(corpus, *map(int, place), 30).tokens
        assert np.array_equal(rows["input_ids"][row, 1 : 1 + len(expected)], expected)


def test_a_tiny_shard_is_one_short_row(tokenizer):
    source = FullWindows(corpus_of(np.arange(10, 15), np.arange(20, 100)), tokenizer, 32, SEED)
    rows = source.rows(np.zeros(source.size, int), np.arange(source.size))
    assert source.size == 3
    short = join(tokenizer, 32, np.arange(10, 15))
    for name in short:
        assert np.array_equal(rows[name][0], short[name]), name
    assert rows["attention_mask"].sum(axis=1).tolist() == [7, 32, 32]
