"""The records of shards at a URL: read by ranges, all that a batch needs at once, and kept in a file of bounded size.

Record k is kept in place k % slots. It is checked whenever it is used, so several processes share the file without locks: what
another one is just writing does not match its checksum, and is fetched again.
"""

import errno
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data import remote
from bert_jax.data.corpus import record_places
from bert_jax.data.corpus.arrays import Checksums
from bert_jax.data.corpus.block_files import Pieces, first_blocks
from bert_jax.data.corpus.index import REMEDY
from bert_jax.data.remote import Url
from bert_jax.errors import UserError

logger = logging.getLogger(__name__)
CACHE_MEGABYTES = 4096  # of the records of a split, at most; English Wikipedia has about 12 GB of them
# Neighbouring records that are fetched with one request, if all records fit into the cache: an epoch uses them all, and
# services charge by request. 100 kB take little longer than 6.
_GROUP = 16
_NUMBER_BYTES = 8


class _Range(NamedTuple):
    """Neighbouring records of a shard."""

    shard: int
    first: int  # record of the shard
    stop: int


class RemoteRecords:
    """Records at a URL (see `block_files.Records`)."""

    is_remote = True

    def __init__(
        self,
        folder: Url,
        files: list[str],
        shard_tokens: np.ndarray,
        record_size: int,
        checksums: Checksums,
        cache: Path,
        cache_bytes: int,
    ):
        """Takes the names of the files in the folder, and a file of at most `cache_bytes`, which is made."""
        self._arguments = folder, files, shard_tokens, record_size, checksums, cache, cache_bytes
        self._folder, self._names, self._size, self._checksums = folder, files, record_size, checksums
        self._first_block = first_blocks(shard_tokens)
        count = int(self._first_block[-1])
        slots = min(count, max(1, cache_bytes // (_NUMBER_BYTES + record_size)))
        self._cache = _Cache(cache, slots, record_size)
        self._group = _GROUP if slots == count else 1

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteRecords, self._arguments

    def name(self, number: int) -> str:
        shard, block = self._place(number)
        return f"{self._folder}/{self._names[shard]}: record {block}"

    def checked(self, numbers: np.ndarray) -> dict[int, bytes]:
        records, missing = dict[int, bytes](), set[int]()
        for number in np.unique(numbers).tolist():
            record = self._cache.get(number)
            if record is not None and self._checksums.match(number, record):
                records[number] = record
            else:
                missing.add(number)
        return records | self._fetched(missing) if missing else records

    def pieces(
        self, shards: np.ndarray, blocks: np.ndarray, numbers: np.ndarray, places: np.ndarray, records: dict[int, bytes]
    ) -> Pieces:
        def read(number: int, start: int, stop: int) -> bytes:
            return records[number][start:stop]

        return Pieces(numbers, places, self._size - places, read)

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_block, number, side="right")) - 1
        return shard, number - int(self._first_block[shard])

    def _range_of(self, number: int) -> _Range:
        """Returns the records that are fetched together with one."""
        shard, block = self._place(number)
        first = block - block % self._group
        return _Range(shard, first, min(first + self._group, int(np.diff(self._first_block)[shard])))

    def _fetched(self, missing: set[int]) -> dict[int, bytes]:
        """Fetches records, and their neighbours for the cache; those that fail are fetched again after pauses.

        Raises:
          UserError: a record is missing, damaged, or could not be read in the end.
        """
        records = dict[int, bytes]()
        for pause in (*remote.PAUSES, None):
            fetched, problem = self._fetch(missing)
            records |= fetched
            missing = missing - fetched.keys()
            if not missing:
                break
            number = min(missing)
            if problem is not None:
                remote.raise_if_permanent(self.name(number), problem)
            if pause is None and problem is not None:
                raise remote.gave_up(self.name(number), problem) from None
            if pause is None:
                raise UserError(f"{self.name(number)} is missing or damaged (it does not match its checksum); {REMEDY}")
            reason = "damaged" if problem is None else remote.reason_of(problem)
            logger.warning("%s: %s; trying again in %g s", self.name(number), reason, pause)
            time.sleep(pause)
        return records

    def _fetch(self, missing: set[int]) -> tuple[dict[int, bytes], Exception | None]:
        """Returns those of the records that could be read, and what the service said of the first that could not, if it did."""
        ranges = sorted({self._range_of(number) for number in missing})
        spans = [record_places.span(self._size, of.first, of.stop) for of in ranges]
        names = [self._names[of.shard] for of in ranges]
        contents = self._folder.ranges(names, [start for start, _ in spans], [stop for _, stop in spans])
        records, problem = dict[int, bytes](), None
        for of, content in zip(ranges, contents, strict=True):
            if isinstance(content, Exception):
                is_behind_the_end = getattr(content, "errno", None) == errno.EINVAL  # of a file that has become shorter
                problem = problem or (None if is_behind_the_end else content)
                continue
            first = int(self._first_block[of.shard]) + of.first
            for number, record in enumerate(
                record_places.records_in(content, self._size, of.first, of.stop), start=first
            ):
                if self._checksums.match(number, record):
                    self._cache.put(number, record)
                    records[number] = record
        return {number: record for number, record in records.items() if number in missing}, problem


class _Cache:
    """A file of slots, each with the number of a record plus 1 and the record. Opened when it is first used."""

    def __init__(self, path: Path, slots: int, record_size: int):
        self._path, self._slots, self._slot_size = path, slots, _NUMBER_BYTES + record_size
        self._descriptor: int | None = None
        self._is_full = False
        self._opening = threading.Lock()

    def get(self, number: int) -> bytes | None:
        """Returns what is in the place of a record if its number is there, which may be damaged."""
        slot = os.pread(self._open(), self._slot_size, number % self._slots * self._slot_size)
        is_there = len(slot) == self._slot_size and int.from_bytes(slot[:_NUMBER_BYTES], "little") == number + 1
        return slot[_NUMBER_BYTES:] if is_there else None

    def put(self, number: int, record: bytes) -> None:
        """Keeps a record in the place of another one; on a full disk it does not, and training goes on."""
        slot = (number + 1).to_bytes(_NUMBER_BYTES, "little") + record
        try:
            os.pwrite(self._open(), slot, number % self._slots * self._slot_size)
        except OSError as error:
            if not self._is_full:
                logger.warning("%s: cannot be written (%s), so records are fetched again", self._path, error.strerror)
            self._is_full = True

    def _open(self) -> int:
        with self._opening:
            if self._descriptor is None:
                try:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                    # Of an earlier run with a larger cache.
                    if os.fstat(self._descriptor).st_size > self._slots * self._slot_size:
                        os.ftruncate(self._descriptor, self._slots * self._slot_size)
                except OSError as error:
                    problem = f"cannot be opened ({error.strerror})"
                    raise UserError(f"{self._path}: {problem}; set HOME to a folder that is writable") from None
            return self._descriptor

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
