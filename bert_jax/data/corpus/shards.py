"""Writes the shards of a corpus: documents -> groups of texts -> worker processes -> files.

A finished shard has a data file and a description, which is written last; both are named by its number.
"""

import hashlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from bert_jax.data.corpus.format import token_dtype, write_shard
from bert_jax.data.corpus.index import Count
from bert_jax.data.sources.documents import Document, held_out, split_sentences
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.data.workers import block_interrupts, end_with_parent
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json

SPLITS = ("train", "validation")
_DOCUMENT_BITS = 32  # document number = shard number << 32 | number within the shard


class ShardTask(NamedTuple):
    number: int  # over the shards of both splits, in the order in which they fill
    split: str
    texts: list[str]
    digest: str  # of the texts: a shard whose documents have changed is written again


class ShardInfo(TypedDict):
    """Description of a finished shard."""

    number: Count
    split: str
    digest: str
    documents: Count
    skipped: Count  # empty documents
    tokens: Count
    bytes: Count  # size of its file; 0 if there are no tokens and so no file


def shard_tasks(
    documents: Iterable[Document], held_out_fraction: float, shard_bytes: int, progress: Callable[[int], None]
) -> Iterator[ShardTask]:
    """Groups the documents of each split into shards of about `shard_bytes` bytes of text."""
    number = 0
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes, hashes = dict.fromkeys(SPLITS, 0), {split: hashlib.sha256() for split in SPLITS}

    def task(split: str) -> ShardTask:
        nonlocal number
        done = ShardTask(number, split, texts[split], hashes[split].hexdigest())
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


def write_shards(tasks: Iterator[ShardTask], tokenizer: Tokenizer, work: Path, workers: int) -> Iterator[ShardInfo]:
    """Writes the missing shards; yields the description of each, in order."""
    if workers == 1:
        yield from (_finished_shard(work, task) or _tokenize_shard(work, task, tokenizer) for task in tasks)
        return
    # `spawn`, because tokenizers and array_record run threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pending = deque[Future[ShardInfo] | ShardInfo]()
    with ProcessPoolExecutor(workers, context, _start_worker, (tokenizer,)) as pool:
        for task in tasks:
            with block_interrupts():
                pending.append(_finished_shard(work, task) or pool.submit(_work, work, task))
            if len(pending) >= 2 * workers:
                yield _result(pending.popleft())
        yield from map(_result, pending)


def _finished_shard(work: Path, task: ShardTask) -> ShardInfo | None:
    """Returns the description of a shard that was already written from the same documents; None if missing or damaged."""
    path, data = _description(work, task.number), shard_file(work, task.number)
    try:
        shard: ShardInfo = read_json(path, ShardInfo)
        size = data.stat().st_size if shard["tokens"] else 0
    except (UserError, OSError):
        return None
    expected = (task.number, task.split, task.digest, size)
    return shard if (shard["number"], shard["split"], shard["digest"], shard["bytes"]) == expected else None


def _tokenize_shard(work: Path, task: ShardTask, tokenizer: Tokenizer) -> ShardInfo:
    """Tokenizes the texts of a shard and writes it; returns its description."""
    tokens, sentence_starts, documents = _token_stream(task, tokenizer)
    path = shard_file(work, task.number)
    if len(tokens):
        temporary = path.with_suffix(f".{os.getpid()}")
        write_shard(temporary, tokens, sentence_starts, documents, tokenizer.pad_id)
        temporary.replace(path)
    shard: ShardInfo = {
        "number": task.number,
        "split": task.split,
        "digest": task.digest,
        "documents": len(documents),
        "skipped": len(task.texts) - len(documents),
        "tokens": len(tokens),
        "bytes": path.stat().st_size if len(tokens) else 0,
    }
    write_json(_description(work, task.number), shard)
    return shard


def _token_stream(task: ShardTask, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens, sentence starts and documents as `write_shard` takes them; skips empty documents."""
    dtype = token_dtype(tokenizer.vocab_size)
    tokens, starts, documents = [np.empty(0, dtype)], [np.empty(0, bool)], list[tuple[int, int]]()
    position = 0
    for text in task.texts:
        # The space before a sentence matters to byte-level BPE; other tokenizers ignore it.
        lines = map(split_sentences, text.split("\n"))
        sentences = [f" {sentence}" if place else sentence for line in lines for place, sentence in enumerate(line)]
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
    return np.concatenate(tokens), np.concatenate(starts), np.array(documents, np.int64).reshape(-1, 2)


_tokenizer: Tokenizer  # of a worker process


def _start_worker(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    end_with_parent()


def _work(work: Path, task: ShardTask) -> ShardInfo:
    return _tokenize_shard(work, task, _tokenizer)


def _result(pending: Future[ShardInfo] | ShardInfo) -> ShardInfo:
    return pending.result() if isinstance(pending, Future) else pending


def shard_file(work: Path, number: int) -> Path:
    return work / f"{number:05d}.array_record"


def _description(work: Path, number: int) -> Path:
    return work / f"{number:05d}.json"
