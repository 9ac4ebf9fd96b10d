"""Reads and writes TFRecord files without TensorFlow; any record is read in constant time.

A record is its length (uint64), a checksum of these 8 bytes (uint32), the data and a checksum of the data (uint32), all
little-endian. Source: tensorflow/core/lib/io/record_writer.h. Shapes: n rows, w bytes of each.
"""

import os
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_jax.errors import UserError
from bert_jax.files import open_regular

REMEDY = "copy the file again or write it again"
LARGEST_RECORD = 1 << 20  # bytes; an instance of 8,192 tokens has about 60 kB
_HEADER, _FOOTER = 12, 4  # bytes: a length with its checksum, and the checksum of the data
_HEADERS_CHECKED = 1 << 16  # at a time
_GZIP = b"\x1f\x8b"

# ---------------------------------------------------------------------------------------------------------------------
# Checksums
# ---------------------------------------------------------------------------------------------------------------------

_POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli), reflected: RFC 3720, appendix B.4
_MASK_DELTA = 0xA282EAD8  # tensorflow/core/lib/hash/crc32c.h
_SPAN = 1024  # bytes that are looked up at once
# A CRC starts from a register of ones. These 4 bytes make it from a register of zeros, which is a linear function of its input.
_PREFIX = np.frombuffer(bytes.fromhex("54641f64"), np.uint8)


def _span_table() -> np.ndarray:
    """Returns uint32 [_SPAN * 256]: what each byte at each place of a span adds (by XOR) to the register at its end."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = np.where(last & 1, last >> 1 ^ np.uint32(_POLYNOMIAL), last >> 1)
    tables = [last]
    for _ in range(_SPAN - 1):
        tables.append(last[tables[-1] & 255] ^ tables[-1] >> 8)
    return np.concatenate(tables[::-1])


_TABLE, _PLACES = _span_table(), np.arange(0, _SPAN * 256, 256)


def crc32c(rows: np.ndarray) -> np.ndarray:
    """Returns the CRC-32C uint32 [n] of each row of bytes, uint8 [n, w]."""
    rows = np.concatenate([np.broadcast_to(_PREFIX, (len(rows), 4)), rows], axis=1)
    register = np.zeros(len(rows), "<u4")
    for end in range((rows.shape[1] - 1) % _SPAN + 1, rows.shape[1] + 1, _SPAN):
        span = rows[:, max(0, end - _SPAN) : end]
        if end > _SPAN:  # the register is added to the bytes that follow
            span[:, :4] ^= register.view(np.uint8).reshape(-1, 4)
        register = np.bitwise_xor.reduce(_TABLE.take(_PLACES[-span.shape[1] :] + span), axis=1).astype("<u4")
    return ~register


def masked_checksum(rows: np.ndarray) -> np.ndarray:
    """Returns the checksums uint32 [n] of rows of bytes, uint8 [n, w], as they are in a TFRecord file."""
    crc = crc32c(rows)
    return (crc >> 15 | crc << 17) + np.uint32(_MASK_DELTA)


def _checksum(data: bytes) -> bytes:
    return masked_checksum(np.frombuffer(data, np.uint8)[None]).astype("<u4").tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def write_record(file: BinaryIO, data: bytes) -> None:
    """Writes one record at the end of an open file."""
    length = len(data).to_bytes(8, "little")
    file.write(length + _checksum(length) + data + _checksum(data))


def raise_error(message: str) -> None:
    """Raises UserError."""
    raise UserError(message)


def read_records(
    file: BinaryIO, path: Path, largest: int = LARGEST_RECORD, on_damage: Callable[[str], None] = raise_error
) -> Iterator[bytes | None]:
    """Yields the data of all records of an open file, from its position on.

    Args:
      file: open for reading.
      path: of the file, for messages.
      largest: bytes of a record; more are an error.
      on_damage: called with the message if the data of a record do not match their checksum; if it returns, None is in the
        place of the record.

    Raises:
      UserError: the file is truncated, damaged, or has a record of more than `largest` bytes.
    """
    for number in range(1 << 62):
        if not (header := file.read(_HEADER)):
            return
        where, length = f"{path}: record {number}", int.from_bytes(header[:8], "little")
        if len(header) == _HEADER and _checksum(header[:8]) != header[8:]:
            raise UserError(f"{where}: not a TFRecord, or damaged; {REMEDY}")
        if len(header) == _HEADER and length > largest:
            raise UserError(f"{where}: {length:,} bytes, more than {largest:,}; {REMEDY}")
        record = file.read(length + _FOOTER) if len(header) == _HEADER else b""
        if len(record) < length + _FOOTER:
            raise UserError(f"{where}: truncated; {REMEDY}")
        is_damaged = _checksum(record[:-_FOOTER]) != record[-_FOOTER:]
        if is_damaged:
            on_damage(f"{where}: damaged; {REMEDY}")
        yield None if is_damaged else record[:-_FOOTER]


class RecordFile:
    """The records of a TFRecord file. Reading is thread-safe; a pickled object opens the file again."""

    def __init__(self, path: Path):
        """Finds the records of a file by their lengths, without reading them.

        Raises:
          UserError: the file is missing, compressed, truncated or damaged, or has a record of more than LARGEST_RECORD bytes.
        """
        self.path = path
        with open_regular(path, REMEDY) as file:
            status = os.fstat(file.fileno())
        self._starts = _record_starts(path, status.st_size, status.st_mtime_ns)
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def read(self, number: int) -> bytes:
        """Returns the data of a record. Raises UserError if it is damaged."""
        if self._file is None:
            self._file = open_regular(self.path, REMEDY)
        start, stop = (int(place) for place in self._starts[number : number + 2])
        try:
            record = os.pread(self._file.fileno(), stop - start, start)
        except OSError as error:
            raise self.error(number, f"cannot be read ({error.strerror})") from None
        data = record[_HEADER:-_FOOTER]
        if len(record) < stop - start or _checksum(data) != record[-_FOOTER:]:
            raise self.error(number, "damaged")
        return data

    def error(self, number: int, problem: str, remedy: str = REMEDY) -> UserError:
        """Returns the error of a record with a problem."""
        return UserError(f"{self.path}: record {number}: {problem}; {remedy}")


@lru_cache(maxsize=1024)  # a run opens its files more than once
def _record_starts(path: Path, size: int, _: int) -> np.ndarray:
    """Returns where each record starts, and the end of the last one, int64 [n + 1].

    Args:
      path: the file.
      size: of the file, in bytes.
      _: when it was changed, which is an argument for the cache.

    Raises:
      UserError: as `RecordFile`.
    """
    starts = array("q", [0])
    with open_regular(path, REMEDY) as file:
        while starts[-1] < size:
            first, headers, length = len(starts) - 1, bytearray(), 0
            while starts[-1] < size and len(headers) < _HEADER * _HEADERS_CHECKED and length <= LARGEST_RECORD:
                header = file.read(_HEADER)
                headers += header
                length = int.from_bytes(header[:8], "little")
                starts.append(starts[-1] + _HEADER + min(length, LARGEST_RECORD) + _FOOTER)
                file.seek(starts[-1])
            table = np.frombuffer(headers, np.uint8, len(headers) // _HEADER * _HEADER).reshape(-1, _HEADER)
            is_damaged = masked_checksum(table[:, :8]) != np.ascontiguousarray(table[:, 8:]).view("<u4")[:, 0]
            last = len(starts) - 2
            # The length of a sound first record may begin with the same bytes.
            if first == 0 and headers.startswith(_GZIP) and is_damaged[0]:
                raise UserError(
                    f"{path}: compressed, so that no record can be found by its number; unpack it with gunzip"
                )
            if is_damaged.any():
                raise UserError(f"{path}: record {first + is_damaged.argmax()}: not a TFRecord, or damaged; {REMEDY}")
            if length > LARGEST_RECORD:
                raise UserError(f"{path}: record {last}: {length:,} bytes, more than {LARGEST_RECORD:,}; {REMEDY}")
            if starts[-1] > size:
                raise UserError(f"{path}: record {last}: truncated; {REMEDY}")
    return np.frombuffer(starts, np.int64)
