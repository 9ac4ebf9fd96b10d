"""Compressed files as streams whose memory does not depend on what a file claims or how well it was compressed."""

import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

# What the streams raise where a file is damaged or its end is missing.
DAMAGES = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
# Bytes that are decompressed at a time. An archive of zeros made by zstd gives 32 MB for them, and other formats less.
_STEP = 1 << 10
# Memory for what an archive may refer back to: the limit of the program zstd, and that of `xz -9`, doubled.
_WINDOW = 1 << 27
_BUFFER = 1 << 20


def decompressed(path: Path, file: BinaryIO) -> BinaryIO:
    """Returns the bytes of a file, decompressed according to its suffix: .gz, .xz or .zst. They are read as they are needed.

    Reading raises one of `DAMAGES` where the data are damaged, lack their end, are followed by others, or take too much memory.
    """
    if path.suffix not in _DECOMPRESSORS:
        return file
    return io.BufferedReader(cast(io.RawIOBase, _Stream(file, _DECOMPRESSORS[path.suffix])), _BUFFER)


# What each call makes has the methods of zlib.decompressobj.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj(),
}


class _Stream(io.RawIOBase):
    """The streams within a file, one after another; zeros between and after them are padding."""

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]):
        self._file, self._decompressor = file, decompressor
        self._current = decompressor()
        self._compressed, self._plain = b"", memoryview(b"")
        self._is_inside = True  # a stream; a file has at least one

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            compressed = self._compressed or self._file.read(_STEP)
            self._compressed = b""
            if not compressed and self._is_inside:
                raise EOFError("the end of the compressed data is missing")
            if not compressed:
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
