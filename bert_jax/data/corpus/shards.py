"""Shards of a corpus that is being prepared: documents -> groups of texts -> worker processes -> finished files.

A shard that is done consists of its data and, written last, its description; both are named by its number.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from bert_jax.data.corpus import format as corpus
from bert_jax.data.corpus.index import Count
from bert_jax.data.sources.documents import Document, held_out, split_sentences
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.data.workers import process_pool, submit
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json

SPLITS = ("train", "validation")
_DOCUMENT_BITS = 32  # document number = shard number << 32 | number within the shard


class Task(NamedTuple):
    """A shard to be written."""

    number: int  # counts the shards of both splits, in the order in which they fill
    split: str
    texts: list[str]
    digest: str  # of the texts: a resumed run redoes a shard whose documents have changed


class Described(TypedDict):
    """The description of a shard that is done."""

    number: Count
    split: str
    digest: str
    documents: Count
    skipped: Count  # documents without a token
    tokens: Count
    bytes: Count  # of its file; 0 without tokens, and there is none


def shard_tasks(
    documents: Iterable[Document], held_out_fraction: float, shard_bytes: int, progress: Callable[[int], None]
) -> Iterator[Task]:
    """Groups the documents of each split into shards of about `shard_bytes`."""
    number = 0
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes, hashes = dict.fromkeys(SPLITS, 0), {split: hashlib.sha256() for split in SPLITS}

    def task(split: str) -> Task:
        nonlocal number
        done = Task(number, split, texts[split], hashes[split].hexdigest())
        number, texts[split], sizes[split], hashes[split] = number + 1, [], 0, hashlib.sha256()
        return done

    for document in documents:
        split = SPLITS[held_out(document.id, held_out_fraction)]
        text = document.text.encode()
        progress(len(text))
        texts[split].append(document.text)
        sizes[split] += len(text)
        hashes[split].update(b"%d " % len(text) + text)
        if sizes[split] >= shard_bytes:
            yield task(split)
    yield from (task(split) for split in SPLITS if texts[split])


def write_shards(tasks: Iterator[Task], tokenizer: Tokenizer, work: Path, workers: int) -> Iterator[Described]:
    """Writes the shards that are not yet there; yields the description of each, in order."""
    if workers == 1:
        yield from (_finished_shard(work, task) or _write_shard(work, task, tokenizer) for task in tasks)
        return
    pending = deque[Future[Described] | Described]()  # as many shards wait as are worked on
    with process_pool(workers, (work, tokenizer)) as pool:
        for task in tasks:
            pending.append(_finished_shard(work, task) or submit(pool, _work, task))
            if len(pending) >= 2 * workers:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())


def _finished_shard(work: Path, task: Task) -> Described | None:
    """The description of a shard that an interrupted run has written from the same documents, unless it is damaged."""
    path, data = _description(work, task.number), shard_file(work, task.number)
    try:
        shard: Described = read_json(path, Described)
        size = data.stat().st_size if shard["tokens"] else 0
    except (UserError, OSError):
        return None
    done, wanted = (shard["number"], shard["split"], shard["digest"], shard["bytes"]), (*task[:2], task.digest, size)
    return shard if done == wanted else None


def _write_shard(work: Path, task: Task, tokenizer: Tokenizer) -> Described:
    """Tokenizes the texts of a shard and writes it; returns its description."""
    stream = _token_stream(task, tokenizer)
    path = shard_file(work, task.number)
    if len(stream.tokens):
        temporary = path.with_suffix(f".{os.getpid()}")
        corpus.write_shard(temporary, stream.tokens, stream.sentence_starts, stream.documents, tokenizer.pad_id)
        temporary.replace(path)
    shard: Described = {
        "number": task.number,
        "split": task.split,
        "digest": task.digest,
        "documents": len(stream.documents),
        "skipped": len(task.texts) - len(stream.documents),
        "tokens": len(stream.tokens),
        "bytes": path.stat().st_size if len(stream.tokens) else 0,
    }
    write_json(_description(work, task.number), shard)
    return shard


class _Stream(NamedTuple):
    tokens: np.ndarray  # [n] of the type `corpus.token_dtype`
    sentence_starts: np.ndarray  # bool [n]
    documents: np.ndarray  # int64 [d, 2]: position and number of each document


def _token_stream(task: Task, tokenizer: Tokenizer) -> _Stream:
    """The documents' tokens one after another, each document followed by a separator; empty documents are left out."""
    dtype = corpus.token_dtype(tokenizer.vocab_size)
    tokens, starts, documents = [np.empty(0, dtype)], [np.empty(0, bool)], list[tuple[int, int]]()
    position = 0
    for text in task.texts:
        # Byte-level BPE reads the blank before a sentence; to the other kinds it is nothing.
        sentences = [
            f" {sentence}" if number else sentence
            for line in text.split("\n")
            for number, sentence in enumerate(split_sentences(line))
        ]
        encoded = [ids for ids in tokenizer.encode(sentences) if len(ids)]
        if not encoded:
            continue
        ends = np.cumsum([len(ids) for ids in encoded])
        document = np.concatenate([*encoded, [tokenizer.sep_id]]).astype(dtype)
        begins = np.zeros(len(document), bool)
        begins[np.concatenate([[0], ends[:-1]])] = True
        documents.append((position, task.number << _DOCUMENT_BITS | len(documents)))
        tokens.append(document)
        starts.append(begins)
        position += len(document)
    return _Stream(np.concatenate(tokens), np.concatenate(starts), np.array(documents, np.int64).reshape(-1, 2))


def _work(state: tuple[Path, Tokenizer], task: Task) -> Described:
    work, tokenizer = state
    return _write_shard(work, task, tokenizer)


def _result(pending: Future[Described] | Described) -> Described:
    return pending.result() if isinstance(pending, Future) else pending


# ---------------------------------------------------------------------------------------------------------------------
# Small files
# ---------------------------------------------------------------------------------------------------------------------


def shard_file(work: Path, number: int) -> Path:
    return work / f"{number:05d}.array_record"


def _description(work: Path, number: int) -> Path:
    return work / f"{number:05d}.json"
