"""Windows, pairs and the order of examples: each token once, whole sentences, nothing that depends on who asks."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.corpus.format import Corpus, Span
from bert_jax.data.pretraining.windows import (
    FullWindows,
    SentencePairs,
    Windows,
    generator,
    join,
    kept_lengths,
    shuffled,
    truncated_pair,
)
from bert_jax.objectives import nsp, sop

SEED = 3


@pytest.fixture(scope="module")
def corpus(corpus_dir):
    return Corpus.open(corpus_dir)


# ---------------------------------------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 2**31 - 1))
def test_every_epoch_is_a_permutation(size, epoch, seed):
    places = [shuffled(number, size, seed) for number in range(epoch * size, (epoch + 1) * size)]
    assert {e for e, _ in places} == {epoch}
    assert sorted(index for _, index in places) == list(range(size)), "an index is missing or comes twice"


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(epoch, seed):
        return [shuffled(number, 200, seed)[1] for number in range(epoch * 200, (epoch + 1) * 200)]

    base = order(0, 0)
    assert base != list(range(200)) and base == order(0, 0)
    for other in (order(1, 0), order(0, 1)):
        same = np.mean(np.equal(base, other))
        assert same < 0.05, f"{same:.0%} of the places agree"
        shift = np.bincount(np.subtract(base, other) % 200, minlength=200).max()
        assert shift < 12, "one order is a shifted copy of the other"


def test_order_is_unbiased_also_across_the_border_of_epochs():
    size, seeds = 100, 2000
    first = np.array([[shuffled(n, size, seed)[1] for n in (0, size - 1, size)] for seed in range(seeds)])
    expected = seeds / size
    for column, what in enumerate(["first of an epoch", "last of an epoch", "first of the next"]):
        counts = np.bincount(first[:, column], minlength=size)
        assert np.abs(counts - expected).max() < 5 * expected**0.5, f"{what}: {counts}"
    repeated = (first[:, 1] == first[:, 2]).sum()
    assert abs(repeated - expected) < 5 * expected**0.5, f"the last comes again at once {repeated} times in {seeds}"


# ---------------------------------------------------------------------------------------------------------------------
# Windows
# ---------------------------------------------------------------------------------------------------------------------


class CountingCorpus:
    """Stands in for a Corpus: token i of shard s is s * 1000 + i."""

    def __init__(self, sizes):
        self.shard_tokens = np.array(sizes)

    def read(self, shard, start, length):
        stop = min(start + length, self.shard_tokens[shard])
        assert 0 <= start < stop, "a window that is empty or begins outside its shard"
        tokens = shard * 1000 + np.arange(start, stop, dtype=np.int32)
        return Span(tokens, np.zeros(len(tokens), bool), 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 3))
def test_windows_cover_each_token_once_an_epoch(sizes, stride, epoch):
    windows = Windows(CountingCorpus(sizes), stride, SEED)
    read = [windows.read(epoch, index) for index in range(len(windows))]
    tokens = np.concatenate(read)
    assert len(np.unique(tokens)) == len(tokens), "a token comes twice"
    for shard, size in enumerate(sizes):
        own = [window for window in read if window[0] // 1000 == shard]
        covered = sum(len(window) for window in own)
        assert covered == (size // stride * stride if size >= stride else size), f"shard {shard} of {size} tokens"
        for window in own:
            steps = np.diff(window)
            assert ((steps == 1) | (steps == 1 - size)).all(), "a window is not consecutive text"


def test_phases_differ_between_epochs_and_shards(corpus):
    windows = Windows(corpus, 30, SEED)
    starts = [[windows.place(epoch, int(first))[1] % 30 for first in windows._first_window[:-1]] for epoch in range(6)]
    assert starts[0] == [0] * len(starts[0])
    assert len({tuple(phases) for phases in starts}) == 6, "two epochs cut the corpus at the same places"
    assert all(len(set(phases)) > 1 for phases in starts[1:]), "all shards are cut alike"


def test_full_windows_are_full(corpus, tokenizer):
    make = FullWindows(corpus, tokenizer, 32, SEED)
    for epoch, index in ((0, 0), (1, 5), (2, len(make) - 1)):
        example = make(epoch, index, generator(SEED, epoch, index))
        assert example["attention_mask"].all() and not example["token_type_ids"].any()
        ids = example["input_ids"]
        assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
        assert np.array_equal(ids[1:-1], make.windows.read(epoch, index))


# ---------------------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences_of(documents, tokenizer):
    """Document, as its tokens without separator -> its sentences as tuples of ids."""
    from bert_jax.data.sources.documents import split_sentences

    by_document = []
    for document in documents:
        sentences = [sentence for line in document.text.split("\n") for sentence in split_sentences(line)]
        by_document.append([tuple(ids.tolist()) for ids in tokenizer.encode(sentences)])
    return by_document


class Recorder:
    """An objective that keeps the segments that it is given."""

    makes_pairs = True

    def pair(self, segments, rng):
        self.segments = segments
        self.other = segments.from_another_document(rng)
        return segments.a, segments.b, {}


def is_run_of_sentences(tokens, sentences) -> bool:
    """Whether the tokens are consecutive whole sentences of a document."""
    for start in range(len(sentences)):
        rest = tuple(tokens)
        for sentence in sentences[start:]:
            if not rest or rest[: len(sentence)] != sentence:
                break
            rest = rest[len(sentence) :]
        if not rest:
            return True
    return False


def test_segments_are_whole_sentences_of_one_document(corpus, tokenizer, sentences_of):
    recorder = Recorder()
    pairs = SentencePairs(corpus, tokenizer, 64, SEED, 0.1, recorder)
    lengths = []
    for index in range(0, len(pairs), 3):
        pairs(1, index, generator(SEED, 1, index))
        segments = recorder.segments
        both = [*segments.a.tolist(), *segments.b.tolist()]
        homes = [number for number, sentences in enumerate(sentences_of) if is_run_of_sentences(both, sentences)]
        assert homes, f"pair {index} is not made of consecutive whole sentences: {tokenizer.decode(both)}"
        for part in (segments.a, segments.b):
            whole = any(is_run_of_sentences(part.tolist(), sentences_of[home]) for home in homes)
            assert whole, f"pair {index} is cut within a sentence"
        strangers = [number for number, s in enumerate(sentences_of) if is_run_of_sentences(recorder.other.tolist(), s)]
        assert strangers, f"the other text of pair {index} is not whole sentences: {tokenizer.decode(recorder.other)}"
        assert set(strangers) - set(homes), f"the other text of pair {index} is of the same document"
        lengths.append((len(both), segments.target))
    enough = np.mean([length >= target for length, target in lengths])
    assert enough > 0.5, f"only {enough:.0%} of the pairs fill their row before they are cut"


@pytest.mark.parametrize("objective", [nsp.Objective(nsp.Options(), None), sop.Objective(sop.Options(), None)])
def test_examples_of_pairs(corpus, tokenizer, objective):
    pairs = SentencePairs(corpus, tokenizer, 48, SEED, 0.1, objective)
    labels, short = [], 0
    for index in range(400):
        example = pairs(0, index, generator(SEED, 0, index))
        ids, mask, types = (example[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        n = int(mask.sum())
        separators = np.flatnonzero(ids == tokenizer.sep_id)
        assert ids[0] == tokenizer.cls_id and len(separators) == 2 and separators[-1] == n - 1
        assert (ids[n:] == tokenizer.pad_id).all() and (mask == (np.arange(48) < n)).all()
        assert (types == ((np.arange(48) > separators[0]) & (np.arange(48) < n))).all()
        labels += [value for name, value in example.items() if name.endswith("_labels")]
        short += n < 40
    assert 0.35 < np.mean(labels) < 0.7, f"{np.mean(labels):.2f} of the labels are 1"
    assert short > 10, "no pair is short"


class OneShard:
    """Stands in for a Corpus of one shard."""

    def __init__(self, tokens, starts):
        self.tokens, self.starts = np.array(tokens, np.int32), np.array(starts, bool)
        self.shard_tokens = np.array([len(tokens)])

    def read(self, shard, start, length):
        document = 5 + int((self.tokens[:start] == 3).sum())
        return Span(self.tokens[start : start + length], self.starts[start : start + length], document)


@pytest.mark.parametrize(
    "start, target, expected",
    [
        (0, 2, {(7, 8): 5, (10, 11): 6, (13, 14, 15): 7}),
        (0, 3, {(7, 8): 5, (10, 11, 12): 6, (13, 14, 15): 7}),
        (1, 9, {(10, 11, 12): 6, (13, 14, 15, 16): 7}),  # (8,) is the rest of a sentence, and of its document
        (4, 9, {(12,): 6, (13, 14, 15, 16): 7}),  # the sentence that began before is left out
        (2, 2, {(10, 11): 6, (13, 14, 15): 7}),  # begins at a separator
        (11, 9, {(7, 8): 5, (10, 11, 12): 6, (13, 14, 15, 16): 7}),  # the last separator: on at the shard's start
    ],
)
def test_chunks_by_hand(tokenizer, start, target, expected):
    assert tokenizer.sep_id == 3
    tokens = [7, 8, 3, 10, 11, 12, 3, 13, 14, 15, 16, 3]
    starts = [1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0]
    pairs = SentencePairs(OneShard(tokens, starts), tokenizer, 15, SEED, 0.0, None)
    found = {}
    for seed in range(60):
        chunk = pairs._chunk(0, start, target, np.random.default_rng(seed))
        assert chunk.sentence_starts[0] == 0 and (chunk.sentence_starts < len(chunk.tokens)).all()
        found[tuple(chunk.tokens.tolist())] = chunk.document
    assert found == expected


def test_a_chunk_within_a_very_long_sentence(tokenizer):
    pairs = SentencePairs(OneShard([*range(10, 60), 3], [1] + [0] * 50), tokenizer, 15, SEED, 0.0, None)
    chunk = pairs._chunk(0, 4, 12, np.random.default_rng(0))
    assert chunk.tokens.tolist() == list(range(14, 50)) and chunk.sentence_starts.tolist() == [0]


# ---------------------------------------------------------------------------------------------------------------------
# Cutting and joining
# ---------------------------------------------------------------------------------------------------------------------


def token_by_token(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """google-research/bert truncate_seq_pair: one token at a time from the longer one, the second where equal."""
    while length_a + length_b > room:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 150), st.integers(0, 2**32 - 1))
def test_kept_lengths_are_those_of_the_original_loop(length_a, length_b, room, seed):
    expected = token_by_token(length_a, length_b, room)
    assert kept_lengths(length_a, length_b, room) == expected
    a, b = np.arange(length_a), 1000 + np.arange(length_b)
    cut_a, cut_b = truncated_pair(a, b, room, np.random.default_rng(seed))
    assert (len(cut_a), len(cut_b)) == expected
    for cut, whole in ((cut_a, a), (cut_b, b)):
        assert np.isin(cut, whole).all() and (np.diff(cut) == 1).all(), "what is kept is not consecutive"


def test_tokens_are_dropped_in_front_and_behind_by_coins():
    rng = np.random.default_rng(0)
    fronts = [int(truncated_pair(np.arange(30), np.zeros(0, int), 10, rng)[0][0]) for _ in range(2000)]
    assert abs(np.mean(fronts) - 10) < 5 * (20 / 4 / 2000) ** 0.5, "the coin is not fair"
    assert abs(np.var(fronts) - 5) < 1, "it is not one coin for each token"


@pytest.mark.parametrize(
    "segments, ids, types",
    [
        (([7, 8],), [2, 7, 8, 3, 0, 0, 0, 0], [0] * 8),
        (([7], [8, 9]), [2, 7, 3, 8, 9, 3, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0]),
        (([7], []), [2, 7, 3, 3, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]),
        (([7, 7, 7], [8, 8]), [2, 7, 7, 7, 3, 8, 8, 3], [0, 0, 0, 0, 0, 1, 1, 1]),
    ],
)
def test_join(tokenizer, segments, ids, types):
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 2, 3)
    example = join(tokenizer, 8, *(np.array(segment, np.int32) for segment in segments))
    assert example["input_ids"].tolist() == ids
    assert example["token_type_ids"].tolist() == types
    assert example["attention_mask"].sum() == 1 + sum(len(segment) + 1 for segment in segments)
    assert example["example_weights"] == 1.0
    kinds = collections.Counter(example[name].dtype for name in ("input_ids", "token_type_ids", "attention_mask"))
    assert set(kinds) == {np.dtype(np.int32)}
