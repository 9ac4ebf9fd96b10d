"""Values read from their places: those that were written, wherever a record or a file ends, and none that was not checked."""

import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.corpus import format as corpus_format
from bert_jax.data.corpus import record_places
from bert_jax.data.corpus.format import BLOCK_TOKENS, encode_block, token_dtype
from bert_jax.errors import UserError
from tests.data.pretraining.corpora import SEPARATOR, corpus_of


@pytest.fixture(scope="module", params=[60_000, 70_000], ids=["16 bits", "32 bits"])
def written(request):
    """A corpus of two long shards and a tiny one, and the same as arrays: tokens, sentence starts, documents."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(4, request.param, size) for size in (40 * BLOCK_TOKENS + 7, 33 * BLOCK_TOKENS, 5)]
    for shard in tokens:
        shard[rng.random(len(shard)) < 0.01] = SEPARATOR
        shard[-1] = SEPARATOR
    starts = [rng.random(len(shard)) < 0.1 for shard in tokens]
    before = [np.concatenate([[0], np.cumsum(shard == SEPARATOR)[:-1]]) for shard in tokens]
    documents = [(number << 32) + count for number, count in enumerate(before)]
    return corpus_of(*tokens, starts=starts, vocab_size=request.param), tokens, starts, documents


@pytest.mark.parametrize("length", [1, 7, 126, 3000, 25_000])
def test_rows_hold_what_was_written(written, length):
    corpus, tokens, starts, documents = written
    rng = np.random.default_rng(length)
    shards = rng.integers(3, size=40)
    places = (rng.random(40) * corpus.shard_tokens[shards]).astype(int)
    got = corpus.tokens(shards, places, length), corpus.sentence_starts(shards, places, length)
    assert [array.dtype for array in got] == [np.int32, bool]
    for row, (shard, place) in enumerate(zip(shards, places, strict=True)):
        ring = (place + np.arange(length)) % len(tokens[shard])
        assert np.array_equal(got[0][row], tokens[shard][ring]), f"tokens from {place} of shard {shard}"
        assert np.array_equal(got[1][row], starts[shard][ring]), f"sentence starts from {place} of shard {shard}"
    expected = [documents[shard][place] for shard, place in zip(shards, places, strict=True)]
    assert corpus.documents(shards, places).tolist() == expected


def test_no_rows(written):
    nothing = np.zeros(0, int)
    assert written[0].tokens(nothing, nothing, 9).shape == (0, 9) and len(written[0].documents(nothing, nothing)) == 0


@pytest.mark.parametrize("has_checksums", [True, False], ids=["checksums", "of an older version"])
def test_only_blocks_that_are_used_are_checked_and_each_is(has_checksums):
    tokens = np.random.default_rng(0).integers(4, 60_000, 30 * BLOCK_TOKENS)
    written = corpus_of(tokens, has_checksums=has_checksums)
    path = written.directory / "0"
    data = bytearray(path.read_bytes())
    place = data.index(tokens[7 * BLOCK_TOKENS + 100 :][:20].astype(np.uint16).tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    corpus = pickle.loads(pickle.dumps(written))  # no file is open, no block is known
    zero = np.array([0])
    for _ in range(2):
        assert np.array_equal(corpus.tokens(zero, zero, 7 * BLOCK_TOKENS)[0], tokens[: 7 * BLOCK_TOKENS])
        for read in (corpus.tokens, corpus.sentence_starts):
            with pytest.raises(UserError, match=rf"{path}: damaged \(.*record 7.*\); copy the corpus again"):
                read(zero, np.array([8 * BLOCK_TOKENS - 1]), 1)
        assert np.array_equal(
            corpus.tokens(zero, np.array([8 * BLOCK_TOKENS]), 500)[0], tokens[8 * BLOCK_TOKENS :][:500]
        )


@pytest.mark.parametrize("options", ["group_size:1,zstd", "group_size:2,uncompressed"])
def test_sound_records_that_lie_elsewhere(options):
    """Files of another writer, which ArrayRecord reads, but whose places are not known."""
    tokens = np.random.default_rng(0).integers(4, 60_000, 4 * BLOCK_TOKENS).astype(token_dtype(60_000))
    corpus = corpus_of(tokens, has_checksums=False)
    path = corpus.directory / "0"
    writer = ArrayRecordWriter(str(path), options)
    for block in tokens.reshape(4, BLOCK_TOKENS):
        writer.write(encode_block(block, np.zeros(BLOCK_TOKENS, bool), 0))
    writer.close()
    with pytest.raises(
        UserError, match=rf"{path}: damaged \(record [01] is not where it should be\); copy the corpus again"
    ):
        corpus.tokens(np.zeros(4, int), np.arange(4) * BLOCK_TOKENS, 9)
    assert corpus_format.WRITER_OPTIONS == "group_size:1,uncompressed"


def test_a_file_that_gets_shorter_while_it_is_open():
    tokens = np.random.default_rng(0).integers(4, 60_000, 30 * BLOCK_TOKENS)
    corpus = corpus_of(tokens)
    path = corpus.directory / "0"
    zero, last = np.array([0]), np.array([29 * BLOCK_TOKENS])
    assert np.array_equal(corpus.tokens(zero, last, 9)[0], tokens[29 * BLOCK_TOKENS :][:9])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(UserError, match=rf"{path}: damaged \(it ends at byte \d.*, within a record\); copy the corpus"):
        corpus.tokens(zero, last, 9)


def test_an_array_of_checksums_of_another_size():
    corpus = corpus_of(np.full(5 * BLOCK_TOKENS, 7))
    np.save(corpus.directory / "checksums-train.npy", np.zeros(4, np.uint32))
    with pytest.raises(UserError, match=r"checksums-train.npy: damaged \(not 5 values of type uint32\)"):
        pickle.loads(pickle.dumps(corpus))


@settings(max_examples=30, deadline=None)
@given(st.integers(200, 16_000), st.integers(1, 40), st.data())
def test_records_are_where_they_are_said_to_be(tmp_path_factory, size, count, data):
    """Any neighbours, of any size that takes two bytes in the header of a chunk, as that of every corpus does."""
    path = tmp_path_factory.mktemp("records") / "file"
    written = [np.random.default_rng(number).bytes(size) for number in range(count)]
    writer = ArrayRecordWriter(str(path), corpus_format.WRITER_OPTIONS)
    for record in written:
        writer.write(record)
    writer.close()
    assert ArrayRecordReader(str(path)).read(0, count) == written
    first = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(first + 1, count))
    start, end = record_places.span(size, first, stop)
    content = path.read_bytes()[start:end]
    assert record_places.records_in(content, size, first, stop) == written[first:stop]
