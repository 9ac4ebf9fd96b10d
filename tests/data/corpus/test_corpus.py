"""Corpus: what goes in comes out of any window, TFDS reads the same, faults are named, preparing is repeatable."""

import json
import pickle
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.corpus import format as corpus_module
from bert_jax.data.corpus.format import BLOCK_TOKENS, Corpus, encode_block, token_dtype
from bert_jax.data.corpus.prepare import dataset_features, prepare
from bert_jax.data.sources.documents import Document, held_out, read_documents, split_sentences
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from tests.data.corpus.spans import read

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh.", *(f"##{letter}" for letter in "abcdefgh")]
FRACTION = 0.3


def letters_tokenizer() -> Tokenizer:
    """One token a letter."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        return Tokenizer.load(folder)


TOKENIZER = letters_tokenizer()


def some_documents(count: int, seed: int = 0) -> list[Document]:
    """Documents of up to some thousand tokens, in several sentences and lines; every seventh is empty."""
    rng = np.random.default_rng(seed)
    documents = []
    for number in range(count):
        words = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 6))) for _ in range(int(rng.integers(1, 900)))]
        ends = rng.choice([" ", ". A", "\n"], len(words), p=[0.9, 0.08, 0.02])
        text = "".join(word + end for word, end in zip(words, ends, strict=True))
        documents.append(Document(f"d{number}", "\x00 \x07" if number % 7 == 6 else text))
    return documents


def stream_of(documents: list[Document]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference: (tokens, sentence_starts, rank of the document) for each place of the stream."""
    tokens, starts, ranks, rank = [], [], [], 0
    for document in documents:
        begin = len(tokens)
        for line in document.text.split("\n"):
            for sentence in split_sentences(line):
                ids = TOKENIZER.encode([sentence])[0].tolist()
                tokens += ids
                starts += [True] * min(1, len(ids)) + [False] * (len(ids) - 1)
        if len(tokens) > begin:
            tokens.append(TOKENIZER.sep_id)
            starts.append(False)
            ranks += [rank] * (len(tokens) - begin)
            rank += 1
    return np.array(tokens), np.array(starts, bool), np.array(ranks)


def make(folder: Path, documents: list[Document], **options):
    options = {"source": "test", "held_out_fraction": FRACTION, "shard_megabytes": 0.02} | options
    return prepare(documents, TOKENIZER, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    make(folder, some_documents(60))
    return folder


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


texts = st.lists(st.text("abc .A\n\x00é🙂ש", max_size=60).map(lambda text: text * 40), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(texts, st.integers(300, 30_000), st.data())
def test_any_window_equals_the_concatenated_documents(texts, shard_bytes, data):
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            summary = make(Path(folder), documents, shard_megabytes=shard_bytes / 1e6)
        except UserError as error:
            assert "all documents are empty" in str(error) and not len(stream_of(documents)[0])
            return
        assert summary.documents + summary.skipped == len(documents)
        for split in json.loads((Path(folder) / "corpus.json").read_text())["splits"]:
            held = split == "validation"
            expected = stream_of([document for document in documents if held_out(document.id, FRACTION) == held])
            corpus = Corpus.open(folder, split)
            assert corpus.num_tokens == corpus.shard_tokens.sum() == len(expected[0])
            assert np.array_equal(corpus.token_counts(), np.bincount(expected[0], minlength=len(VOCABULARY)))
            shard = data.draw(st.integers(0, len(corpus.shard_tokens) - 1))
            size, offset = int(corpus.shard_tokens[shard]), int(corpus.shard_tokens[:shard].sum())
            start, length = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size + 10))
            span = read(corpus, shard, start, length)
            window = slice(offset + start, offset + min(start + length, size))
            assert span.tokens.dtype == np.int32 and np.array_equal(span.tokens, expected[0][window])
            assert span.sentence_starts.dtype == bool and np.array_equal(span.sentence_starts, expected[1][window])
            rank = expected[2][window][0] - expected[2][offset]  # documents never cross shards
            assert span.document == read(corpus, shard, 0, 1).document + rank


def test_document_numbers_are_unique(prepared):
    numbers = []
    for split in ("train", "validation"):
        corpus = Corpus.open(prepared, split)
        before = len(numbers)
        for shard, size in enumerate(corpus.shard_tokens):
            ends = np.flatnonzero(read(corpus, shard, 0, size).tokens == TOKENIZER.sep_id)
            numbers += [read(corpus, shard, start, 5).document for start in [0, *(ends[:-1] + 1)]]
            assert read(corpus, shard, int(ends[-1]), 5).document == numbers[-1]  # a separator is of its document
        assert len(numbers) - before == corpus.num_documents
    assert len(set(numbers)) == len(numbers) == 60 - 60 // 7


def test_splits_are_disjoint_and_complete(prepared):
    documents = some_documents(60)
    for split, held in (("train", False), ("validation", True)):
        corpus = Corpus.open(prepared, split)
        tokens = [read(corpus, shard, 0, size).tokens for shard, size in enumerate(corpus.shard_tokens)]
        expected = stream_of([document for document in documents if held_out(document.id, FRACTION) == held])[0]
        assert np.array_equal(np.concatenate(tokens), expected)


def test_tfds_reads_the_same_blocks(prepared):
    builder = tfds.builder_from_directory(prepared)
    for split in ("train", "validation"):
        corpus, position, shard = Corpus.open(prepared, split), 0, 0
        source = builder.as_data_source(split)
        assert len(source) == builder.info.splits[split].num_examples
        for block in source:
            span = read(corpus, shard, position, BLOCK_TOKENS)
            filled = len(span.tokens)
            assert block["tokens"].dtype == np.uint16 and block["tokens"].shape == (BLOCK_TOKENS,)
            assert np.array_equal(block["tokens"][:filled], span.tokens)
            assert np.array_equal(block["sentence_starts"][:filled], span.sentence_starts)
            assert (block["tokens"][filled:] == TOKENIZER.pad_id).all() and not block["sentence_starts"][filled:].any()
            assert block["document"] == span.document
            position += BLOCK_TOKENS
            if position >= corpus.shard_tokens[shard]:
                position, shard = 0, shard + 1
        assert shard == len(corpus.shard_tokens)


@pytest.mark.parametrize("vocab_size", [65_535, 65_536])
def test_records_are_what_tfds_writes(vocab_size):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, BLOCK_TOKENS).astype(token_dtype(vocab_size))
    assert tokens.dtype == (np.uint16 if vocab_size < 65_536 else np.int32)
    block = {"tokens": tokens, "sentence_starts": rng.random(BLOCK_TOKENS) < 0.1, "document": np.int64(5 << 32 | 7)}
    features, record = dataset_features(vocab_size), encode_block(**block)
    assert len(record) == corpus_module.record_bytes(vocab_size) == len(features.serialize_example(block))
    read = features.deserialize_example_np(record)
    assert all(np.array_equal(read[name], value) for name, value in block.items())


def test_reading_from_threads_and_after_pickling(prepared):
    corpus = Corpus.open(prepared)
    rng = np.random.default_rng(0)
    places = [
        (int(s), int(rng.integers(corpus.shard_tokens[s])), 300)
        for s in rng.integers(len(corpus.shard_tokens), size=400)
    ]
    expected = [read(corpus, *place).tokens for place in places]
    again = pickle.loads(pickle.dumps(corpus))
    with ThreadPoolExecutor(8) as pool:
        for tokens, span in zip(expected, pool.map(lambda place: read(again, *place), places), strict=True):
            assert np.array_equal(tokens, span.tokens)


# ---------------------------------------------------------------------------------------------------------------------
# Faults
# ---------------------------------------------------------------------------------------------------------------------


def fails(match: str, action) -> None:
    with pytest.raises(UserError, match=match) as error:
        action()
    assert "\n" not in str(error.value)


def test_errors_of_the_folder(copied, tmp_path):
    fails(f"{tmp_path}/no: no such corpus folder; make it with", lambda: Corpus.open(tmp_path / "no"))
    fails(rf"{tmp_path}: not a finished corpus \(corpus.json is missing\); run", lambda: Corpus.open(tmp_path))
    fails(
        f"{copied}: no split 'test', only train, validation; prepare another one with a larger --held_out",
        lambda: Corpus.open(copied, "test"),
    )
    index = json.loads((copied / "corpus.json").read_text())
    only = {"splits": {"validation": index["splits"]["validation"]}}
    (copied / "corpus.json").write_text(json.dumps(index | only))
    fails("no split 'train', only validation; prepare another one with a smaller", lambda: Corpus.open(copied))
    (copied / "corpus.json").write_text(json.dumps(index | {"format": 7}))
    fails(f"{copied}: corpus format 7 is not supported, only 1; prepare it again", lambda: Corpus.open(copied))
    for broken in ("", "[]", "{}", "{"):
        (copied / "corpus.json").write_text(broken)
        fails(f"{copied}/corpus.json: damaged, or not what is expected .*; copy", lambda: Corpus.open(copied))


def test_errors_of_a_shard(copied):
    path = min(copied.glob("*train*"))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    fails(f"{path}: {len(data) - 1} bytes instead of {len(data)}; copy", lambda: Corpus.open(copied))
    path.write_bytes(b"\0" * len(data))
    fails(rf"{path}: damaged \(.*\); copy", lambda: read(Corpus.open(copied), 0, 0, 5))
    path.unlink()
    fails(f"{path}: missing; copy", lambda: Corpus.open(copied))


def test_a_damaged_record_is_an_error(copied):
    path = min(copied.glob("*train*"))
    data = bytearray(path.read_bytes())
    data[data.index(b"sentence_starts") + 3000] ^= 255
    path.write_bytes(data)
    fails(rf"{path}: damaged \(.*\); copy", lambda: read(Corpus.open(copied), 0, 0, 5))


def test_wrong_number_of_records(copied):
    fails(r"checksums-train.npy: damaged \(not \d+ values", lambda: Corpus.open(with_another_size(copied)))


def test_wrong_number_of_records_of_an_older_corpus(copied):
    (copied / "checksums-train.npy").unlink()
    corpus = Corpus.open(with_another_size(copied))
    fails(r"train.*: \d+ records of \d+ bytes instead of \d+ of \d+; copy", lambda: read(corpus, 0, 0, 5))


def with_another_size(copied: Path) -> Path:
    index = json.loads((copied / "corpus.json").read_text())
    index["splits"]["train"]["shards"][0]["tokens"] += BLOCK_TOKENS
    (copied / "corpus.json").write_text(json.dumps(index))
    return copied


# ---------------------------------------------------------------------------------------------------------------------
# Preparing
# ---------------------------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_kept(prepared):
    kept = Tokenizer.load(prepared / "tokenizer")
    corpus = Corpus.open(prepared)
    assert kept.fingerprint == corpus.tokenizer_fingerprint == TOKENIZER.fingerprint
    assert corpus.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert corpus.vocab_size == kept.vocab_size


def test_preparing_again_does_nothing(copied):
    before = contents(copied)
    summary = make(copied, [])
    assert summary.already and summary.documents == 52 and summary.skipped == 8
    assert contents(copied) == before


def test_number_of_workers_changes_nothing(prepared, tmp_path):
    make(tmp_path / "two", some_documents(60), workers=2)
    assert contents(tmp_path / "two") == contents(prepared)


@pytest.mark.parametrize("read", [0, 1, 20, 59])
def test_interrupted_and_resumed(prepared, tmp_path, read):
    def interrupted():
        yield from some_documents(60)[:read]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "c", interrupted())
    fails("not a finished corpus", lambda: Corpus.open(tmp_path / "c"))
    done = list((tmp_path / "c" / "unfinished").glob("*.array_record"))
    times = {path: path.stat().st_mtime_ns for path in done}
    assert done or read < 20
    make(tmp_path / "c", some_documents(60))
    assert contents(tmp_path / "c") == contents(prepared)
    kept = {path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*array_record*")}
    assert set(times.values()) <= kept  # not written again


def test_interrupted_while_finishing(prepared, tmp_path, monkeypatch):
    for step in (
        "bert_jax.data.tokenizer.tokenizer.Tokenizer.save",
        "bert_jax.data.corpus.prepare._write_dataset_info",
    ):
        folder = tmp_path / step
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            make(folder, some_documents(60))
        make(folder, [])  # needs no document any more
        assert contents(folder) == contents(prepared)


def test_changed_documents_are_prepared_again(prepared, tmp_path):
    changed = some_documents(60)
    changed[3] = Document("d3", "abc")
    with pytest.raises(KeyboardInterrupt):
        make(
            tmp_path / "c",
            (document if document.id != "d50" else exec("raise KeyboardInterrupt") for document in changed),
        )
    make(tmp_path / "c", some_documents(60))
    assert contents(tmp_path / "c") == contents(prepared)


def test_other_settings_are_refused(copied, tmp_path):
    fails(
        rf"{copied}: started with other settings \(source was 'test', now 'x'\); use",
        lambda: make(copied, [], source="x"),
    )
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "c", (document if document.id != "d50" else 1 / 0 for document in some_documents(60)))
    fails(r"\(shard_megabytes was 0.02, now 1\)", lambda: make(tmp_path / "c", [], shard_megabytes=1))
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "none", (1 / 0 for _ in range(1)))
    assert make(tmp_path / "none", some_documents(3), shard_megabytes=1).documents == 3, (
        "there was nothing to go on with"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    fails(f"{tmp_path}/other: exists and is not a prepared corpus; choose", lambda: make(tmp_path / "other", []))


def test_nothing_to_prepare(tmp_path):
    empty = [Document("a", ""), Document("b", "\x00\n \x07")]
    fails(r"test: all documents are empty \(2 skipped\); check", lambda: make(tmp_path / "c", empty))
    fails("not a finished corpus", lambda: Corpus.open(tmp_path / "c"))
    assert make(tmp_path / "c", some_documents(3)).documents == 3


@pytest.mark.real
@pytest.mark.parametrize("name", ["wikipedia.txt.xz", "books.txt.xz"])
def test_real_texts(real_data, tmp_path, name):
    text, vocabulary = real_data / "text" / name, real_data / "vocab" / "bert-base-uncased-vocab.txt"
    if not (text.exists() and vocabulary.exists()):
        pytest.skip(f"{text} or {vocabulary} is not there")
    (tmp_path / "vocab.txt").symlink_to(vocabulary)
    tokenizer = Tokenizer.load(tmp_path)
    stream = read_documents(f"text:{text}")
    documents = [next(stream) for _ in range(8)]
    summary = prepare(documents, tokenizer, tmp_path / "c", source=name, held_out_fraction=0.0, shard_megabytes=1.0)
    corpus = Corpus.open(tmp_path / "c")
    assert summary.documents == corpus.num_documents == 8
    tokens = np.concatenate([read(corpus, shard, 0, size).tokens for shard, size in enumerate(corpus.shard_tokens)])
    expected = [[*tokenizer.encode([document.text])[0], tokenizer.sep_id] for document in documents]
    assert np.array_equal(tokens, np.concatenate(expected))
    assert (tokens == tokenizer.unk_id).mean() < 0.001
