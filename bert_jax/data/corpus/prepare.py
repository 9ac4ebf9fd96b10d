"""Prepares a corpus: documents -> shards of text -> worker processes -> blocks on disk.

Preparation can be resumed, and its output does not depend on the number of workers. Until the end everything is in
OUTPUT/unfinished: a data file and a description per shard.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.naming import ShardedFileTemplate

from bert_jax.data.corpus.block_files import num_blocks
from bert_jax.data.corpus.format import LENGTH_DTYPE, TOKENIZER_FOLDER, lengths_file, record_bytes, token_dtype
from bert_jax.data.corpus.index import (
    BLOCK_TOKENS,
    FORMAT_VERSION,
    INDEX_FILE,
    Index,
    Split,
    as_index,
    read_index,
    role_ids,
)
from bert_jax.data.corpus.shards import SPLITS, ShardInfo, lengths_of_shard, shard_file, shard_tasks, write_shards
from bert_jax.data.sources.documents import Document
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json
from bert_jax.lock import locked

DATASET_NAME, FILE_FORMAT = "bert_corpus", tfds.core.FileFormat.ARRAY_RECORD
_LARGEST_SHARD = 1 << 12  # megabytes; a worker needs several times this in memory
_WORK_FOLDER, _SETTINGS_FILE = "unfinished", "settings.json"


class Summary(NamedTuple):
    """Size of a prepared corpus; `already` if it was finished before."""

    documents: int
    skipped: int  # empty documents
    tokens: int  # separators included
    shards: int
    already: bool


def prepare(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    output: str | Path,
    *,
    source: str,
    held_out_fraction: float = 0.02,
    shard_megabytes: float = 16.0,
    workers: int = 1,
    progress: Callable[[int], None] = lambda text_bytes: None,
) -> Summary:
    """Writes a corpus, or resumes an interrupted preparation; a finished corpus is left unchanged.

    Args:
      documents: always in the same order.
      tokenizer: saved with the corpus.
      source: description of the documents; recorded, and compared when a preparation is resumed.
      held_out_fraction: fraction of the documents in the split `validation`, chosen by id.
      shard_megabytes: size of a shard in megabytes of UTF-8 text, exceeded by at most one document.
      workers: number of processes; with 1 the work is done in this process.
      progress: called with the size of each document in bytes when it has been read.

    Raises:
      UserError: the folder holds other files, a corpus with other settings, or damaged files, or is in use; or all documents
        are empty.
    """
    if not 0.0 <= held_out_fraction <= 1.0:  # also for NaN
        raise UserError(f"held_out={held_out_fraction} is not from 0 to 1; set another fraction")
    if not 0.0 < shard_megabytes <= _LARGEST_SHARD:
        most = f"{_LARGEST_SHARD:,}"
        raise UserError(f"shard_megabytes={shard_megabytes} is not above 0 and at most {most}; set another size")
    output = Path(output)
    work = output / _WORK_FOLDER
    settings = {
        "format": FORMAT_VERSION,
        "source": source,
        "tokenizer": tokenizer.fingerprint,
        "held_out_fraction": held_out_fraction,
        "shard_megabytes": shard_megabytes,
    }
    if (output / INDEX_FILE).exists():
        _check_settings(output, output / INDEX_FILE, settings)
        shutil.rmtree(work, ignore_errors=True)
        return _summary(read_index(output), already=True)
    is_usable = (work / _SETTINGS_FILE).exists() or (output.is_dir() and set(output.iterdir()) <= {work})
    if output.exists() and not is_usable:
        raise UserError(f"{output}: exists and is not a prepared corpus; choose a new folder")
    with locked(work, "wait for it, stop it, or choose another folder") as check_folder:
        _start(output, work, settings)
        if not (work / INDEX_FILE).exists():
            tasks = shard_tasks(documents, held_out_fraction, int(shard_megabytes * 1e6), progress)
            shards = list(write_shards(tasks, tokenizer, work, workers))
            check_folder()
            index = _index(shards, settings, tokenizer)
            if not index["splits"]:
                shutil.rmtree(work)
                skipped = index["skipped_documents"]
                problem = f"all documents are empty ({skipped} skipped)" if skipped else "holds no documents"
                raise UserError(f"{source}: {problem}; check the source")
            write_json(work / INDEX_FILE, index)
        return _finish(output, work, tokenizer)


def dataset_features(vocab_size: int) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of a block, stored as raw bytes, so that they are read with `np.frombuffer`."""
    shape, raw = (BLOCK_TOKENS,), tfds.features.Encoding.BYTES
    return tfds.features.FeaturesDict(
        {
            "tokens": tfds.features.Tensor(shape=shape, dtype=token_dtype(vocab_size), encoding=raw),
            "sentence_starts": tfds.features.Tensor(shape=shape, dtype=np.bool_, encoding=raw),
            "document": tfds.features.Tensor(shape=(), dtype=np.int64, encoding=raw),
        }
    )


def _start(output: Path, work: Path, settings: dict[str, Any]) -> None:
    """Starts a preparation in the work folder, or checks that the settings are those of the interrupted one."""
    if (work / _SETTINGS_FILE).exists():
        _check_settings(output, work / _SETTINGS_FILE, settings)
    elif (output / INDEX_FILE).exists():
        raise UserError(f"{output}: another process has just finished it; run the command again")
    else:
        write_json(work / _SETTINGS_FILE, settings)


def _check_settings(output: Path, path: Path, settings: dict[str, Any]) -> None:
    before = read_json(path, remedy=f"remove {path.parent} and prepare the corpus again")
    changed = [name for name, value in settings.items() if before.get(name) != value]
    if changed:
        differences = "; ".join(f"{name} was {before.get(name)!r}, now {settings[name]!r}" for name in changed)
        raise UserError(f"{output}: started with other settings ({differences}); use these or a new folder")


def _index(shards: list[ShardInfo], settings: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the contents of corpus.json."""
    splits = {}
    for split in SPLITS:
        # Shards with only empty documents have no file.
        members = [shard for shard in shards if shard["split"] == split and shard["tokens"]]
        template = ShardedFileTemplate(
            data_dir="", dataset_name=DATASET_NAME, split=split, filetype_suffix=FILE_FORMAT.file_suffix
        )
        entries = []
        for position, shard in enumerate(members):
            file = template.relative_filepath(shard_index=position, num_shards=len(members))
            entries.append(
                {"file": str(file)} | {name: shard[name] for name in ("bytes", "tokens", "number", "documents")}
            )
        if members:
            splits[split] = {"documents": sum(shard["documents"] for shard in members), "shards": entries}
    return {
        **settings,
        "block_tokens": BLOCK_TOKENS,
        "vocab_size": tokenizer.vocab_size,
        "special_ids": role_ids(tokenizer),
        "skipped_documents": sum(shard["skipped"] for shard in shards),
        "splits": splits,
    }


def _finish(output: Path, work: Path, tokenizer: Tokenizer) -> Summary:
    """Moves the shards into place and writes the index; may be interrupted and repeated."""
    remedy = f"remove {output} and prepare the corpus again"
    index = as_index(read_json(work / INDEX_FILE, remedy=remedy), work / INDEX_FILE, remedy)
    for name, split in index["splits"].items():
        _write_lengths(output / lengths_file(name), work, split)
        for shard in split["shards"]:
            path, target = shard_file(work, shard["number"]), output / shard["file"]
            if path.exists():
                path.replace(target)
            elif not target.exists():
                raise UserError(f"{path}: missing; {remedy}")
    tokenizer.save(output / TOKENIZER_FOLDER)
    _write_dataset_info(output, index)
    (work / INDEX_FILE).replace(output / INDEX_FILE)  # marks the corpus as finished
    shutil.rmtree(work)
    return _summary(index, already=False)


def _write_lengths(path: Path, work: Path, split: Split) -> None:
    """Writes the lengths of a split's documents from those of its shards."""
    lengths = np.lib.format.open_memmap(path, "w+", LENGTH_DTYPE, (split["documents"],))
    end = 0
    for shard in split["shards"]:
        start, end = end, end + shard["documents"]
        lengths[start:end] = np.load(lengths_of_shard(work, shard["number"]))


def _write_dataset_info(output: Path, index: Index) -> None:
    """Writes dataset_info.json and features.json, which make the folder a TFDS dataset."""
    splits = []
    for name, split in index["splits"].items():
        blocks = [num_blocks(shard["tokens"]) for shard in split["shards"]]
        size = sum(blocks) * record_bytes(index["vocab_size"])
        splits.append(tfds.core.SplitInfo(name=name, shard_lengths=blocks, num_bytes=size, filename_template=None))
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=DATASET_NAME, version=tfds.core.Version("1.0.0"), data_dir=str(output), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=f"Blocks of {BLOCK_TOKENS} tokens; corpus.json holds the settings.",
        features=dataset_features(index["vocab_size"]),
    )
    info.set_file_format(FILE_FORMAT)
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(output)


def _summary(index: Index, already: bool) -> Summary:
    splits = index["splits"].values()
    shards = [shard for split in splits for shard in split["shards"]]
    documents, tokens = sum(split["documents"] for split in splits), sum(shard["tokens"] for shard in shards)
    return Summary(documents, index["skipped_documents"], tokens, len(shards), already)
