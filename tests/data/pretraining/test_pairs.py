"""Pairs: whole sentences of one document, another document where it is wanted, cuts at both ends."""

import numpy as np
import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.pretraining.pairs import SentencePairs, _cut
from bert_jax.data.sources.documents import split_sentences
from bert_jax.objectives import nsp, sop
from bert_jax.objectives.pairs import SecondSegments
from bert_jax.random_numbers import row_keys
from tests.data.pretraining.corpora import corpus_of

SEED = 3


@pytest.fixture(scope="module")
def corpus(corpus_dir):
    return Corpus.open(corpus_dir)


@pytest.fixture(scope="module")
def sentences_of(documents, tokenizer):
    """Document, as its tokens without separator -> its sentences as tuples of ids."""
    by_document = []
    for document in documents:
        sentences = [sentence for line in document.text.split("\n") for sentence in split_sentences(line)]
        by_document.append([tuple(ids.tolist()) for ids in tokenizer.encode(sentences)])
    return by_document


class Always:
    """An objective that wants the same of every second segment."""

    def __init__(self, is_other_document: bool = False, is_swapped: bool = False):
        self.wanted = is_other_document, is_swapped

    def second_segments(self, has_next, keys):
        return SecondSegments(*(np.full(len(keys), flag) for flag in self.wanted))


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


def some_rows(pairs, epoch=1, step=3):
    indices = np.arange(0, pairs.size, step)
    return pairs.rows(np.full(len(indices), epoch), indices)


def segments_of(rows, tokenizer, row) -> tuple[list[int], list[int]]:
    ids, size = rows["input_ids"][row].tolist(), int(rows["attention_mask"][row].sum())
    middle = ids.index(tokenizer.sep_id)
    assert ids[0] == tokenizer.cls_id and ids[size - 1] == tokenizer.sep_id and ids[:size].count(tokenizer.sep_id) == 2
    assert ids[size:] == [tokenizer.pad_id] * (len(ids) - size)
    assert rows["token_type_ids"][row].tolist() == [int(middle < place < size) for place in range(len(ids))]
    return ids[1:middle], ids[middle + 1 : size - 1]


def test_segments_are_whole_sentences_of_one_document(corpus, tokenizer, sentences_of):
    """As chunks, before they are cut to fit."""
    pairs = SentencePairs(corpus, tokenizer, 64, SEED, 0.1, Always())
    indices = np.arange(0, pairs.size, 3)
    targets = np.full(len(indices), pairs.max_tokens)
    draws = np.random.default_rng(0).random((2, len(indices)))
    chunks = pairs._chunks(*pairs.windows.places(np.ones_like(indices), indices), targets, draws[0])
    cuts, lengths = chunks.random_borders(draws[1]), chunks.ends - chunks.begins
    for tokens, begin, cut, end in zip(chunks.tokens.tolist(), chunks.begins, cuts, chunks.ends, strict=True):
        homes = [number for number, own in enumerate(sentences_of) if is_run_of_sentences(tokens[begin:end], own)]
        assert homes, f"not consecutive whole sentences: {tokenizer.decode(tokens[begin:end])}"
        for part in (tokens[begin:cut], tokens[cut:end]):
            assert any(is_run_of_sentences(part, sentences_of[home]) for home in homes), "cut within a sentence"
    assert np.mean(lengths >= targets) > 0.5, "few pairs fill their row before they are cut"
    assert (cuts < chunks.ends).mean() > 0.8 and (cuts > chunks.begins).all()


def test_what_becomes_of_second_segments(corpus, tokenizer):
    """The same rows in order, swapped, and with text of other documents."""
    wanted = Always(), Always(is_swapped=True), Always(is_other_document=True)
    in_order, swapped, other = (
        some_rows(SentencePairs(corpus, tokenizer, 512, SEED, 0.0, objective), step=1) for objective in wanted
    )
    assert not in_order["is_swapped"].any() and not in_order["is_other_document"].any()
    assert swapped["is_swapped"].all() and other["is_other_document"].all()
    compared, unlike = 0, 0
    for row in range(len(in_order["input_ids"])):
        a, b = segments_of(in_order, tokenizer, row)
        if len(a) + len(b) == 509:  # it was cut, in other places for other segments
            continue
        assert segments_of(swapped, tokenizer, row) == (b, a)
        first, second = segments_of(other, tokenizer, row)
        if len(first) + len(second) < 509:
            assert first == a
        compared, unlike = compared + 1, unlike + (second != b)
    assert unlike == compared > 20


def test_other_documents_are_others(corpus, tokenizer, sentences_of):
    pairs = SentencePairs(corpus, tokenizer, 64, SEED, 0.0, Always())
    indices = np.arange(pairs.size)
    places = pairs.windows.places(np.zeros_like(indices), indices)
    documents = corpus.documents(*places)
    targets = 1 + indices % 60
    rows, chunks = pairs._other_documents(documents, targets, row_keys(0, indices))
    assert np.array_equal(rows, indices), "in ten tries another one of 200 documents is hit, and rows are in order"
    assert (corpus.documents(*chunks.places()) != documents).all()
    lengths = chunks.ends - chunks.begins
    assert np.mean(lengths >= targets) > 0.5
    stops, shard_ends = chunks.starts + chunks.ends, corpus.shard_tokens[chunks.shards] - 1
    rests = 0
    for tokens, begin, end, is_last in zip(
        chunks.tokens.tolist(), chunks.begins, chunks.ends, stops == shard_ends, strict=True
    ):
        is_whole = any(is_run_of_sentences(tokens[begin:end], own) for own in sentences_of)
        assert is_whole or is_last, "only the last sentence of a shard may have begun before"
        rests += not is_whole
    assert rests < 0.05 * len(rows)


def test_a_corpus_of_one_document_has_no_other(tokenizer):
    tokens = [*range(10, 60), 3]
    corpus = corpus_of(tokens, starts=[np.arange(51) % 5 == 1], vocab_size=100)
    pairs = SentencePairs(corpus, tokenizer, 20, SEED, 0.0, Always(is_other_document=True))
    rows = some_rows(pairs, step=1)
    assert not rows["is_other_document"].any()
    for row in range(pairs.size):
        a, b = segments_of(rows, tokenizer, row)
        assert a and b and b[0] > a[-1]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_lone_segment_is_cut_in_its_middle(tokenizer, size):
    """Documents of one sentence each."""
    tokens, starts = [], []
    for _ in range(20):
        tokens += [*range(10, 10 + size), 3]
        starts += [True] + [False] * size
    corpus = corpus_of(tokens, starts=[starts], vocab_size=100)
    for objective in (Always(), Always(is_swapped=True)):
        pairs = SentencePairs(corpus, tokenizer, 20, SEED, 0.0, objective)
        rows = some_rows(pairs, step=1)
        for row in range(pairs.size):
            segments = segments_of(rows, tokenizer, row)
            is_swapped = bool(rows["is_swapped"][row])
            first, second = segments[::-1] if is_swapped else segments
            assert first + second == list(range(10, 10 + size)), "text was lost or added"
            assert size == 1 or len(first) == (size + 1) // 2, "not cut in the middle"
            assert is_swapped == (objective.wanted[1] and size > 1), "a single token cannot be swapped"


@pytest.mark.parametrize(
    "name, objective", [("nsp", nsp.Objective(nsp.Options(), None)), ("sop", sop.Objective(sop.Options(), None))]
)
def test_examples_of_pairs(corpus, tokenizer, name, objective):
    pairs = SentencePairs(corpus, tokenizer, 48, SEED, 0.1, objective)
    rows = objective.corrupt(some_rows(pairs, epoch=0, step=1), None)
    for row in range(pairs.size):
        a, b = segments_of(rows, tokenizer, row)
        assert a and b
    short, labels = rows["attention_mask"].sum(axis=1) < 40, rows[f"{name}_labels"]
    assert 0.35 < labels.mean() < 0.7, f"{labels.mean():.2f} of the labels are 1"
    assert short.sum() > 10, "no pair is short"


# Bounds of these statistics are five standard deviations; the values are those of create_pretraining_data.py.


def test_lengths_of_pairs(tokenizer):
    """Nine in ten pairs fill their row, the others have 2 to max_tokens tokens, all as likely; sentences of one token."""
    text = np.append(10 + np.arange(60_000) % 80, 3)
    corpus = corpus_of(text, starts=[text != 3], vocab_size=100)
    pairs = SentencePairs(corpus, tokenizer, 33, SEED, 0.1, Always())
    rows = some_rows(pairs, step=1)
    sizes, most = rows["attention_mask"].sum(axis=1) - 3, 30
    sizes = sizes[:-2]  # the last windows end with their document
    assert pairs.max_tokens == sizes.max() == most
    short, expected = sizes[sizes < most], 0.1 * (most - 2) / (most - 1)
    assert abs(len(short) / len(sizes) - expected) < 5 * (expected * (1 - expected) / len(sizes)) ** 0.5
    assert set(short) == set(range(2, most))
    assert abs(short.mean() - (most + 1) / 2) < 5 * ((most - 2) ** 2 / 12 / len(short)) ** 0.5
    first = rows["attention_mask"].sum(axis=1) - rows["token_type_ids"].sum(axis=1) - 2
    assert set(first[:-2][sizes == most]) == set(range(1, most)), "a border that no pair has"


def test_share_of_random_next(corpus, tokenizer):
    """Half where the document goes on, all where it does not: together more than half."""
    seen = []

    class Recorded(nsp.Objective):
        def second_segments(self, has_next, keys):
            seen.append(has_next)
            return super().second_segments(has_next, keys)

    pairs = SentencePairs(corpus, tokenizer, 48, SEED, 0.1, Recorded(nsp.Options(), None))
    labels = np.concatenate([some_rows(pairs, epoch, step=1)["is_other_document"] for epoch in range(4)])
    has_next = np.concatenate(seen)
    assert labels[~has_next].all() and 0.02 < (~has_next).mean() < 0.2
    assert abs(labels[has_next].mean() - 0.5) < 5 * (0.25 / has_next.sum()) ** 0.5
    assert labels.mean() > 0.5


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
    corpus = corpus_of(tokens, starts=[starts], first_document=5, vocab_size=100)
    pairs = SentencePairs(corpus, tokenizer, 15, SEED, 0.0, Always())
    draws = np.linspace(0, 1, 60, endpoint=False)
    places = np.zeros(60, int), np.full(60, start)
    chunks = pairs._chunks(*places, np.full(60, target), draws)
    documents = corpus.documents(*chunks.places())
    texts = [
        tuple(row[begin:end])
        for row, begin, end in zip(chunks.tokens.tolist(), chunks.begins, chunks.ends, strict=True)
    ]
    assert dict(zip(texts, documents.tolist(), strict=True)) == expected


def test_a_chunk_within_a_very_long_sentence(tokenizer):
    corpus = corpus_of([*range(10, 60), 3], starts=[[1] + [0] * 50], vocab_size=100)
    pairs = SentencePairs(corpus, tokenizer, 15, SEED, 0.0, Always())
    chunks = pairs._chunks(np.array([0]), np.array([4]), np.array([12]), np.array([0.0]))
    assert chunks.tokens[0, chunks.begins[0] : chunks.ends[0]].tolist() == list(range(14, 50))
    assert chunks.random_borders(np.array([0.9])) == chunks.ends, "there is no second sentence"


def test_borders_are_as_likely(tokenizer):
    """Four sentences: each of the three borders between them in a third of the cases."""
    corpus = corpus_of([*range(10, 22), 3], starts=[[1, 0, 0] * 4 + [0]], vocab_size=100)
    pairs = SentencePairs(corpus, tokenizer, 15, SEED, 0.0, Always())
    draws = np.linspace(0, 1, 300, endpoint=False)
    zeros = np.zeros(300, int)
    chunks = pairs._chunks(zeros, zeros, np.full(300, 12), draws)
    borders, counts = np.unique(chunks.random_borders(draws), return_counts=True)
    assert borders.tolist() == [3, 6, 9] and counts.tolist() == [100, 100, 100]


def test_tokens_are_dropped_in_front_and_behind_by_coins():
    count = 2000
    tokens = np.tile(np.arange(40), (count, 1))
    keys = row_keys(0, np.arange(count))
    kept = _cut(tokens, np.full(count, 5), np.full(count, 35), np.full(count, 10), keys).reshape(count, 10)
    assert (np.diff(kept, axis=1) == 1).all() and kept.min() >= 5 and kept.max() < 35, "what is kept is not consecutive"
    fronts = kept[:, 0] - 5
    assert abs(np.mean(fronts) - 10) < 5 * (20 / 4 / count) ** 0.5, "the coin is not fair"
    assert abs(np.var(fronts) - 5) < 1, "it is not one coin for each token"
