"""Best-fit decreasing on counts: which sizes share a row, for any number of pieces in the time of their distinct sizes.

A piece goes into the row with the least space that holds it, the largest pieces first. Pieces of one size are alike, and so are
rows of the same sizes, so the algorithm moves groups of them at once. Shapes: d documents, G groups of rows, P pieces, R rows.
"""

from bisect import bisect_left, insort
from collections import defaultdict

import numpy as np

Group = tuple[tuple[int, ...], int]  # the sizes in a row, descending, and how many such rows there are


def groups_of_rows(counts: np.ndarray, length: int) -> list[Group]:
    """Packs pieces into rows of a length.

    Args:
      counts: [length + 1], the number of pieces of each size; none is of size 0.
      length: of a row.
    """
    by_space: defaultdict[int, list[Group]] = defaultdict(list)
    spaces = list[int]()  # those of `by_space` with rows, sorted
    sizes = np.flatnonzero(counts)[::-1]
    for size, left in zip(sizes.tolist(), counts[sizes].tolist(), strict=True):
        while left:
            place = bisect_left(spaces, size)
            space = spaces[place] if place < len(spaces) else length
            members, rows = by_space[space].pop() if place < len(spaces) else ((), left)
            if place < len(spaces) and not by_space[space]:
                spaces.pop(place)
            # What is left of a row after one more piece is the least space again, until no other piece of this size fits.
            most = space // size
            full, rest = divmod(min(left, rows * most), most)
            placed = [(most, full), (rest, 1)] if rest else [(most, full)]
            if members:
                placed.append((0, rows - full - bool(rest)))
            for pieces, number in placed:
                if number:
                    _add(by_space, spaces, space - pieces * size, (members + (size,) * pieces, number))
            left -= full * most + rest
    return [group for space in sorted(by_space) for group in by_space[space]]


def _add(by_space: dict[int, list[Group]], spaces: list[int], space: int, group: Group) -> None:
    if not by_space[space]:
        insort(spaces, space)
    by_space[space].append(group)


def num_rows(groups: list[Group]) -> int:
    """Returns R, the number of rows of all groups."""
    return sum(number for _, number in groups)


def slots(groups: list[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row [P], ascending, and the size [P] of each piece; rows are numbered group by group."""
    sizes, rows, first = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for members, number in groups:
        sizes.append(np.tile(members, number))
        rows.append(np.repeat(np.arange(first, first + number), len(members)))
        first += number
    return np.concatenate(rows), np.concatenate(sizes)


def numbers_of_pieces(lengths: np.ndarray, space: int, overlap: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many pieces each document has [d], and the tokens of the one that is not full [d].

    Args:
      lengths: [d], tokens of the documents.
      space: tokens of a full piece.
      overlap: tokens that consecutive pieces of a document share, fewer than `space`.
    """
    new = space - overlap  # tokens of a full piece that the one before does not hold
    pieces = 1 + np.maximum(0, -(-(lengths - space) // new))
    return pieces, lengths - (pieces - 1) * new


def groups_of_documents(lengths: np.ndarray, length: int, space: int, overlap: int = 0) -> list[Group]:
    """Packs the pieces of documents into rows of a length, each with the special tokens that leave `space` to one piece."""
    pieces, rest = numbers_of_pieces(lengths, space, overlap)
    counts = np.bincount(rest, minlength=space + 1)
    counts[space] += (pieces - 1).sum()
    spans = np.zeros(length + 1, np.int64)
    spans[length - space :] = counts  # of documents without tokens there are none
    return groups_of_rows(spans, length)
