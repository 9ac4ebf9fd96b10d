"""Prepares a corpus: documents -> cleaning -> shards of text -> worker processes -> blocks on disk.

Preparation can be resumed, and its output does not depend on the workers, whether they are processes or machines. Until the end
everything is in OUTPUT/unfinished: a data file and a description per shard.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from bert_jax.data.corpus import distributed
from bert_jax.data.corpus.arrays import CHECKSUM_DTYPE, LENGTH_DTYPE, checksums_file, lengths_file
from bert_jax.data.corpus.block_files import num_blocks
from bert_jax.data.corpus.card import CARD_FILE, corpus_card
from bert_jax.data.corpus.cleaning import NO_CLEANING, Cleaning, clean
from bert_jax.data.corpus.contents import DATASET_NAME, FILE_FORMAT, corpus_index, nothing_left
from bert_jax.data.corpus.distributed import FOLDER, ForEach
from bert_jax.data.corpus.format import record_bytes, token_dtype
from bert_jax.data.corpus.index import (
    BLOCK_TOKENS,
    FORMAT_VERSION,
    INDEX_FILE,
    TOKENIZER_FOLDER,
    Index,
    Split,
    as_index,
    read_index,
)
from bert_jax.data.corpus.inspection import Job
from bert_jax.data.corpus.shards import (
    ShardInfo,
    checksums_of_shard,
    keep_tokenizer,
    lengths_of_shard,
    remove_fragments,
    shard_file,
    shard_tasks,
    write_shard_of,
)
from bert_jax.data.sources.base import BadRecords
from bert_jax.data.sources.documents import Document, Source
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.data.workers import Workers
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json, write_text
from bert_jax.lock import LOCK, locked

_LARGEST_SHARD = 1 << 12  # megabytes; a worker needs several times this in memory
_WORK_FOLDER, _SETTINGS_FILE, _PARTS_FOLDER = "unfinished", "settings.json", "parts"


class Summary(NamedTuple):
    """Size of a prepared corpus; `already` if it was finished before."""

    documents: int
    skipped: int  # empty documents
    dropped: dict[str, int]  # documents that cleaning dropped, by reason
    bad_records: dict[str, int]  # records that could not be read, by kind
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
    cleaning: Cleaning = NO_CLEANING,
    bad: BadRecords | None = None,
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
      cleaning: what is changed or dropped before documents are held out; compared when a preparation is resumed.
      bad: counts what reading `documents` skips; recorded.
      progress: called with the size of each document in bytes when it has been read.

    Raises:
      UserError: the folder holds other files, a corpus with other settings, or damaged files, or is in use; or all documents
        are empty.
    """

    def make_shards(work: Path, dropped: Counter[str]) -> list[ShardInfo]:
        with Workers(workers, partial(keep_tokenizer, tokenizer)) as pool:
            in_order = pool.in_order if cleaning.is_costly and workers > 1 else None
            kept = clean(_reported(documents, progress), cleaning, dropped, in_order)
            tasks = shard_tasks(kept, held_out_fraction, int(shard_megabytes * 1e6))
            return list(pool.in_order(partial(write_shard_of, work), tasks))

    settings = _settings(source, tokenizer, held_out_fraction, shard_megabytes, cleaning)
    return _prepare(Path(output), tokenizer, settings, make_shards, bad or BadRecords())


def prepare_distributed(
    source: Source,
    tokenizer: Tokenizer,
    output: str | Path,
    for_each: ForEach,
    *,
    held_out_fraction: float = 0.02,
    shard_megabytes: float = 16.0,
    cleaning: Cleaning = NO_CLEANING,
    bad: BadRecords | None = None,
    progress: Callable[[int], None] = lambda text_bytes: None,
) -> Summary:
    """Writes the corpus that `prepare` writes of the documents of a source, with workers on several machines.

    Args:
      source: its files, and the folder of the output, are seen by all workers under the same paths.
      tokenizer: as for `prepare`.
      output: as for `prepare`.
      for_each: does the work, such as `partial(run_on_beam, options)`.
      held_out_fraction: as for `prepare`.
      shard_megabytes: as for `prepare`.
      cleaning: as for `prepare`.
      bad: counts, and limits, the records that are skipped.
      progress: called with the size of each document when all have been inspected.

    Raises:
      UserError: as `prepare`, `read_documents` and `for_each`.
    """
    bad = bad or BadRecords()

    def make_shards(work: Path, dropped: Counter[str]) -> list[ShardInfo]:
        job = Job(work.absolute() / FOLDER, source.absolute(), cleaning, held_out_fraction, bad.most)
        return distributed.make_shards(job, for_each, tokenizer, int(shard_megabytes * 1e6), dropped, bad, progress)

    settings = _settings(source.description, tokenizer, held_out_fraction, shard_megabytes, cleaning)
    return _prepare(Path(output), tokenizer, settings, make_shards, bad)


def _prepare(
    output: Path,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    make_shards: Callable[[Path, Counter[str]], list[ShardInfo]],
    bad: BadRecords,
) -> Summary:
    """Writes a corpus; `make_shards` writes the shards into the work folder and counts documents that are dropped."""
    work = output / _WORK_FOLDER
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
            dropped = Counter[str]()
            shards = make_shards(work, dropped)
            check_folder()
            index = corpus_index(shards, dropped, bad.counts, settings, tokenizer)
            if not index["splits"]:
                shutil.rmtree(work)
                raise UserError(f"{settings['source']}: {nothing_left(index['statistics'])}")
            write_json(work / INDEX_FILE, index)
        return _finish(output, work, tokenizer)


def _settings(
    source: str, tokenizer: Tokenizer, held_out_fraction: float, shard_megabytes: float, cleaning: Cleaning
) -> dict[str, Any]:
    """Returns what decides about the contents of a corpus. Raises UserError for a size that cannot be."""
    _check_sizes(held_out_fraction, shard_megabytes)
    return {
        "format": FORMAT_VERSION,
        "source": source,
        "tokenizer": tokenizer.fingerprint,
        "held_out_fraction": held_out_fraction,
        "shard_megabytes": shard_megabytes,
        **({"cleaning": cleaning.settings} if cleaning.settings else {}),
    }


def _check_sizes(held_out_fraction: float, shard_megabytes: float) -> None:
    if not 0.0 <= held_out_fraction <= 1.0:  # also for NaN
        raise UserError(f"held_out={held_out_fraction} is not from 0 to 1; set another fraction")
    if not 0.0 < shard_megabytes <= _LARGEST_SHARD:
        most = f"{_LARGEST_SHARD:,}"
        raise UserError(f"shard_megabytes={shard_megabytes} is not above 0 and at most {most}; set another size")


def _reported(documents: Iterable[Document], progress: Callable[[int], None]) -> Iterator[Document]:
    """Yields documents, after telling the size of each."""
    for document in documents:
        progress(len(document.text.encode()))
        yield document


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
    """Starts a preparation in the work folder, or checks that the settings are those of the interrupted one.

    One that was interrupted before its first shard, such as by a mistake in the settings, leaves nothing to go on with.
    """
    remove_fragments(work)
    has_begun = {path.name for path in work.iterdir()} - {LOCK, _SETTINGS_FILE}
    if (work / _SETTINGS_FILE).exists() and has_begun:
        _check_settings(output, work / _SETTINGS_FILE, settings)
    elif (output / INDEX_FILE).exists():
        raise UserError(f"{output}: another process has just finished it; run the command again")
    else:
        write_json(work / _SETTINGS_FILE, settings)


def _check_settings(output: Path, path: Path, settings: dict[str, Any]) -> None:
    before = read_json(path, remedy=f"remove {path.parent} and prepare the corpus again")
    # Without options of cleaning nothing is recorded, as by older versions.
    before, now = {"cleaning": {}} | before, {"cleaning": {}} | settings
    changed = [name for name, value in now.items() if before.get(name) != value]
    if changed:
        differences = "; ".join(f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in changed)
        raise UserError(f"{output}: started with other settings ({differences}); use these or a new folder")


def _finish(output: Path, work: Path, tokenizer: Tokenizer) -> Summary:
    """Moves the shards into place and writes the index; may be interrupted and repeated."""
    remedy = f"remove {output} and prepare the corpus again"
    index = as_index(read_json(work / INDEX_FILE, remedy=remedy), work / INDEX_FILE, remedy)
    for split in index["splits"].values():
        for shard in split["shards"]:
            path, target = shard_file(work, shard["number"]), output / shard["file"]
            if path.exists():
                path.replace(target)
            elif not target.exists():
                raise UserError(f"{path}: missing; {remedy}")
    # Files are moved into place when they are whole, so that none is left half-written next to them.
    parts = work / _PARTS_FOLDER
    shutil.rmtree(parts, ignore_errors=True)
    tokenizer.save(parts / TOKENIZER_FOLDER)
    _write_dataset_info(parts, index)
    for name, split in index["splits"].items():
        blocks = sum(num_blocks(shard["tokens"]) for shard in split["shards"])
        _join(parts / lengths_file(name), LENGTH_DTYPE, split["documents"], lengths_of_shard, work, split)
        _join(parts / checksums_file(name), CHECKSUM_DTYPE, blocks, checksums_of_shard, work, split)
    write_text(parts / CARD_FILE, corpus_card(index))
    for path in sorted(path for path in parts.rglob("*") if path.is_file()):
        target = output / path.relative_to(parts)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
    (work / INDEX_FILE).replace(output / INDEX_FILE)  # marks the corpus as finished
    shutil.rmtree(work)
    return _summary(index, already=False)


def _join(
    path: Path, dtype: np.dtype, size: int, file_of: Callable[[Path, int], Path], work: Path, split: Split
) -> None:
    """Writes an array [size] of a split from those of its shards."""
    joined, end = np.lib.format.open_memmap(path, "w+", dtype, (size,)), 0
    for shard in split["shards"]:
        part = np.load(file_of(work, shard["number"]))
        start, end = end, end + len(part)
        joined[start:end] = part
    joined.flush()


def _write_dataset_info(folder: Path, index: Index) -> None:
    """Writes dataset_info.json and features.json, which make their folder a TFDS dataset."""
    splits = []
    for name, split in index["splits"].items():
        blocks = [num_blocks(shard["tokens"]) for shard in split["shards"]]
        size = sum(blocks) * record_bytes(index["vocab_size"])
        splits.append(tfds.core.SplitInfo(name=name, shard_lengths=blocks, num_bytes=size, filename_template=None))
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=DATASET_NAME, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=f"Blocks of {BLOCK_TOKENS} tokens; corpus.json holds the settings.",
        features=dataset_features(index["vocab_size"]),
    )
    info.set_file_format(FILE_FORMAT)
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)


def _summary(index: Index, already: bool) -> Summary:
    splits = index["splits"].values()
    shards = [shard for split in splits for shard in split["shards"]]
    documents, tokens = sum(split["documents"] for split in splits), sum(shard["tokens"] for shard in shards)
    statistics: Any = index.get("statistics", {})
    dropped, bad = statistics.get("dropped", {}), statistics.get("bad_records", {})
    return Summary(documents, index["skipped_documents"], dropped, bad, tokens, len(shards), already)
