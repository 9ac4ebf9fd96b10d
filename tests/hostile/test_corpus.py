"""Hostile corpora: a corpus.json that lies, shards that were damaged or made for another vocabulary, half-prepared folders."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from bert_jax.config import from_dict
from bert_jax.data.corpus.format import Corpus, write_shard
from bert_jax.data.corpus.index import BLOCK_TOKENS
from bert_jax.data.pretraining.pairs import SentencePairs
from bert_jax.data.sources.documents import Document
from bert_jax.tasks import pretraining
from tests.data.corpus import test_corpus
from tests.data.corpus.spans import read
from tests.data.corpus.test_corpus import TOKENIZER, contents, some_documents
from tests.hostile.limits import accepted_or_refused, damaged_bytes, mutated_json, refused

VOCABULARY = TOKENIZER.vocab_size
DOCUMENTS = 24


def make(folder: Path, documents: Iterable[Document], **options: float) -> None:
    """Prepares a corpus of several small shards."""
    test_corpus.make(folder, documents, **({"shard_megabytes": 0.006} | options))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    make(folder, some_documents(DOCUMENTS))
    return folder


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def change_index(folder: Path, change: Callable[[Any], object]) -> None:
    index = json.loads((folder / "corpus.json").read_text())
    change(index)
    (folder / "corpus.json").write_text(json.dumps(index))


def read_all(folder: Path) -> list[np.ndarray]:
    """All tokens of all shards, and what is counted of them."""
    tokens = []
    for split in ("train", "validation"):
        corpus = Corpus.open(folder, split)
        tokens += [read(corpus, shard, 0, int(size)).tokens for shard, size in enumerate(corpus.shard_tokens)]
        assert corpus.token_counts().sum() == corpus.num_tokens
    assert all(part.min() >= 0 and part.max() < corpus.vocab_size for part in tokens)
    return tokens


# ----------------------------------------------------------------------------------------------------------------------
# corpus.json
# ----------------------------------------------------------------------------------------------------------------------


def first_shard(index: Any) -> dict[str, Any]:
    return index["splits"]["train"]["shards"][0]


LIES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a path": (lambda index: first_shard(index).update(file="../copy/x"), "file"),
    "a long name": (lambda index: first_shard(index).update(file="x" * 5000), "file"),
    "a hidden file": (lambda index: first_shard(index).update(file=".."), "file"),
    "the same file twice": (
        lambda index: index["splits"]["train"]["shards"].append(first_shard(index)),
        "no shards, or duplicate ones",
    ),
    "more tokens than bytes": (lambda index: first_shard(index).update(tokens=10**12), "bytes instead of the"),
    "more tokens than numbers": (lambda index: first_shard(index).update(tokens=10**18), "tokens"),
    "a negative size": (lambda index: first_shard(index).update(tokens=-5), "tokens"),
    "no tokens": (lambda index: first_shard(index).update(tokens=0), "tokens"),
    "no shards": (lambda index: index["splits"]["train"].update(shards=[]), "shards"),
    "no splits": (lambda index: index.update(splits={}), "no shards"),
    "an enormous vocabulary": (lambda index: index.update(vocab_size=10**12), "vocab_size"),
    "a larger vocabulary": (lambda index: index.update(vocab_size=1 << 20), "does not match its checksum"),
    "a special token beyond the vocabulary": (lambda index: index["special_ids"].update(sep=VOCABULARY), "special_ids"),
    "a role too few": (lambda index: index["special_ids"].pop("mask"), "special_ids"),
    "a role too many": (lambda index: index["special_ids"].update(__class__=1), "special_ids"),
    "other blocks": (lambda index: index.update(block_tokens=1024), "block_tokens"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies(copied, lie):
    change, part = LIES[lie]
    change_index(copied, change)
    with refused(str(copied), part, "copy the corpus again, or remove it and prepare it again"):
        read_all(copied)


def test_mutated_index(prepared, tmp_path_factory):
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("mutated") / "copy"))
    index = json.loads((prepared / "corpus.json").read_text())

    @settings(max_examples=150, deadline=None)
    @given(mutated_json(index))
    def check(content):
        (folder / "corpus.json").write_text(content)
        accepted_or_refused(lambda: read_all(folder))
        accepted_or_refused(lambda: make(folder, []))

    check()


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(vocab_size=VOCABULARY + 1),
        lambda index: index["special_ids"].update(sep=index["special_ids"]["mask"]),
    ],
    ids=["vocab_size", "special_ids"],
)
def test_what_the_index_says_of_the_tokenizer_is_compared_with_it(copied, change):
    Corpus.open(copied).check_tokenizer(TOKENIZER, "")
    change_index(copied, change)
    with refused(f"{copied}/corpus.json: vocab_size or special_ids are not its tokenizer's; copy the corpus again"):
        Corpus.open(copied).check_tokenizer(TOKENIZER, "")


def test_a_tokenizer_folder_that_was_replaced(tiny_config, corpus_dir, documents, tokenizer, tmp_path):
    folder = Path(shutil.copytree(corpus_dir, tmp_path / "corpus"))
    config = from_dict(pretraining.Config(), tiny_config(**{"data.corpus": str(folder)}).to_dict())
    assert pretraining.Task.create(config, tmp_path / "run")
    shutil.rmtree(folder / "tokenizer")
    words = (document.text.replace("e", "i") for document in documents)
    type(tokenizer).train(words, tokenizer.vocab_size).save(folder / "tokenizer")
    with refused(f"{folder}: made with another tokenizer", f"{folder}/tokenizer was replaced"):
        pretraining.Task.create(config, tmp_path / "run")


# ----------------------------------------------------------------------------------------------------------------------
# Shards
# ----------------------------------------------------------------------------------------------------------------------


def test_damaged_shards(prepared, tmp_path_factory):
    """Records have checksums: no other token is ever read."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("damaged") / "copy"))
    path = min(folder.glob("*train*"))
    whole, expected = path.read_bytes(), read_all(folder)

    @settings(max_examples=100, deadline=None)
    @given(damaged_bytes(whole))
    def check(content):
        path.write_bytes(content)
        tokens = accepted_or_refused(lambda: read_all(folder))
        assert tokens is None or all(map(np.array_equal, tokens, expected))

    check()


def replace_shard(folder: Path, tokens: list[int]) -> Path:
    """Writes a shard of other tokens, and says so in the index."""
    path = min(folder.glob("*train*"))
    stream = np.array(tokens, np.uint16)
    checksums = write_shard(path, stream, np.zeros(len(stream), bool), np.array([[0, 0]]), 0)
    np.save(folder / "checksums-train.npy", checksums)
    change_index(
        folder,
        lambda index: index["splits"]["train"].update(
            shards=[{"file": path.name, "bytes": path.stat().st_size, "tokens": len(stream), "number": 0}]
        ),
    )
    return path


@pytest.mark.parametrize("place", [0, 5, BLOCK_TOKENS + 7])
@pytest.mark.parametrize("token", [VOCABULARY, 65_535])
def test_tokens_beyond_the_vocabulary(copied, place, token):
    tokens = [7] * 2 * BLOCK_TOKENS
    tokens[place] = token
    path = replace_shard(copied, tokens)
    corpus = Corpus.open(copied)
    with refused(
        f"{path}: record {place // BLOCK_TOKENS} holds token {token} of a vocabulary of {VOCABULARY}; copy the corpus again"
    ):
        read(corpus, 0, max(0, place - 3), 9)
    with refused(f"{path}: record {place // BLOCK_TOKENS} holds token {token}"):
        corpus.token_counts()


def test_negative_tokens(tmp_path):
    """Vocabularies of 65,536 and more have tokens of 32 bits with a sign."""
    folder = tmp_path / "corpus"
    make(folder, some_documents(3))
    path = min(folder.glob("*train*"))
    for last in (69_999, -1):
        tokens = np.array([7] * 9 + [last], np.int32)
        checksums = write_shard(path, tokens, np.zeros(10, bool), np.array([[0, 0]]), 0)
        np.save(folder / "checksums-train.npy", checksums)
        shard = {"file": path.name, "bytes": path.stat().st_size, "tokens": 10, "number": 0}
        values = {"vocab_size": 70_000, "splits": {"train": {"documents": 1, "shards": [shard]}}}
        change_index(folder, lambda index, values=values: index.update(values))
        corpus = Corpus.open(folder)
        if last > 0:
            assert read(corpus, 0, 0, 10).tokens.tolist() == tokens.tolist()
        else:
            with refused(f"{path}: record 0 holds token -1 of a vocabulary of 70000"):
                read(corpus, 0, 0, 10)


def test_a_shard_of_separators_only(copied):
    replace_shard(copied, [TOKENIZER.sep_id] * 50)
    pairs = SentencePairs(Corpus.open(copied), TOKENIZER, 32, 0, 0.1, None)
    with refused(f"{copied}: shard 0 has nothing but separators from token 0; prepare the corpus again"):
        pairs.rows(np.zeros(1, int), np.zeros(1, int))


# ----------------------------------------------------------------------------------------------------------------------
# Half-prepared folders
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """A preparation that ended before its last document."""
    folder = tmp_path_factory.mktemp("interrupted") / "corpus"

    def documents():
        yield from some_documents(DOCUMENTS)[:-1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(folder, documents())
    return folder


BROKEN = ["", "{}", "null", '{"number": 0}', "\0", "[" * 100_000]


@pytest.mark.parametrize("broken", BROKEN, ids=[text[:10] for text in BROKEN])
def test_damaged_descriptions_are_prepared_again(prepared, interrupted, tmp_path, broken):
    folder = Path(shutil.copytree(interrupted, tmp_path / "copy"))
    descriptions = sorted((folder / "unfinished").glob("0*.json"))
    assert len(descriptions) > 3
    descriptions[0].write_text(broken)
    descriptions[1].with_suffix(".array_record").unlink()
    descriptions[2].with_suffix(".array_record").write_bytes(b"")
    make(folder, some_documents(DOCUMENTS))
    assert contents(folder) == contents(prepared)


def test_mutated_descriptions(interrupted, tmp_path_factory):
    folder, name = tmp_path_factory.mktemp("mutated") / "copy", "00000.json"
    description = json.loads((interrupted / "unfinished" / name).read_text())

    @settings(max_examples=15, deadline=None)
    @given(mutated_json(description))
    def check(content):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(interrupted, folder)
        (folder / "unfinished" / name).write_text(content)
        accepted_or_refused(lambda: make(folder, some_documents(DOCUMENTS)))
        accepted_or_refused(lambda: read_all(folder))

    check()


def test_damaged_settings(interrupted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings") / "copy"
    before = json.loads((interrupted / "unfinished" / "settings.json").read_text())

    @settings(max_examples=30, deadline=None)
    @given(mutated_json(before))
    def check(content):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(interrupted, folder)
        (folder / "unfinished" / "settings.json").write_text(content)
        accepted_or_refused(lambda: make(folder, []))
        shutil.rmtree(folder)  # which is finished if the settings are the same ("format": true)
        shutil.copytree(interrupted, folder)
        (folder / "unfinished" / "settings.json").write_text("{")
        with refused("settings.json: damaged", f"remove {folder}/unfinished and prepare the corpus again"):
            make(folder, [])

    check()


def unfinished_move(interrupted: Path, folder: Path, monkeypatch) -> Path:
    """A preparation that ended when all shards were written and none was in its place; its corpus.json."""
    shutil.copytree(interrupted, folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bert_jax.data.corpus.prepare._finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make(folder, some_documents(DOCUMENTS))
    return folder / "unfinished" / "corpus.json"


def test_an_index_that_lies_at_the_end_of_a_preparation(interrupted, tmp_path, monkeypatch):
    index = unfinished_move(interrupted, tmp_path / "copy", monkeypatch)
    change_index(index.parent, lambda values: first_shard(values).update(file="../../stolen"))
    with refused(f"{index}: damaged", f"remove {tmp_path}/copy and prepare the corpus again"):
        make(tmp_path / "copy", [])
    assert not (tmp_path.parent / "stolen").exists()


def test_a_shard_that_is_missing_at_the_end_of_a_preparation(interrupted, tmp_path, monkeypatch):
    index = unfinished_move(interrupted, tmp_path / "copy", monkeypatch)
    (index.parent / "00001.array_record").unlink()
    with refused("00001.array_record: missing", f"remove {tmp_path}/copy and prepare the corpus again"):
        make(tmp_path / "copy", [])
    assert not (tmp_path / "copy" / "corpus.json").exists()


@pytest.mark.parametrize("options", [{"shard_megabytes": value} for value in (float("nan"), float("inf"), 0.0, 1e9)])
def test_shares_and_sizes_out_of_range(tmp_path, options):
    with refused("shard_megabytes=", "is not above 0"):
        make(tmp_path / "copy", [], **options)
    with refused("held_out=nan", "is not from 0 to 1"):
        make(tmp_path / "copy", [], held_out_fraction=float("nan"))
    assert not (tmp_path / "copy").exists()
