"""Values at any place of a corpus's files, for many rows at once; every block is checked before it is used.

A block is a record, which the file of checksums knows. Records come from local files or, by ranges, from URLs: both offer the
methods of `Records`. Shapes: n rows.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from bert_jax.data.corpus.index import BLOCK_TOKENS, REMEDY
from bert_jax.errors import UserError

_UNREAD = np.int64(-1)


class Layout(NamedTuple):
    """Where the features lie in a record, in bytes: every value has a fixed size, so it is the same in all records."""

    size: int
    tokens: int
    sentence_starts: int
    document: int


class Pieces(NamedTuple):
    """Where pieces of records are read, [n] each; `key` and `start` are for `read`."""

    keys: np.ndarray
    starts: np.ndarray
    runs: np.ndarray  # bytes that can be read at once from there, if the record is long enough
    read: Any  # function(key, start, stop) -> bytes


class Records(Protocol):
    """The records of a split, which are numbered over all shards. Thread-safe; a pickled object opens its files again."""

    is_remote: bool  # the records of many rows are to be asked for at once; else new ones, as they are needed

    def name(self, number: int) -> str:
        """Returns the file and the number of the record there, for messages."""

    def checked(self, numbers: np.ndarray) -> dict[int, bytes]:
        """Returns records [n], by number, that are what was written.

        Raises:
          UserError: a record cannot be read, or is not what was written.
        """

    def pieces(
        self, shards: np.ndarray, blocks: np.ndarray, numbers: np.ndarray, places: np.ndarray, records: dict[int, bytes]
    ) -> Pieces:
        """Returns how to read byte `places` [n] of blocks [n] of shards [n], and what follows it.

        `records` has those of remote files.
        """


class BlockFiles:
    """The blocks of a split. Reading is thread-safe, and the object pickles."""

    def __init__(self, records: Records, shard_tokens: np.ndarray, layout: Layout, dtype: np.dtype, vocab_size: int):
        self._records, self._shard_tokens = records, shard_tokens
        self._layout, self._dtype, self._vocab_size = layout, dtype, vocab_size
        self._first_block = first_blocks(shard_tokens)
        # For each block the document that holds its first token, once it has been read and checked.
        self._documents = np.full(self._first_block[-1], _UNREAD)

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockFiles, (self._records, self._shard_tokens, self._layout, self._dtype, self._vocab_size)

    def values(self, shards: np.ndarray, starts: np.ndarray, length: int, place: int, dtype: np.dtype) -> np.ndarray:
        """Returns `length` values [n, length] of a feature from the positions `starts` [n] of `shards` [n] on.

        The end of a shard runs on into its beginning. A record has `place` bytes before the feature. Values are read in runs,
        which end at the borders of records and, in local files, at the headers in between. Each round of the loop copies a run
        of every row that is not complete; there are rarely more than two.

        Raises:
          UserError: a file is damaged, cannot be read, or holds a token that is not in the vocabulary.
        """
        width, per_block = length * dtype.itemsize, BLOCK_TOKENS * dtype.itemsize
        sizes, begins = self._shard_tokens[shards] * dtype.itemsize, starts * dtype.itemsize
        records = dict[int, bytes]()
        if self._records.is_remote:
            records = self._records.checked(self._touched(shards, begins, sizes, width, per_block))
        result, done = np.empty((len(shards), width), np.uint8), np.zeros(len(shards), np.int64)
        rows, target = np.arange(len(shards)), result.reshape(-1).data
        while len(rows):
            position = (begins[rows] + done[rows]) % sizes[rows]
            block, offset = np.divmod(position, per_block)
            numbers = self._first_block[shards[rows]] + block
            self._inspect(numbers, records)
            keys, source, runs, read = self._records.pieces(shards[rows], block, numbers, place + offset, records)
            in_block = np.minimum(per_block - offset, sizes[rows] - position)
            count = np.minimum(np.minimum(in_block, runs), width - done[rows])
            begin = rows * width + done[rows]
            columns = (array.tolist() for array in (keys, source, source + count, begin, begin + count))
            for key, start, stop, to_start, to_stop in zip(*columns, strict=True):
                target[to_start:to_stop] = read(key, start, stop)
            done[rows] += count
            rows = rows[done[rows] < width]
        return result.view(dtype)

    def first_documents(self, shards: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Returns the numbers int64 [n] of the documents that hold the first tokens of blocks [n] of shards [n]."""
        numbers = self._first_block[shards] + blocks
        self._inspect(numbers, {})
        return self._documents[numbers]

    def _touched(
        self, shards: np.ndarray, begins: np.ndarray, sizes: np.ndarray, width: int, per_block: int
    ) -> np.ndarray:
        """Returns the numbers of the blocks that hold bytes [begin, begin + width) of each row; some occur repeatedly."""
        steps = np.append(np.arange(0, width, per_block), max(0, width - 1))
        blocks = (begins[:, None] + steps) % sizes[:, None] // per_block
        # Steps of a whole block pass over the last one of a shard, which may be shorter.
        last = np.where(begins + width > sizes, (sizes - 1) // per_block, blocks[:, 0])
        return (self._first_block[shards][:, None] + np.column_stack([blocks, last])).reshape(-1)

    def _inspect(self, numbers: np.ndarray, records: dict[int, bytes]) -> None:
        """Checks what new ones among blocks [n] hold; those that are not in `records` are read."""
        new = numbers[self._documents[numbers] == _UNREAD]
        if not len(new):
            return
        missing = [number for number in np.unique(new).tolist() if number not in records]
        records = records | self._records.checked(np.array(missing, np.int64)) if missing else records
        for number in np.unique(new).tolist():
            record, layout = records[number], self._layout
            tokens = np.frombuffer(record, self._dtype, BLOCK_TOKENS, layout.tokens)
            for token in (int(tokens.min()), int(tokens.max())):
                if not 0 <= token < self._vocab_size:  # there are checksums: made for another vocabulary
                    what = f"holds token {token} of a vocabulary of {self._vocab_size}"
                    raise UserError(f"{self._records.name(number)} {what}; {REMEDY}")
            document = record[layout.document : layout.document + 8]
            self._documents[number] = int.from_bytes(document, "little", signed=True)


def num_blocks(tokens):
    """Returns how many blocks hold so many tokens; also of arrays."""
    return -(-tokens // BLOCK_TOKENS)


def first_blocks(shard_tokens: np.ndarray) -> np.ndarray:
    """Returns the number of the first block of each shard, and that of all blocks, [num_shards + 1]."""
    return np.concatenate([[0], np.cumsum(num_blocks(shard_tokens))])
