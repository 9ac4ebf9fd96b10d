"""Writes the shards of a corpus: documents -> groups of texts -> worker processes -> files.

A finished shard has a data file, the lengths of its documents, the checksums of its records, and a description, which is
written last; they are named by its number.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from bert_jax.data.corpus.arrays import LENGTH_DTYPE
from bert_jax.data.corpus.format import token_dtype, write_shard
from bert_jax.data.corpus.index import Count, TextCounts
from bert_jax.data.corpus.statistics import count_text
from bert_jax.data.sources.documents import Document, held_out, split_sentences
from bert_jax.data.tokenizer.tokenizer import Tokenizer
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
    text: TextCounts


def shard_tasks(documents: Iterable[Document], held_out_fraction: float, shard_bytes: int) -> Iterator[ShardTask]:
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
        texts[split].append(document.text)
        sizes[split] += len(text)
        hashes[split].update(b"%d " % len(text) + text)
        if sizes[split] >= shard_bytes:
            yield task(split)
    yield from (task(split) for split in SPLITS if texts[split])


def write_shard_of(work: Path, task: ShardTask) -> ShardInfo:
    """Writes a shard, unless it has been written before, and returns its description; for `Workers.in_order`."""
    return _finished_shard(work, task) or _tokenize_shard(work, task, _tokenizer)


def _finished_shard(work: Path, task: ShardTask) -> ShardInfo | None:
    """Returns the description of a shard that was already written from the same documents; None if missing or damaged."""
    path, data = _description(work, task.number), shard_file(work, task.number)
    try:
        shard: ShardInfo = read_json(path, ShardInfo)
        size = data.stat().st_size if shard["tokens"] else 0
    except (UserError, OSError):
        return None
    if size and not checksums_of_shard(work, task.number).exists():  # begun by an older version
        return None
    expected = (task.number, task.split, task.digest, size)
    return shard if (shard["number"], shard["split"], shard["digest"], shard["bytes"]) == expected else None


def _tokenize_shard(work: Path, task: ShardTask, tokenizer: Tokenizer) -> ShardInfo:
    """Tokenizes the texts of a shard and writes it; returns its description."""
    tokens, sentence_starts, documents, texts = _token_stream(task, tokenizer)
    path = shard_file(work, task.number)
    if len(tokens):
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            checksums = write_shard(temporary, tokens, sentence_starts, documents, tokenizer.pad_id)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        lengths = np.diff(documents[:, 0], append=len(tokens)) - 1  # without separators
        np.save(lengths_of_shard(work, task.number), lengths.astype(LENGTH_DTYPE))
        np.save(checksums_of_shard(work, task.number), checksums)
    shard: ShardInfo = {
        "number": task.number,
        "split": task.split,
        "digest": task.digest,
        "documents": len(documents),
        "skipped": len(task.texts) - len(documents),
        "tokens": len(tokens),
        "bytes": path.stat().st_size if len(tokens) else 0,
        "text": count_text(texts, tokens, documents[:, 0], tokenizer.unk_id),
    }
    write_json(_description(work, task.number), shard)
    return shard


def _token_stream(task: ShardTask, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Returns tokens, sentence starts and documents as `write_shard` takes them, and their texts; skips empty documents."""
    dtype = token_dtype(tokenizer.vocab_size)
    tokens, starts, documents = [np.empty(0, dtype)], [np.empty(0, bool)], list[tuple[int, int]]()
    position, texts = 0, []
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
        texts.append(text)
        position += len(document)
    return np.concatenate(tokens), np.concatenate(starts), np.array(documents, np.int64).reshape(-1, 2), texts


# ----------------------------------------------------------------------------------------------------------------------
# Worker processes
# ----------------------------------------------------------------------------------------------------------------------

_tokenizer: Tokenizer  # of this process


def keep_tokenizer(tokenizer: Tokenizer) -> None:
    """Keeps the tokenizer of `write_shard_of` in this process."""
    global _tokenizer
    _tokenizer = tokenizer


def remove_fragments(work: Path) -> None:
    """Removes what processes that were killed have not finished; the folder must be locked."""
    for path in work.iterdir():
        if path.name.startswith("draft") or (
            path.stem.isdigit() and path.suffix not in (".json", ".npy", ".array_record")
        ):
            path.unlink(missing_ok=True)


def shard_file(work: Path, number: int) -> Path:
    return work / f"{number:05d}.array_record"


def lengths_of_shard(work: Path, number: int) -> Path:
    return work / f"{number:05d}.npy"


def checksums_of_shard(work: Path, number: int) -> Path:
    return work / f"{number:05d}.crc.npy"


def _description(work: Path, number: int) -> Path:
    return work / f"{number:05d}.json"
