"""Writes the shards of a corpus: documents -> groups of texts -> worker processes -> files.

A finished shard has a data file, the lengths of its documents, the checksums of its records, and a description, which is
written last; they are named by its number.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from bert_jax.data.best_fit import groups_of_documents, num_rows
from bert_jax.data.corpus.arrays import LENGTH_DTYPE
from bert_jax.data.corpus.format import token_dtype, write_shard
from bert_jax.data.corpus.index import PACKED_LENGTHS, Count, TextCounts
from bert_jax.data.corpus.statistics import count_text
from bert_jax.data.sources.documents import Document, held_out, split_sentences
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import draft_of, read_json, whole_file, write_json

SPLITS = ("train", "validation")
_DOCUMENT_BITS = 32  # document number = shard number << 32 | number within the shard


class ShardTask(NamedTuple):
    number: int  # over the shards of both splits, in the order in which they fill
    split: str
    texts: list[str]
    digest: str  # of the texts: a shard whose documents have changed is written again

    @classmethod
    def of(cls, number: int, split: str, texts: list[str]) -> "ShardTask":
        """Returns the task of writing these texts."""
        digest = hashlib.sha256()
        for text in map(str.encode, texts):
            digest.update(b"%d " % len(text) + text)
        return cls(number, split, texts, digest.hexdigest())


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
    packed_rows: dict[str, Count]  # see index.Shard


class Shards:
    """Distributes documents, which come in order, over shards: one after the other in each split, numbered as they fill."""

    def __init__(self, shard_bytes: int):
        """Takes the size of a shard in bytes of text, which its last document exceeds."""
        self._shard_bytes, self._next = shard_bytes, 0
        self._sizes = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, size: int) -> int | None:
        """Puts a document of `size` bytes into the open shard of its split; returns the number of the shard if it is full."""
        self._sizes[split] += size
        return self.close(split) if self._sizes[split] >= self._shard_bytes else None

    def close(self, split: str) -> int:
        """Ends the open shard of a split and returns its number."""
        self._sizes[split], self._next = 0, self._next + 1
        return self._next - 1


def shard_tasks(documents: Iterable[Document], held_out_fraction: float, shard_bytes: int) -> Iterator[ShardTask]:
    """Groups the documents of each split into shards of about `shard_bytes` bytes of text."""
    shards, texts = Shards(shard_bytes), {split: list[str]() for split in SPLITS}
    for document in documents:
        split = split_of(document.id, held_out_fraction)
        texts[split].append(document.text)
        if (number := shards.add(split, len(document.text.encode()))) is not None:
            yield ShardTask.of(number, split, texts[split])
            texts[split] = []
    for split in SPLITS:
        if texts[split]:
            yield ShardTask.of(shards.close(split), split, texts[split])


def split_of(document_id: str, held_out_fraction: float) -> str:
    """Returns the split of a document, which its id decides."""
    return SPLITS[held_out(document_id, held_out_fraction)]


def write_shard_of(work: Path, task: ShardTask) -> ShardInfo:
    """Writes a shard, unless it has been written before, and returns its description; for `Workers.in_order`."""
    shard = finished_shard(work, task.number)
    is_same = shard is not None and (shard["split"], shard["digest"]) == (task.split, task.digest)
    return shard if shard is not None and is_same else _tokenize_shard(work, task, _tokenizer)


def finished_shard(work: Path, number: int) -> ShardInfo | None:
    """Returns the description of a shard that has been written; None if it is missing or damaged."""
    try:
        shard: ShardInfo = read_json(_description(work, number), ShardInfo)
        size = shard_file(work, number).stat().st_size if shard["tokens"] else 0
    except (UserError, OSError):
        return None
    if size and not checksums_of_shard(work, number).exists():  # begun by an older version
        return None
    return shard if (shard["number"], shard["bytes"]) == (number, size) else None


def _tokenize_shard(work: Path, task: ShardTask, tokenizer: Tokenizer) -> ShardInfo:
    """Tokenizes the texts of a shard and writes it; returns its description."""
    tokens, sentence_starts, documents, texts = _token_stream(task, tokenizer)
    lengths = np.diff(documents[:, 0], append=len(tokens)) - 1  # without separators
    path = shard_file(work, task.number)
    if len(tokens):
        temporary = draft_of(path)
        try:
            checksums = write_shard(temporary, tokens, sentence_starts, documents, tokenizer.pad_id)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        for array_path, values in (
            (lengths_of_shard(work, task.number), lengths.astype(LENGTH_DTYPE)),
            (checksums_of_shard(work, task.number), checksums),
        ):
            with whole_file(array_path, binary=True) as file:
                np.save(file, values)
    shard: ShardInfo = {
        "number": task.number,
        "split": task.split,
        "digest": task.digest,
        "documents": len(documents),
        "skipped": len(task.texts) - len(documents),
        "tokens": len(tokens),
        "bytes": path.stat().st_size if len(tokens) else 0,
        "text": count_text(texts, tokens, documents[:, 0], tokenizer.unk_id),
        "packed_rows": _packed_rows(lengths, tokenizer) if len(tokens) else {},
    }
    write_json(_description(work, task.number), shard)
    return shard


def _packed_rows(lengths: np.ndarray, tokenizer: Tokenizer) -> dict[str, int]:
    special = tokenizer.num_special_tokens(1)
    return {str(length): num_rows(groups_of_documents(lengths, length, length - special)) for length in PACKED_LENGTHS}


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
    for path in work.rglob("draft*"):
        path.unlink(missing_ok=True)


def shard_file(work: Path, number: int) -> Path:
    return work / f"{number:05d}.array_record"


def lengths_of_shard(work: Path, number: int) -> Path:
    return work / f"{number:05d}.npy"


def checksums_of_shard(work: Path, number: int) -> Path:
    return work / f"{number:05d}.crc.npy"


def _description(work: Path, number: int) -> Path:
    return work / f"{number:05d}.json"
