"""The arrays next to the shards of a corpus: the lengths of its documents, and the checksums of its records."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.corpus.index import REMEDY
from bert_jax.errors import UserError

LENGTH_DTYPE = np.dtype(np.int32)  # of the lengths of documents
CHECKSUM_DTYPE = np.dtype(np.uint32)  # CRC-32 of each record, as zlib computes it


def lengths_file(split: str) -> str:
    """Returns the name of the file with the lengths of a split's documents, a numpy array."""
    return f"lengths-{split}.npy"


def checksums_file(split: str) -> str:
    """Returns the name of the file with the checksums of a split's records, a numpy array."""
    return f"checksums-{split}.npy"


def open_array(path: Path, dtype: np.dtype, size: int) -> np.ndarray:
    """Opens an array [size] in a file, which is read where it is used. Raises UserError if it is another one, or damaged."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); {REMEDY}") from None
    if array.dtype != dtype or array.shape != (size,):
        raise UserError(f"{path}: damaged (not {size:,} values of type {dtype}); {REMEDY}")
    return array


class Checksums:
    """The checksums of all records of a split; a pickled object opens the file again."""

    def __init__(self, path: Path, count: int):
        """Raises UserError as `open_array`."""
        self._path, self._values = path, open_array(path, CHECKSUM_DTYPE, count)

    def __reduce__(self) -> tuple[Any, ...]:
        return Checksums, (self._path, len(self._values))

    def match(self, number: int, record: bytes) -> bool:
        """Checks whether these are the bytes of the record with this number."""
        return zlib.crc32(record) == self._values[number]
