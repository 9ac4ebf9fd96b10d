"""Hashes that duplicates share: a compact set of them, and the MinHash bands of near duplicates.

Documents are compared as sets of shingles, five consecutive words each (lower-cased). Two documents whose shingles have the
Jaccard similarity s agree on a MinHash value with probability s (Broder 1997); they are near duplicates if they agree on all
values of one of several bands (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4).
"""

import hashlib
from array import array
from functools import cache

import numpy as np

SHINGLE_WORDS = 5  # as in GPT-3's and most later corpora
NUM_VALUES = 128  # MinHash values of a document
LEAST_CHANCE = 0.9  # of dropping a document that is as similar as asked
_SEED = 1  # of the MinHash values
_ODD = np.uint64(0x9E3779B97F4A7C15)  # near 2**64 / the golden ratio, as in Fibonacci hashing
_TABLES, _FIRST_SLOTS = 256, 16


class HashSet:
    """A set of 64-bit hashes that needs 12 to 24 bytes for each of them; Python's own needs about 80.

    Open addressing in 256 tables, by the first byte of a hash: each grows by itself, so little is ever held twice.
    """

    def __init__(self) -> None:
        self._tables = [array("Q", bytes(8 * _FIRST_SLOTS)) for _ in range(_TABLES)]
        self._counts = [0] * _TABLES

    def __contains__(self, value: int) -> bool:
        value = value or 1  # 0 marks an empty slot
        table = self._tables[value >> 56]
        return table[_place(table, value)] == value

    def add(self, value: int) -> None:
        value = value or 1
        number = value >> 56
        table = self._tables[number]
        place = _place(table, value)
        if table[place]:
            return
        table[place] = value
        self._counts[number] += 1
        if 3 * self._counts[number] > 2 * len(table):
            larger = array("Q", bytes(16 * len(table)))
            for other in table:
                if other:
                    larger[_place(larger, other)] = other
            self._tables[number] = larger

    def __len__(self) -> int:
        return sum(self._counts)


def _place(table: array, value: int) -> int:
    """Returns the slot of a hash, or the empty one where it belongs."""
    mask = len(table) - 1
    place = value & mask
    while table[place] and table[place] != value:
        place = (place + 1) & mask
    return place


def band_hashes(text: str, similarity: float) -> list[int]:
    """Returns a hash for each band of the MinHash values of a text; none if it has no words.

    Args:
      text: of a document.
      similarity: that from which on documents should be near duplicates; it determines the bands.
    """
    from rensa import RMinHash  # of requirements-clean.txt

    words = text.lower().split()
    if not words:
        return []
    hashes = np.array(RMinHash.hash_token_sets([words])[0], np.uint64)
    # The hash of a shingle is a polynomial of those of its words; joining the words would take three times as long.
    shingles = np.zeros(max(1, len(words) - SHINGLE_WORDS + 1), np.uint64)
    for place in range(min(SHINGLE_WORDS, len(words))):
        shingles = shingles * _ODD + hashes[place : place + len(shingles)]
    minhash = RMinHash.digest_matrix_from_flat_token_hashes(shingles, [0, len(shingles)], NUM_VALUES, _SEED)
    values = np.array(minhash.to_rows()[0], "<u4")
    bands, rows = bands_for(similarity)
    parts = (values[band * rows :][:rows].tobytes() for band in range(bands))
    of_bands = (hashlib.blake2b(part, digest_size=8, salt=b"%d" % band) for band, part in enumerate(parts))
    return [int.from_bytes(of_band.digest(), "big") for of_band in of_bands]


@cache
def bands_for(similarity: float) -> tuple[int, int]:
    """Returns (bands, values of a band): those that drop fewest of the less similar documents.

    Of the documents that are this similar to an earlier one at least LEAST_CHANCE are dropped.
    """
    grid = np.linspace(0.0, similarity, 1001)
    shapes = [(bands, rows) for bands in range(1, NUM_VALUES + 1) for rows in range(1, NUM_VALUES // bands + 1)]
    sufficient = [shape for shape in shapes if chance_to_drop(similarity, *shape) >= LEAST_CHANCE]
    return min(sufficient, key=lambda shape: float(chance_to_drop(grid, *shape).sum()))


def chance_to_drop(similarity, bands: int, rows: int):
    """Returns the probability that two documents of this Jaccard similarity agree on a band; also of arrays."""
    return 1.0 - (1.0 - similarity**rows) ** bands
