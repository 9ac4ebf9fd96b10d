"""Reads compressed files in bounded memory, whatever their headers claim and however well they are compressed."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from bert_jax.data.remote import Url

# Errors of the streams for damaged or truncated files.
DAMAGES = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
# Compressed bytes per read: at most 32 MB of output, for zeros compressed by zstd.
_STEP = 1 << 10
# Largest window (back references), in bytes: the default limit of zstd, and twice the window of `xz -9`.
_WINDOW = 1 << 27
_BUFFER = 1 << 20


def decompressed(path: Path | Url, file: BinaryIO) -> BinaryIO:
    """Returns a stream of the bytes of a file, decompressed according to its suffix: .gz, .bz2, .xz or .zst.

    Reading raises one of `DAMAGES` if the data are damaged, truncated, followed by other data, or need too much memory.
    """
    if path.suffix not in _DECOMPRESSORS:
        return file
    return io.BufferedReader(_Stream(file, _DECOMPRESSORS[path.suffix]), _BUFFER)


class _Bzip2:
    """A decompressor that returns at most `_BUFFER` bytes at a time: 1 kB of bzip2 may hold a gigabyte."""

    def __init__(self) -> None:
        self._inner = bz2.BZ2Decompressor()

    def __getattr__(self, name: str) -> Any:  # eof, unused_data, needs_input
        return getattr(self._inner, name)

    def decompress(self, data: bytes) -> bytes:
        return self._inner.decompress(data, _BUFFER)


# The results have the methods of zlib.decompressobj. Where `needs_input` is False, more output is waiting.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": _Bzip2,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj(),
}


class _Stream(io.RawIOBase):
    """Concatenation of the compressed streams in a file; zeros between and after them are padding."""

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]):
        self._file, self._decompressor = file, decompressor
        self._current = decompressor()
        self._compressed, self._plain = b"", memoryview(b"")
        self._is_inside = True  # a compressed stream; a file has at least one

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            needs_input = getattr(self._current, "needs_input", True)
            compressed = self._compressed or (self._file.read(_STEP) if needs_input else b"")
            self._compressed = b""
            if needs_input and not compressed and self._is_inside:
                raise EOFError("the end of the compressed data is missing")
            if needs_input and not compressed:
                return 0
            if not self._is_inside and not (compressed := compressed.lstrip(b"\0")):
                continue
            self._plain = memoryview(self._current.decompress(compressed))
            self._is_inside = not self._current.eof
            if not self._is_inside:
                self._compressed, self._current = self._current.unused_data, self._decompressor()
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count
