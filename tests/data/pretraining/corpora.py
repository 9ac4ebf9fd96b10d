"""Corpora of given tokens, written to real files without a tokenizer."""

import tempfile
from pathlib import Path

import numpy as np

from bert_jax.data.corpus.arrays import LENGTH_DTYPE, checksums_file, lengths_file
from bert_jax.data.corpus.format import Corpus, token_dtype, write_shard

SEPARATOR = 3


def corpus_of(
    *shards: np.ndarray,
    starts: list | None = None,
    first_document: int = 0,
    vocab_size: int = 60_000,
    has_checksums: bool = True,
) -> Corpus:
    """A corpus whose shards hold these tokens; every separator ends a document, and the files live as long as it does."""
    folder = tempfile.TemporaryDirectory()
    described, lengths, checksums = [], [], []
    for number, tokens in enumerate(shards):
        tokens = np.asarray(tokens)
        sentence_starts = np.zeros(len(tokens), bool) if starts is None else np.asarray(starts[number], bool)
        begins = np.concatenate([[0], np.flatnonzero(tokens[:-1] == SEPARATOR) + 1])
        documents = np.stack([begins, (number << 32) + first_document + np.arange(len(begins))], axis=1)
        path = Path(folder.name) / f"{number}"
        stored = tokens.astype(token_dtype(vocab_size))
        checksums.append(write_shard(path, stored, sentence_starts, documents, 0))
        size = path.stat().st_size
        described.append(
            {"file": path.name, "bytes": size, "tokens": len(tokens), "number": number, "documents": len(begins)}
        )
        lengths.append(np.diff(begins, append=len(tokens)) - 1)  # without separators
    np.save(Path(folder.name) / lengths_file("train"), np.concatenate(lengths).astype(LENGTH_DTYPE))
    if has_checksums:
        np.save(Path(folder.name) / checksums_file("train"), np.concatenate(checksums))
    index = {
        "tokenizer": "none",
        "vocab_size": vocab_size,
        "special_ids": {"sep": SEPARATOR},
        "splits": {"train": {"documents": 1, "shards": described}},
    }
    corpus = Corpus(Path(folder.name), index, "train")
    corpus.folder, corpus.index = folder, index
    return corpus
