"""Instances are what create_pretraining_data.py describes: pairs that cover documents, and the statistics of masks.

Bounds of statistics are five standard deviations.
"""

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.pretraining.instances import Instances
from bert_jax.errors import UserError
from bert_jax.objectives import mlm
from tests.data.pretraining.corpora import corpus_of
from tests.hostile.limits import refused
from tests.running import assert_one_line, run
from tools.lib.document_pairs import Document, Documents, _truncated, pairs_of_document
from tools.write_instances import Settings, write

LENGTH, PREDICTIONS, DUPES = 32, 4, 4


def deviation(share: float, count: int) -> float:
    return (share * (1 - share) / count) ** 0.5


def documents_of(*documents: list[int]) -> Documents:
    """Documents of sentences of these lengths; tokens are numbers from 10 on, unique in the corpus."""
    tokens, starts, first = [], [], 10
    for sizes in documents:
        for size in sizes:
            tokens += range(first, first + size)
            starts += [True] + [False] * (size - 1)
            first += size
        tokens, starts = [*tokens, 3], [*starts, False]
    corpus = corpus_of(tokens, starts=[starts], vocab_size=1 << 20)
    documents = Documents(corpus)
    documents.folder = corpus.folder  # the files live as long as this
    return documents


def walked(documents: Documents, number: int, max_tokens: int, short: float = 0.0, seed: int = 0):
    return list(pairs_of_document(documents, number, max_tokens, short, np.random.default_rng(seed)))


# ----------------------------------------------------------------------------------------------------------------------
# Documents
# ----------------------------------------------------------------------------------------------------------------------


def test_documents_are_those_of_the_corpus(corpus_dir, documents, tokenizer):
    corpus = Corpus.open(corpus_dir)
    own = Documents(corpus)
    assert len(own) == corpus.num_documents
    assert sum(len(own[number].tokens) + 1 for number in range(len(own))) == corpus.num_tokens
    texts = {tuple(ids.tolist()) for ids in tokenizer.encode([document.text for document in documents])}
    assert all(tuple(own[number].tokens.tolist()) in texts for number in range(len(own)))
    sentences = [len(own[number].borders) - 1 for number in range(len(own))]
    assert min(sentences) >= 3 and max(sentences) <= 20, "documents have 3 to 20 sentences"


def test_documents_by_hand():
    documents = documents_of([2, 3], [1], [4, 1, 1])
    assert len(documents) == 3
    assert documents[2].tokens.tolist() == [16, 17, 18, 19, 20, 21] and documents[2].borders.tolist() == [0, 4, 5, 6]
    assert documents[2].text(1, 3).tolist() == [20, 21]
    assert [documents[2].end_of(0, size) for size in (-1, 0, 1, 4, 5, 6, 99)] == [1, 1, 1, 1, 2, 3, 3]


def test_long_documents_are_found(tmp_path):
    """Over more blocks than are read at a time."""
    size = 300 * 2048
    documents = documents_of([size], [7] * 10)
    assert len(documents) == 2 and len(documents[0].tokens) == size and len(documents[1].borders) == 11


# ----------------------------------------------------------------------------------------------------------------------
# Pairs
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_cover_a_document_once(seed, short):
    """First segments and true second segments are the document; those that random ones replace are put back.

    Sentences of one token: every chunk has exactly the tokens that it aims at, and nothing is truncated.
    """
    documents = documents_of([1] * 300, [1] * 400)
    pairs = walked(documents, 0, 50, short, seed)
    parts = [pair.a if pair.is_random_next else np.concatenate([pair.a, pair.b]) for pair in pairs]
    assert np.array_equal(np.concatenate(parts), documents[0].tokens)
    target = max(len(pair.a) + len(pair.b) for pair in pairs)
    for pair in pairs:
        assert np.isin(pair.b, documents[int(pair.is_random_next)].tokens).all() and (np.diff(pair.b) == 1).all()
        is_at_end = pair.b[-1] == documents[1].tokens[-1] or not pair.is_random_next
        assert len(pair.a) + len(pair.b) == target or is_at_end
    assert (target == 50) == (short == 0.0)


def test_segments_are_whole_sentences():
    documents = documents_of([3] * 40, [2, 5] * 30)
    borders = [set(document.tokens[document.borders[:-1]].tolist()) for document in (documents[0], documents[1])]
    random_next = 0
    for seed in range(20):
        for pair in walked(documents, 0, 80, 1.0, seed):
            if len(pair.a) + len(pair.b) < 80:  # not truncated
                other = borders[int(pair.is_random_next)]
                assert pair.a[0] in borders[0] and len(pair.a) % 3 == 0 and pair.b[0] in other
                assert pair.b[-1] + 1 in other or pair.b[-1] == max(documents[int(pair.is_random_next)].tokens)
                random_next += pair.is_random_next
    assert random_next > 50


def test_a_lone_sentence_is_followed_by_random_text():
    pairs = walked(documents_of([100] * 5, [3] * 50), 0, 60)
    assert len(pairs) == 5 and all(pair.is_random_next for pair in pairs)
    assert all(len(pair.a) + len(pair.b) <= 60 for pair in pairs)


def test_a_corpus_of_one_document_takes_its_own_text():
    """After ten tries, as in the original, which calls that random, too."""
    pairs = walked(documents_of([2] * 500), 0, 20)
    assert {pair.is_random_next for pair in pairs} == {True, False}


def test_half_of_the_next_segments_are_random_where_there_is_one():
    """A long document of sentences of one token: all but the last chunk have several."""
    pairs = walked(documents_of([1] * 60_000, [1] * 500), 0, 20)[:-1]
    share = np.mean([pair.is_random_next for pair in pairs])
    assert len(pairs) > 3000 and abs(share - 0.5) < 5 * deviation(0.5, len(pairs)), f"{share:.3f} are random"
    borders = Counter(len(pair.a) for pair in pairs)
    assert set(borders) == set(range(1, 20)), "the first segment has 1 to 19 of 20 sentences"
    most = max(abs(count / len(pairs) - 1 / 19) for count in borders.values())
    assert most < 5 * deviation(1 / 19, len(pairs)), "not all as likely"


def test_short_targets_are_drawn_once_for_a_document():
    count, most, share = 600, 20, 0.5
    documents = documents_of(*[[1] * 60] * count)
    targets = []
    for number in range(count):
        pairs = walked(documents, number, most, share, seed=number)[:-1]  # the last chunk may be shorter
        sizes = {len(pair.a) + len(pair.b) for pair in pairs if not pair.is_random_next}
        assert len(sizes) <= 1, f"pairs of {sizes} tokens in one document"
        targets += sizes
    short = [target for target in targets if target < most]
    expected = share * 18 / 19  # a short target is any of 2 to 20
    assert abs(len(short) / len(targets) - expected) < 5 * deviation(expected, len(targets))
    counts = Counter(short)
    assert set(counts) == set(range(2, most)) and abs(np.mean(short) - 10.5) < 5 * (18**2 / 12 / len(short)) ** 0.5


def test_truncation():
    rng, count = np.random.default_rng(0), 2000
    for sizes, expected in (((30, 5), (15, 5)), ((5, 30), (5, 15)), ((30, 30), (10, 10)), ((21, 30), (10, 10))):
        a, b = _truncated(np.arange(sizes[0]), np.arange(sizes[1]), 20, rng)
        assert (len(a), len(b)) == expected
    assert [len(part) for part in _truncated(np.arange(11), np.arange(11), 21, rng)] == [11, 10], "ties lose the second"
    fronts = [int(_truncated(np.arange(35), np.arange(5), 20, rng)[0][0]) for _ in range(count)]
    assert abs(np.mean(fronts) - 10) < 5 * (20 / 4 / count) ** 0.5, "the coin is not fair"
    assert abs(np.var(fronts) - 5) < 1, "it is not one coin for each token"


def test_a_sentence_that_ends_a_document():
    document = Document(np.arange(7), np.array([0, 3, 7]))
    assert document.end_of(1, 100) == 2 and document.text(1, 2).tolist() == [3, 4, 5, 6]


# ----------------------------------------------------------------------------------------------------------------------
# Instances
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings():
    return Settings(LENGTH, 0.1, mlm.Options(max_predictions=PREDICTIONS), seed=7)


@pytest.fixture(scope="module")
def written(corpus_dir, settings, tmp_path_factory):
    """The folder, and what `write` says of it."""
    folder = tmp_path_factory.mktemp("written") / "instances"
    return folder, write(str(corpus_dir), folder, settings, DUPES, shards=3)


@pytest.fixture(scope="module")
def batch(written, tokenizer):
    """All training instances."""
    instances = Instances.open(written[0])
    return instances.rows(np.arange(instances.size), tokenizer)


def original_ids(batch) -> np.ndarray:
    ids, rows = batch["input_ids"].copy(), np.nonzero(batch["mlm_weights"])
    ids[rows[0], batch["mlm_positions"][rows]] = batch["mlm_labels"][rows]
    return ids


def test_files(written, batch):
    folder, summaries = written
    names = [f"train-{number:05d}-of-00003.tfrecord" for number in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer", *names, "validation-00000-of-00001.tfrecord"]
    assert list(folder.parent.iterdir()) == [folder], "a draft is left over"
    sizes = [Instances.open(folder)._first[number + 1] - Instances.open(folder)._first[number] for number in range(3)]
    mean = len(batch["input_ids"]) / 3
    assert max(abs(size - mean) for size in sizes) < 5 * mean**0.5
    assert summaries["train"] == (len(batch["input_ids"]), batch["nsp_labels"].sum())
    assert summaries["validation"].instances == Instances.open(folder, "validation").size
    assert str(summaries["train"]).startswith(f"{mean * 3:,.0f} instances, ")


def test_instances_of_a_document_are_spread(batch):
    """Neighbours in a file have nothing in common: the files are shuffled."""
    words = [set(row[row > 4].tolist()) for row in original_ids(batch)[:400]]
    likeness = [len(one & other) / len(one | other) for one, other in pairwise(words)]
    distant = [len(one & other) / len(one | other) for one, other in zip(words, words[200:], strict=False)]
    assert abs(np.mean(likeness) - np.mean(distant)) < 0.05


@pytest.fixture(scope="module")
def once(corpus_dir, settings, tmp_path_factory):
    """The folder of a single walk."""
    folder = tmp_path_factory.mktemp("once") / "instances"
    write(str(corpus_dir), folder, settings, 1, shards=1)
    return folder


def test_every_document_is_walked_dupe_factor_times(once, batch, tokenizer):
    instances = Instances.open(once)
    single = instances.rows(np.arange(instances.size), tokenizer)
    assert abs(len(batch["input_ids"]) / DUPES - instances.size) < 0.1 * instances.size
    rows = {row.tobytes() for row in batch["input_ids"]}
    assert {row.tobytes() for row in single["input_ids"]} <= rows, "the first walk of both is not the same"
    assert len(rows) > 0.95 * len(batch["input_ids"]), "a walk repeats another one"


def test_reproducible(corpus_dir, settings, once, tmp_path):
    for name, seed in (("again", settings.seed), ("other", settings.seed + 1)):
        write(str(corpus_dir), tmp_path / name, settings._replace(seed=seed), 1, shards=1)
    for path in sorted(once.glob("*.tfrecord")):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / path.name).read_bytes()


def test_rows(batch, tokenizer):
    ids, sizes = original_ids(batch), batch["attention_mask"].sum(axis=1)
    positions = np.arange(LENGTH)
    is_separator = ids == tokenizer.sep_id
    assert (ids[:, 0] == tokenizer.cls_id).all() and (is_separator.sum(axis=1) == 2).all()
    assert (ids[positions >= sizes[:, None]] == tokenizer.pad_id).all()
    middle = is_separator.argmax(axis=1)
    expected = (positions > middle[:, None]) & (positions < sizes[:, None])
    assert np.array_equal(batch["token_type_ids"], expected)
    assert (middle > 1).all() and (sizes - middle > 2).all(), "an empty segment"


def test_shares_of_pairs(batch):
    """More than half of the next segments are random: also those of all chunks of one sentence, mostly ends of documents."""
    count = len(batch["nsp_labels"])
    share, full = batch["nsp_labels"].mean(), (batch["attention_mask"].sum(axis=1) == LENGTH).mean()
    assert 0.5 + 5 * deviation(0.5, count) < share < 0.65, f"{share:.3f} are random"
    assert 0.6 < full < 0.9, f"{full:.3f} are full"


def test_counts_of_predictions(batch):
    """Special tokens are counted in, and `max_predictions` is kept."""
    sizes, counts = batch["attention_mask"].sum(axis=1), batch["mlm_weights"].sum(axis=1)
    assert batch["mlm_positions"].shape[1] == PREDICTIONS
    assert np.array_equal(counts, [min(PREDICTIONS, max(1, round(0.15 * size))) for size in sizes.tolist()])
    assert set(counts) == {3, 4} and round(0.15 * LENGTH) == 5, "the limit plays no part"


def test_replacements(batch, tokenizer):
    rows = np.nonzero(batch["mlm_weights"])
    labels = batch["mlm_labels"][rows]
    inputs = batch["input_ids"][rows[0], batch["mlm_positions"][rows]]
    assert not np.isin(labels, tokenizer.special_ids).any(), "a special token is masked"
    # A random token may be the one that was there, or [MASK].
    same = 0.1 / tokenizer.vocab_size
    shares = {"mask": (inputs == tokenizer.mask_id, 0.8 + same), "kept": (inputs == labels, 0.1 + same)}
    for name, (is_so, expected) in shares.items():
        assert abs(is_so.mean() - expected) < 5 * deviation(expected, len(labels)), f"{is_so.mean():.3f} are {name}"
    random = inputs[(inputs != tokenizer.mask_id) & (inputs != labels)]
    assert abs(random.mean() - (tokenizer.vocab_size - 1) / 2) < 5 * tokenizer.vocab_size / (12 * len(random)) ** 0.5
    assert np.isin(tokenizer.special_ids, [*random, tokenizer.mask_id]).all(), "of the whole vocabulary"


def test_places_of_predictions(batch, tokenizer):
    """In full rows, 4 of 29 tokens of text are predicted, at every place."""
    is_full = batch["attention_mask"].sum(axis=1) == LENGTH
    is_text = ~np.isin(original_ids(batch)[is_full], tokenizer.special_ids)
    counts = np.bincount(batch["mlm_positions"][is_full][batch["mlm_weights"][is_full] > 0], minlength=LENGTH)
    texts = is_text.sum(axis=0)
    assert counts[texts == 0].sum() == 0
    rates = counts[texts > 0] / texts[texts > 0]
    assert (abs(rates - 4 / 29) < 5 * (4 / 29 * 25 / 29 / texts[texts > 0]) ** 0.5).all()


def test_whole_words(corpus_dir, settings, tmp_path, tokenizer):
    masks = mlm.Options(masking="word", max_predictions=PREDICTIONS)
    write(str(corpus_dir), tmp_path / "words", settings._replace(mlm=masks), 1, shards=1)
    instances = Instances.open(tmp_path / "words")
    batch = instances.rows(np.arange(instances.size), tokenizer)
    ids = original_ids(batch)
    rows, places = np.nonzero(batch["mlm_weights"])[0], batch["mlm_positions"][batch["mlm_weights"] > 0]
    is_predicted = np.zeros(ids.shape, bool)
    is_predicted[rows, places] = True
    is_piece = ~tokenizer.word_starts[ids[:, 1:]]
    both = is_predicted[:, 1:][is_piece] == is_predicted[:, :-1][is_piece]
    assert both.mean() > 0.97, "pieces of a word are predicted together, but for rows whose words are all too long"


def test_as_a_user_runs_it(corpus_dir, tmp_path):
    tool = [sys.executable, "tools/write_instances.py", f"--corpus={corpus_dir}", f"--output={tmp_path}/instances"]
    done = run([*tool, "--mlm_probability=1.5"], code=2)
    assert_one_line(done.stderr, "--mlm_probability: mlm_probability=1.5 must be above 0 and below 1")
    done = run([*tool, "--sequence_length=48", "--dupe_factor=1", "--shards=2"])
    size = Instances.open(tmp_path / "instances").size
    assert f"{tmp_path}/instances: train: {size:,} instances, 5" in done.stdout
    assert Instances.open(tmp_path / "instances").max_predictions == 20, "the default of the original"


def test_output_that_exists_and_damage(corpus_dir, settings, written, tmp_path):
    with refused(f"{written[0]}: exists; choose a new folder"):
        write(str(corpus_dir), written[0], settings, 1, shards=1)
    with pytest.raises(UserError, match=r"no such tokenizer folder"):
        write(str(tmp_path / "nowhere"), tmp_path / "output", settings, 1, shards=1)
    assert not list(Path(tmp_path).iterdir()), "something is left over"
