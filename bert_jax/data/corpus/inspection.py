"""Inspects the documents of a part of a source in any process, and keeps on disk what later decides about them.

A part is some files of the source. The folder of a preparation holds, named by the number of the part: its files (.files.json);
a row for each document (.rows); the texts of each split that have no reason to be dropped (spool.py); and, written last, what
was read (.json).
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec
import numpy as np

from bert_jax.data.corpus.cleaning import REASONS, Cleaning, Duplicates, inspect
from bert_jax.data.corpus.duplicates import bands_for
from bert_jax.data.corpus.shards import SPLITS, split_of
from bert_jax.data.corpus.spool import writing_texts
from bert_jax.data.remote import Url, is_url
from bert_jax.data.sources.base import BadRecords
from bert_jax.data.sources.documents import Source
from bert_jax.data.sources.files import SourceFile, absolute, stamp
from bert_jax.errors import UserError
from bert_jax.files import read_json, whole_file, write_json

_PART_BYTES = 1 << 26  # of the files of a part together, unless one file is larger
_PART_FILES = 1 << 10
_ROWS = 1 << 14  # at a time
_FATES = ("", *REASONS)


@dataclass(frozen=True)
class Job:
    """What every process needs to know of a preparation; it is pickled. All of them see the folder."""

    folder: Path
    source: Source
    cleaning: Cleaning
    held_out_fraction: float
    bad_records: int  # that may be skipped

    @property
    def row(self) -> np.dtype:
        """The type of a document's row; its reason is a number in _FATES, its bands are those of near duplicates."""
        similarity = self.cleaning.drop_near_duplicates
        num_bands = bands_for(similarity)[0] if similarity else 0
        fields: list[Any] = [("size", "<u8"), ("key", "<u8"), ("split", "u1"), ("reason", "u1"), ("has_bands", "?")]
        return np.dtype([*fields, ("bands", "<u8", (num_bands,))])


class Row(NamedTuple):
    """What decides about a document."""

    size: int  # bytes of text
    key: int  # see Duplicates.key
    split: str
    reason: str  # why it is dropped; '' if it is not, unless it is a duplicate
    bands: list[int]  # see cleaning.Inspected


class _File(TypedDict):
    path: str
    name: str
    size: int
    changed: str  # another one for other contents


class _Result(TypedDict):
    """What was read of a part."""

    files: str  # hash of its files: those of the source may change before a preparation is resumed
    bad: list[tuple[str, str]]  # as in BadRecords.messages
    error: str  # that ended it; '' if it was read to its end


def plan_parts(job: Job) -> int:
    """Divides the files of a source into parts; returns their number. Raises UserError as `Source.files`."""
    count = 0
    for count, files in enumerate(_parts(job.source.files()), 1):
        listed: list[_File] = [
            {
                "path": absolute(file.path),
                "name": file.name,
                "size": file.size,
                "changed": stamp(file.path),
            }
            for file in files
        ]
        write_json(_files(job, count - 1), listed)
    return count


def inspect_part(job: Job, number: int) -> None:
    """Reads and inspects the documents of a part, unless this has been done. An error of the user is kept as its result."""
    files = _digest(job, number)
    before = _result(job, number)
    if before is not None and before["files"] == files and not before["error"]:
        return
    bad, error, duplicates = BadRecords(job.bad_records), "", Duplicates(job.cleaning)
    rows = np.zeros(_ROWS, job.row)
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(whole_file(_rows(job, number), binary=True))
        texts = {split: stack.enter_context(writing_texts(texts_file(job, number, split))) for split in SPLITS}
        count = 0
        try:
            for document in job.source.documents(_source_files(job, number), bad):
                (identity, text), reason, bands = inspect(job.cleaning, document)
                split, size = split_of(identity, job.held_out_fraction), len(text.encode())
                row = rows[count]
                row["size"], row["split"], row["reason"] = size, SPLITS.index(split), _FATES.index(reason)
                row["key"], row["has_bands"] = 0 if reason else duplicates.key(text), bool(bands)
                if bands:
                    row["bands"] = bands
                if not reason:
                    texts[split].add(text, size)
                count += 1
                if count == _ROWS:
                    table.write(rows.tobytes())
                    count = 0
        except UserError as problem:
            error = str(problem)
        table.write(rows[:count].tobytes())
    result: _Result = {"files": files, "bad": bad.messages, "error": error}
    write_json(_done(job, number), result)


def inspected(job: Job, number: int, bad: BadRecords) -> Iterator[Row]:
    """Yields the rows of a part's documents, in their order.

    Raises:
      UserError: the part could not be read, more records than allowed could not be, or no process has written its result here.
    """
    result = _result(job, number)
    if result is None:
        problem = "is missing, although a worker has written it: put --output on a disk that all workers share"
        raise UserError(f"{_done(job, number)}: {problem}")
    with _rows(job, number).open("rb") as file:
        while content := file.read(_ROWS * job.row.itemsize):
            rows = np.frombuffer(content, job.row)
            columns = (rows[name].tolist() for name in ("size", "key", "split", "reason", "has_bands", "bands"))
            for size, key, split, reason, has_bands, bands in zip(*columns, strict=True):
                yield Row(size, key, SPLITS[split], _FATES[reason], bands if has_bands else [])
    for kind, message in result["bad"]:
        bad.skip(kind, message)
    if result["error"]:
        raise UserError(result["error"])


def texts_file(job: Job, number: int, split: str) -> Path:
    """Returns the file of a part with the texts of a split, see spool.py."""
    return job.folder / f"{number:05d}-{split}.texts"


def _parts(files: Iterable[SourceFile]) -> Iterator[list[SourceFile]]:
    part, size = list[SourceFile](), 0
    for file in files:
        if part and (size + file.size > _PART_BYTES or len(part) == _PART_FILES):
            yield part
            part, size = [], 0
        part.append(file)
        size += file.size
    yield part


def _source_files(job: Job, number: int) -> Iterator[SourceFile]:
    for file in read_json(_files(job, number), list[_File]):
        path = Url(file["path"], file["size"]) if is_url(file["path"]) else Path(file["path"])
        yield SourceFile(path, file["name"], file["size"], lambda done: None)


def _digest(job: Job, number: int) -> str:
    return hashlib.blake2b(_files(job, number).read_bytes(), digest_size=16).hexdigest()


def _result(job: Job, number: int) -> _Result | None:
    """Returns what was read of a part; None if that is missing or damaged."""
    try:
        return read_json(_done(job, number), _Result)
    except (UserError, msgspec.MsgspecError):
        return None


def _files(job: Job, number: int) -> Path:
    return job.folder / f"{number:05d}.files.json"


def _rows(job: Job, number: int) -> Path:
    return job.folder / f"{number:05d}.rows"


def _done(job: Job, number: int) -> Path:
    return job.folder / f"{number:05d}.json"
