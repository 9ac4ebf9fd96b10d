"""The records of local shards: each is checked when it is first used.

From then on values are read from their places in the file, in about 1 us; a read through ArrayRecord takes 6 to 10 us, half of
the time that a whole masked window may take. (A mapped file would be 5 to 10% faster, but ends the process where storage fails
or the file gets shorter.)
"""

import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_jax.data.corpus import record_places
from bert_jax.data.corpus.arrays import Checksums
from bert_jax.data.corpus.block_files import Pieces, first_blocks
from bert_jax.data.corpus.index import REMEDY
from bert_jax.errors import UserError

# No read-ahead, and a buffer of about a record: reads are random. Range reads of one record are the fastest kind.
_READER_OPTIONS, _READER_BUFFER = "readahead_buffer_size:0,max_parallelism:0", 8192


class LocalRecords:
    """Records in local files (see `block_files.Records`), opened when they are first used."""

    is_remote = False

    def __init__(self, paths: list[Path], shard_tokens: np.ndarray, record_size: int, checksums: Checksums | None):
        """Takes the checksums of the records, or None of corpora that have none: ArrayRecord then checks them, with its own."""
        self._paths, self._shard_tokens, self._size, self._checksums = paths, shard_tokens, record_size, checksums
        self._first_block = first_blocks(shard_tokens)
        self._files: list[BinaryIO | None] = [None] * len(paths)
        self._readers = dict[int, Any]()  # ArrayRecordReaders of shards
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalRecords, (self._paths, self._shard_tokens, self._size, self._checksums)

    def name(self, number: int) -> str:
        shard, block = self._place(number)
        return f"{self._paths[shard]}: record {block}"

    def checked(self, numbers: np.ndarray) -> dict[int, bytes]:
        return {number: self._checked(number) for number in np.unique(numbers).tolist()}

    def pieces(
        self, shards: np.ndarray, blocks: np.ndarray, numbers: np.ndarray, places: np.ndarray, records: dict[int, bytes]
    ) -> Pieces:
        starts, runs = record_places.in_file(self._size, blocks, places)
        return Pieces(shards, starts, runs, self._read)

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_block, number, side="right")) - 1
        return shard, number - int(self._first_block[shard])

    def _checked(self, number: int) -> bytes:
        shard, block = self._place(number)
        if self._files[shard] is None:
            self._open(shard)
        content = self._read(shard, *record_places.span(self._size, block, block + 1))
        (record,) = record_places.records_in(content, self._size, block, block + 1)
        if self._checksums is None:
            if record != self._through_array_record(shard, block):
                raise self._damaged(shard, f"record {block} is not where it should be")
        elif not self._checksums.match(number, record):
            raise self._damaged(shard, f"record {block} does not match its checksum")
        return record

    def _through_array_record(self, shard: int, block: int) -> bytes:
        # Imported here: only corpora of earlier versions need it.
        from array_record.python.array_record_module import ArrayRecordReader

        path, blocks = str(self._paths[shard]), int(self._first_block[shard + 1] - self._first_block[shard])
        try:
            if (reader := self._readers.get(shard)) is None:
                reader = ArrayRecordReader(path, _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER)
                reader = self._readers.setdefault(shard, reader)
            count, record = reader.num_records(), reader.read(block, block + 1)[0]
        except Exception as error:  # array_record raises what its C++ reports
            raise self._damaged(shard, f"record {block}: {error}") from None
        if count != blocks or len(record) != self._size:
            what = f"{count} records of {len(record)} bytes instead of {blocks} of {self._size}"
            raise UserError(f"{path}: {what}; {REMEDY}")
        return record

    def _open(self, shard: int) -> None:
        with self._opening:
            if self._files[shard] is None:  # another thread may have been quicker
                try:
                    self._files[shard] = self._paths[shard].open("rb", buffering=0)
                except OSError as error:
                    raise self._damaged(shard, error.strerror) from None

    def _read(self, shard: int, start: int, stop: int) -> bytes:
        file = self._files[shard]
        assert file is not None, "its records are checked first"
        try:
            content = os.pread(file.fileno(), stop - start, start)
        except OSError as error:
            raise self._damaged(shard, error.strerror) from error
        if len(content) < stop - start:
            raise self._damaged(shard, f"it ends at byte {start + len(content):,}, within a record")
        return content

    def _damaged(self, shard: int, reason: object) -> UserError:
        return UserError(f"{self._paths[shard]}: damaged ({' '.join(str(reason).split())[:200]}); {REMEDY}")
