"""Corpora at URLs: their batches are those of the same corpus on a disk, and few bytes are read for them."""

import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.corpus.format import BLOCK_TOKENS, Corpus
from bert_jax.data.feeder import feed
from bert_jax.data.pretraining.stream import DataConfig, held_out_stream, training_stream
from bert_jax.data.remote import Url
from bert_jax.errors import UserError
from bert_jax.objectives.base import default_options, load
from tests.data.pretraining.corpora import SEPARATOR, corpus_of
from tests.data.urls import change, requests_of, upload

KINDS = {
    "windows": (("mlm",), {}),
    "documents": (("mlm",), {"packing": "documents"}),
    "pairs": (("mlm", "sop"), {}),
    "a mixture": (("mlm",), {"mixture": ("0.3:{}",)}),
}


@pytest.fixture(params=["memory", "s3"])
def url(request, corpus_dir, home) -> str:
    return upload(corpus_dir, f"{request.getfixturevalue(request.param)}/corpora/tiny")


@pytest.fixture
def copied(corpus_dir, tmp_path) -> Path:
    return Path(shutil.copytree(corpus_dir, tmp_path / "tiny"))


def streams(place: object, other: object, kind: str, tokenizer) -> list:
    objectives, options = KINDS[kind]
    options = {
        name: tuple(entry.format(other) for entry in value) if name == "mixture" else value
        for name, value in options.items()
    }
    config = DataConfig(corpus=str(place), sequence_length=32, **options)
    loaded = load(objectives, default_options(), tokenizer)
    return [training_stream(config, tokenizer, loaded, seed=1), held_out_stream(config, tokenizer, loaded)]


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_a_local_corpus(kind, url, corpus_dir, copied, tokenizer):
    other = upload(copied, f"{url}-other")
    numbers = np.arange(100) * 7
    for local, there in zip(
        streams(corpus_dir, copied, kind, tokenizer), streams(url, other, kind, tokenizer), strict=True
    ):
        assert local.size == there.size
        for _ in range(2):  # from the service, and from the cache
            assert_same(local.batch(numbers), there.batch(numbers))


def test_worker_processes(s3, home, corpus_dir, tokenizer):
    """They read through clients of their own, and share the cache."""
    url = upload(corpus_dir, f"{s3}/corpora/workers")
    local, there = streams(corpus_dir, "", "windows", tokenizer)[0], streams(url, "", "windows", tokenizer)[0]
    there.batch(np.arange(2))  # the client of this process is open
    made = feed(Numbered(there), 0, 12, workers=2, prefetch=4)
    for step, batch in enumerate(made):
        assert_same(batch, Numbered(local)(step))
    assert step == 11


class Numbered:
    """Makes the batch of a step; pickles."""

    def __init__(self, stream):
        self.stream = stream

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        return self.stream.batch(step * 8 + np.arange(8))


# ---------------------------------------------------------------------------------------------------------------------
# Records: a larger corpus of random tokens
# ---------------------------------------------------------------------------------------------------------------------

BLOCKS = 600
RECORD = 6300  # bytes of a record, its number and its header, at most


@pytest.fixture(scope="module")
def written():
    tokens = np.random.default_rng(0).integers(4, 60_000, BLOCKS * BLOCK_TOKENS - 100)
    tokens[::50] = SEPARATOR
    return corpus_of(tokens[: 200 * BLOCK_TOKENS - 7], tokens[200 * BLOCK_TOKENS - 7 :])


def at(url: str, written: Corpus, megabytes: int) -> Corpus:
    upload(written.directory, url)
    return Corpus(written.directory, written.index, "train", Url(url), megabytes)


@pytest.fixture
def fresh(written, memory):
    """`fresh(megabytes)`: that corpus at a URL, with an empty cache."""

    def make(megabytes: int) -> Corpus:
        (written.directory / "records-train").unlink(missing_ok=True)
        return at(f"{memory}/random", written, megabytes)

    return make


def places(written: Corpus, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shards = rng.integers(2, size=count)
    return shards, (rng.random(count) * written.shard_tokens[shards]).astype(int)


@pytest.mark.parametrize("length", [1, 126, 5000])
@pytest.mark.parametrize("megabytes", [1, 100], ids=["a small cache", "a large cache"])
def test_any_place(written, fresh, megabytes, length):
    corpus = fresh(megabytes)
    for seed in range(3):
        shards, starts = places(written, 60, seed)
        for name in ("tokens", "sentence_starts"):
            expected, got = (getattr(of, name)(shards, starts, length) for of in (written, corpus))
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(corpus.documents(shards, starts), written.documents(shards, starts))
    assert (written.directory / "records-train").stat().st_size <= min(megabytes * 1e6, BLOCKS * RECORD)
    np.testing.assert_array_equal(corpus.token_counts(), written.token_counts())


def test_few_bytes_are_read(written, fresh, memory):
    whole = sum(path.stat().st_size for path in written.directory.glob("[01]"))
    shards, starts = places(written, 10)
    for megabytes, neighbours in ((1, 1), (100, 16)):
        corpus = fresh(megabytes)
        with requests_of(memory) as noted:
            corpus.tokens(shards, starts, 126)
            first = len(noted)
            corpus.tokens(shards, starts, 126)
        assert first <= 20 and len(noted) - first <= (4 if neighbours == 1 else 0), "the cache has nearly all of them"
        read = sum(stop - start for _, start, stop in noted)
        assert read <= len(noted) * neighbours * RECORD and read < whole / 2


def test_each_record_is_fetched_once_if_all_fit(written, fresh, memory):
    corpus = fresh(100)
    with requests_of(memory) as noted:
        for seed in range(20):
            corpus.tokens(*places(written, 100, seed), 126)
    assert len(noted) == len(set(noted)) <= BLOCKS // 16 + 2


def test_threads_and_pickling(written, fresh):
    corpus = fresh(1)
    copies = [corpus, pickle.loads(pickle.dumps(corpus))]
    barrier = threading.Barrier(4)

    def read(seed: int) -> None:
        barrier.wait()
        for number in range(10):
            shards, starts = places(written, 30, 100 * seed + number)
            got = copies[seed % 2].tokens(shards, starts, 300)
            np.testing.assert_array_equal(got, written.tokens(shards, starts, 300))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))


def test_what_is_damaged_in_the_cache_is_fetched_again(written, fresh, memory):
    corpus = fresh(100)
    shards, starts = places(written, 50)
    expected = corpus.tokens(shards, starts, 126)
    path = written.directory / "records-train"
    content = bytearray(path.read_bytes())
    content[::1000] = bytes(byte ^ 255 for byte in content[::1000])
    path.write_bytes(content)
    with requests_of(memory) as noted:
        np.testing.assert_array_equal(corpus.tokens(shards, starts, 126), expected)
    assert noted
    path.write_bytes(content[: len(content) // 3])
    np.testing.assert_array_equal(corpus.tokens(shards, starts, 126), expected)


def test_a_network_that_fails_in_the_middle(written, fresh, memory, caplog):
    corpus = fresh(100)
    shards, starts = places(written, 200)
    with requests_of(memory, fail=lambda number: number % 2 == 1 and number < 30) as noted:
        np.testing.assert_array_equal(corpus.tokens(shards, starts, 126), written.tokens(shards, starts, 126))
    assert len(noted) > len(set(noted)) and "Connection reset by peer; trying again in 0 s" in caplog.text


def test_a_network_that_stays_away(written, fresh, memory):
    corpus = fresh(100)
    shards, starts = np.array([1]), np.array([37 * BLOCK_TOKENS])
    message = rf"^{memory}/random/1: record 37: Connection reset by peer, 4 times; check the network"
    with requests_of(memory, fail=lambda number: True) as noted, pytest.raises(UserError, match=message):
        corpus.tokens(shards, starts, 126)
    assert len(noted) == 4
    assert np.array_equal(corpus.tokens(shards, starts, 126), written.tokens(shards, starts, 126)), "it is back"


@pytest.mark.parametrize("service", ["memory", "s3"])
def test_damaged_and_truncated_shards_name_the_record(service, written, request):
    base = request.getfixturevalue(service)
    zero, start, last = np.array([0]), np.array([150 * BLOCK_TOKENS]), np.array([199 * BLOCK_TOKENS - 7])
    corpus = at(f"{base}/damaged", written, 1)

    def flipped(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[152 * RECORD] ^= 1
        return bytes(changed)

    change(f"{base}/damaged/0", flipped)
    (written.directory / "records-train").unlink(missing_ok=True)
    message = rf"^{base}/damaged/0: record 15[0-4] is missing or damaged .*checksum.*; copy the corpus again"
    with requests_of(base), pytest.raises(UserError, match=message):
        corpus.tokens(zero, start, 5 * BLOCK_TOKENS)
    change(f"{base}/damaged/0", lambda content: content[: len(content) // 2])
    with requests_of(base), pytest.raises(UserError, match=rf"^{base}/damaged/0: record 19\d is missing or damaged"):
        corpus.tokens(zero, last, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------------------


def test_small_files_are_copied_once_until_they_change(url, home, corpus_dir, tokenizer):
    corpus = Corpus.open(url)
    assert corpus.directory.name == "tiny" and str(corpus.directory).startswith(str(home))
    assert corpus.summary == Corpus.open(corpus_dir).summary and not list(corpus.directory.glob("*array_record*"))
    with requests_of(url) as noted:
        assert Corpus.open(url, "validation").directory == corpus.directory
    assert [path.rpartition("/")[2] for path, *_ in noted] == ["corpus.json"]
    change(f"{url}/corpus.json", lambda content: content.replace(b'"source": "tests"', b'"source": "others"'))
    assert Corpus.open(url).directory != corpus.directory


def test_a_full_disk_is_no_cache(written, fresh, monkeypatch, caplog):
    corpus = fresh(100)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    shards, starts = places(written, 10)
    for _ in range(2):
        np.testing.assert_array_equal(corpus.tokens(shards, starts, 126), written.tokens(shards, starts, 126))
    assert caplog.text.count("No space left on device") == 1


def remove(name: str):
    def edit(url: str) -> None:
        files = url_files(url)
        for path in files.glob(f"{url}/{name}"):
            files.rm(path)

    return edit


def url_files(url: str):
    from bert_jax.data.remote import file_system

    return file_system(url)[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove("corpus.json"), r"^{}: no finished corpus \(corpus.json is missing\); make it with"),
        (remove("*-train*-00001-*"), r"^{}/bert_corpus-train.*-00001-of-.*: missing; copy the corpus again"),
        (remove("checksums-train.npy"), r"^{}: has no checksums, being of an older version; prepare it again"),
        (
            lambda url: change(min(shards_of(url)), lambda content: content[:-9]),
            r"^{}/bert.* bytes instead of \d+; copy",
        ),
        (lambda url: change(f"{url}/corpus.json", lambda content: b"{"), r"corpus.json: damaged"),
        (
            lambda url: change(f"{url}/checksums-train.npy", lambda content: content[:20]),
            "checksums-train.npy: damaged",
        ),
    ],
)
def test_mistakes(edit, message, url):
    edit(url)
    with pytest.raises(UserError, match=message.format(url)):
        Corpus.open(url)


def shards_of(url: str) -> list[str]:
    return [f"{url}/{name}" for name in Url(url).sizes() if "train.array_record" in name]


def test_no_such_bucket(s3, home):
    with pytest.raises(UserError, match=r"^s3://nowhere/corpus: no finished corpus"):
        Corpus.open("s3://nowhere/corpus")
