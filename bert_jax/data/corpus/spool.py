"""Texts on disk, in compressed segments, of which any range is read without what is before it."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import zstandard

from bert_jax.errors import UserError
from bert_jax.files import whole_file

_SEGMENT = 1 << 22  # bytes of text, exceeded by at most one text
_LEVEL = 1  # of zstd: half a gigabyte a second, and 0.4 of the size of English text


class TextWriter:
    """Writes texts to an open file; use `writing_texts`."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._texts, self._size, self._count, self._offset = list[str](), 0, 0, 0
        self._segments = list[tuple[int, int]]()  # (number of the first text, offset in the file)

    def add(self, text: str, size: int) -> None:
        """Adds a text of `size` bytes."""
        self._texts.append(text)
        self._size += size
        if self._size >= _SEGMENT:
            self._end_segment()

    def segments(self) -> np.ndarray:
        """Ends the last segment; returns (number of the first text, offset in the file) of all, and of the end."""
        self._end_segment()
        return np.array([*self._segments, (self._count, self._offset)], np.int64)

    def _end_segment(self) -> None:
        if self._texts:
            frame = self._compressor.compress(msgspec.msgpack.encode(self._texts))
            self._segments.append((self._count, self._offset))
            self._file.write(frame)
            self._count, self._offset = self._count + len(self._texts), self._offset + len(frame)
            self._texts, self._size = [], 0


@contextlib.contextmanager
def writing_texts(path: Path) -> Iterator[TextWriter]:
    """Opens a file for texts, and one for where its segments begin; both are there, whole, after the end, or not at all."""
    with whole_file(path, binary=True) as file, whole_file(_index(path), binary=True) as index:
        writer = TextWriter(file)
        yield writer
        np.save(index, writer.segments())


def read_texts(path: Path, runs: Iterable[tuple[int, int]]) -> Iterator[str]:
    """Yields texts of a file that `writing_texts` has made.

    Args:
      path: of the file.
      runs: (number of the first text, number after the last one), ascending.

    Raises:
      UserError: the file is damaged.
    """
    try:
        segments = np.load(_index(path))
        decompressor = zstandard.ZstdDecompressor()
        loaded, texts = -1, list[str]()
        with path.open("rb") as file:
            for start, stop in runs:
                while start < stop:
                    segment = int(np.searchsorted(segments[:, 0], start, side="right")) - 1
                    (first, offset), (following, end) = segments[segment : segment + 2].tolist()
                    if segment != loaded:
                        file.seek(offset)
                        texts = msgspec.msgpack.decode(decompressor.decompress(file.read(end - offset)), type=list[str])
                        loaded = segment
                    yield from texts[start - first : stop - first]
                    start = min(stop, following)
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); remove {path.parent} and start again") from None


def _index(path: Path) -> Path:
    """Returns the file with the beginnings of segments, int64 [segments + 1, 2], and the end."""
    return path.with_name(f"{path.name}.npy")
