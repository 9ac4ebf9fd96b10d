"""The on-disk corpus: token streams cut into blocks, as a TFDS dataset (ArrayRecord) that TFDS and Grain also read.

A shard is one stream: the tokens of its documents, each followed by one separator. It is stored as records of
BLOCK_TOKENS tokens, the last one filled up with padding, so that any window is found in constant time.
"""

import mmap
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from bert_jax.data.corpus.index import BLOCK_TOKENS, INDEX_FILE, REMEDY, Index, read_index, role_ids
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

TOKENIZER_FOLDER = "tokenizer"
# One record per chunk and no compression: so the place of each token in the file is known, and files can be mapped.
WRITER_OPTIONS = "group_size:1,uncompressed"
# Riegeli's records format: every 64 KiB of a file begin with a header, even within a record. In what is left, a signature of 40
# bytes is followed by chunks: a header of 40 bytes, one for the compression (none), three for lengths, and the record.
_PAGE, _PAGE_HEADER, _SIGNATURE, _CHUNK_HEADER = 1 << 16, 24, 40, 44
# No read-ahead, and a buffer of about a record: reads are random. Range reads of one record are the fastest kind.
READER_OPTIONS, READER_BUFFER = "readahead_buffer_size:0,max_parallelism:0", 8192
_UNREAD = np.int64(-1)
_COUNTING_BLOCKS = 256  # read at a time when the whole corpus is streamed


class Span(NamedTuple):
    """A window of a shard; n is less than the length asked for only at the shard's end."""

    tokens: np.ndarray  # int32 [n]
    sentence_starts: np.ndarray  # bool [n], True at the first token of each sentence
    document: int  # number, unique in the corpus, of the document that holds the first token


def token_dtype(vocab_size: int) -> np.dtype:
    """The type that stores token ids: uint16 if the vocabulary allows."""
    return np.dtype(np.uint16 if vocab_size < 1 << 16 else np.int32)


def record_bytes(vocab_size: int) -> int:
    """Size of every record."""
    return _Layout.of(token_dtype(vocab_size)).size


def encode_block(tokens: np.ndarray, sentence_starts: np.ndarray, document: int) -> bytes:
    """One record: a serialised tf.train.Example, exactly as TFDS writes the features of `prepare.dataset_features`.

    Args:
      tokens: [BLOCK_TOKENS] of the type `token_dtype`.
      sentence_starts: bool [BLOCK_TOKENS].
      document: number of the document that holds the first token.
    """
    # Imported here, because TFDS is slow to import and predict reads no corpus.
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["document"].bytes_list.value.append(np.int64(document).tobytes())
    feature["sentence_starts"].bytes_list.value.append(sentence_starts.tobytes())
    feature["tokens"].bytes_list.value.append(tokens.tobytes())
    return example.SerializeToString(deterministic=True)  # sorted by name: the same bytes everywhere


class _Layout(NamedTuple):
    """Where the features lie in a record, in bytes: every value has a fixed size, so it is the same in all records."""

    size: int
    tokens: int
    sentence_starts: int
    document: int

    @classmethod
    def of(cls, dtype: np.dtype) -> "_Layout":
        tokens, starts, document = np.full(BLOCK_TOKENS, 0x7A7A, dtype), np.ones(BLOCK_TOKENS, bool), 0x7B7B7B7B7B7B7B7B
        record = encode_block(tokens, starts, document)
        markers = (tokens.tobytes(), starts.tobytes(), np.int64(document).tobytes())
        return cls(len(record), *(record.index(marker) for marker in markers))


def write_shard(
    path: Path, tokens: np.ndarray, sentence_starts: np.ndarray, documents: np.ndarray, pad_id: int
) -> None:
    """Writes one shard.

    Args:
      path: the file.
      tokens: [n] of the type `token_dtype`, separators included.
      sentence_starts: bool [n].
      documents: int64 [d, 2], ascending (position of its first token, number) of each document.
      pad_id: fills the last block.
    """
    padding = -len(tokens) % BLOCK_TOKENS
    tokens = np.pad(tokens, (0, padding), constant_values=pad_id)
    sentence_starts = np.pad(sentence_starts, (0, padding))
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for start in range(0, len(tokens), BLOCK_TOKENS):
        block = slice(start, start + BLOCK_TOKENS)
        holder = np.searchsorted(documents[:, 0], start, side="right") - 1
        writer.write(encode_block(tokens[block], sentence_starts[block], documents[holder, 1]))
    writer.close()


class Corpus:
    """One split of a prepared corpus. Reading is thread-safe; a pickled corpus opens its files again, lazily."""

    def __init__(self, directory: Path, index: Index, split: str):
        """Use `open`."""
        shards = index["splits"][split]["shards"]
        self.directory = directory
        self.tokenizer_fingerprint: str = index["tokenizer"]
        self.vocab_size: int = index["vocab_size"]  # V
        self.special_ids: dict[str, int] = index["special_ids"]  # by role: pad, unk, cls, sep, mask
        self.num_documents: int = index["splits"][split]["documents"]
        self.shard_tokens = np.array([shard["tokens"] for shard in shards], np.int64)  # [num_shards], with separators
        self.num_tokens = int(self.shard_tokens.sum())
        self._sizes: list[int] = self.shard_tokens.tolist()  # Python's integers are quicker one at a time
        self._paths = [directory / shard["file"] for shard in shards]
        self._separator: int = index["special_ids"]["sep"]
        self._dtype = token_dtype(self.vocab_size)
        self._layout = _Layout.of(self._dtype)
        self._first_block = np.concatenate([[0], np.cumsum(_blocks(self.shard_tokens))])  # of each shard, in all of the corpus
        self._forget()
        self._opening = threading.Lock()

    @classmethod
    def open(cls, directory: str | Path, split: str = "train") -> "Corpus":
        """Opens a split (`train` or `validation`) and checks that its files are there and whole.

        Raises:
          UserError: no such folder, not a finished corpus, another format version, no such split, or a file that is
            missing, truncated, or too small for its tokens. (The number of records is checked when a file is first read.)
        """
        directory = Path(directory)
        index = read_index(directory)
        if split not in index["splits"]:
            raise UserError(
                f"{directory}: no split {split!r}, only {', '.join(sorted(index['splits']))}; "
                "prepare it again with a larger --held_out"
            )
        block_bytes = record_bytes(index["vocab_size"])
        for shard in index["splits"][split]["shards"]:
            path = directory / shard["file"]
            if not path.is_file():
                raise UserError(f"{path}: missing; {REMEDY}")
            if (size := path.stat().st_size) != shard["bytes"]:
                raise UserError(
                    f"{path}: {size} bytes instead of {shard['bytes']}; copy the corpus or prepare it again"
                )
            if size < (needed := _blocks(shard["tokens"]) * block_bytes):
                raise UserError(f"{path}: {size} bytes instead of the {needed} of its tokens; {REMEDY}")
        return cls(directory, index, split)

    def check_tokenizer(self, tokenizer: Tokenizer, remedy: str) -> None:
        """Raises UserError, with the remedy, where the corpus was made with another tokenizer, or corpus.json was changed."""
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise UserError(
                f"{self.directory}: made with another tokenizer (fingerprint {self.tokenizer_fingerprint}, not "
                f"{tokenizer.fingerprint}); {remedy}"
            )
        if (tokenizer.vocab_size, role_ids(tokenizer)) != (self.vocab_size, self.special_ids):
            raise UserError(
                f"{self.directory / INDEX_FILE}: vocab_size or special_ids are not its tokenizer's; {REMEDY}"
            )

    def tokens(self, shards: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the token ids int32 [n, length] from the positions `starts` [n] of `shards` [n] on.

        The end of a shard runs on into its beginning. This takes 1 to 2 us a row, whatever the size of the corpus, once its
        blocks have been read: a block is checked when it is first used.

        Raises:
          UserError: a file is damaged, or holds a token that is not in the vocabulary.
        """
        rows = self._bytes(shards, starts, length, self._layout.tokens, self._dtype.itemsize)
        return rows.view(self._dtype).astype(np.int32)

    def sentence_starts(self, shards: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns bool [n, length], True at the first token of each sentence, for the same positions as `tokens`."""
        return self._bytes(shards, starts, length, self._layout.sentence_starts, 1).view(np.bool_)

    def documents(self, shards: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the numbers int64 [n], unique in the corpus, of the documents that hold positions [n] of `shards` [n]."""
        blocks, offsets = np.divmod(positions, BLOCK_TOKENS)
        tokens = self.tokens(shards, blocks * BLOCK_TOKENS, int(offsets.max(initial=0)) + 1)
        # Each separator before a position is the end of a document.
        is_end = (tokens == self._separator) & (np.arange(tokens.shape[1]) < offsets[:, None])
        return self._documents[self._first_block[shards] + blocks] + is_end.sum(axis=1)

    def read(self, shard: int, start: int, length: int) -> Span:
        """Reads the window [start, start + length) of a shard; unlike `tokens` it ends at the shard's end.

        Raises:
          IndexError: the window is empty or begins outside the shard.
          UserError: as `tokens`.
        """
        stop = min(start + length, self._sizes[shard])
        if not 0 <= start < stop:
            raise IndexError(f"window [{start}, {start + length}) of shard {shard} with {self._sizes[shard]} tokens")
        place = np.array([shard]), np.array([start])
        tokens, starts = self.tokens(*place, stop - start)[0], self.sentence_starts(*place, stop - start)[0]
        return Span(tokens, starts, int(self.documents(*place)[0]))

    def token_counts(self) -> np.ndarray:
        """How often each token occurs, int64 [V], separators included, padding not: streams the whole split."""
        counts = np.zeros(self.vocab_size, np.int64)
        window = _COUNTING_BLOCKS * BLOCK_TOKENS
        for shard, size in enumerate(self._sizes):
            for start in range(0, size, window):
                counts += np.bincount(self.read(shard, start, window).tokens, minlength=self.vocab_size)
        return counts

    def _bytes(self, shards: np.ndarray, starts: np.ndarray, length: int, feature: int, itemsize: int) -> np.ndarray:
        """Returns uint8 [n, length * itemsize]: `length` values of a feature that lies `feature` bytes into each record.

        Values lie in the file in runs, which end at the borders of records and at the headers in between. Each round of the
        loop copies a run of every row that is not complete; there are rarely more than two.
        """
        width, sizes, begins = length * itemsize, self.shard_tokens[shards] * itemsize, starts * itemsize
        result, done, rows = np.empty((len(shards), width), np.uint8), np.zeros(len(shards), np.int64), np.arange(len(shards))
        target = memoryview(result.reshape(-1))
        while len(rows):
            position = (begins[rows] + done[rows]) % sizes[rows]
            block, offset = np.divmod(position, BLOCK_TOKENS * itemsize)
            self._check_blocks(shards[rows], block)
            source, before_header = self._place(block, feature + offset)
            rest = np.minimum(BLOCK_TOKENS * itemsize - offset, sizes[rows] - position)
            count = np.minimum(np.minimum(rest, before_header), width - done[rows])
            begin = rows * width + done[rows]
            columns = (array.tolist() for array in (shards[rows], source, source + count, begin, begin + count))
            for shard, start, stop, to_start, to_stop in zip(*columns, strict=True):
                target[to_start:to_stop] = self._maps[shard][start:stop]
            done[rows] += count
            rows = rows[done[rows] < width]
        return result

    def _place(self, block, offset):
        """Returns where a byte of a record lies in its file, and the bytes from there to the next header; also of arrays."""
        place = _SIGNATURE + (block + 1) * _CHUNK_HEADER + block * self._layout.size + offset
        page, in_page = divmod(place, _PAGE - _PAGE_HEADER)
        return page * _PAGE + _PAGE_HEADER + in_page, _PAGE - _PAGE_HEADER - in_page

    def _check_blocks(self, shards: np.ndarray, blocks: np.ndarray) -> None:
        """Reads blocks that are used for the first time through ArrayRecord, which verifies checksums, and compares.

        Raises:
          UserError: a block is damaged, lies elsewhere, or holds a token that is not in the vocabulary.
        """
        numbers = self._first_block[shards] + blocks
        for number in np.unique(numbers[self._documents[numbers] == _UNREAD]).tolist():
            shard = int(np.searchsorted(self._first_block, number, side="right")) - 1
            block = number - int(self._first_block[shard])
            record = self._record(shard, block)
            self._check_vocabulary(shard, np.frombuffer(record, self._dtype, BLOCK_TOKENS, self._layout.tokens))
            start, before_header = self._place(block, 0)
            end, mapped = len(record) + (_PAGE_HEADER if before_header < len(record) else 0), self._maps[shard]
            in_file = bytes(mapped[start : start + end])
            if record != in_file[:before_header] + in_file[before_header:][_PAGE_HEADER:]:
                raise _damaged(self._paths[shard], ValueError(f"block {block} is not where it should be"))
            layout = self._layout
            self._documents[number] = int.from_bytes(record[layout.document : layout.document + 8], "little", signed=True)

    def _check_vocabulary(self, shard: int, tokens: np.ndarray) -> None:
        """ArrayRecord has checksums, so a file with other tokens is not damaged but was made for another vocabulary."""
        for token in (int(tokens.min()), int(tokens.max())):
            if not 0 <= token < self.vocab_size:
                what = f"holds token {token} of a vocabulary of {self.vocab_size}"
                raise UserError(f"{self._paths[shard]}: {what}; {REMEDY}")

    def _record(self, shard: int, block: int) -> bytes:
        reader = self._readers[shard] or self._open_shard(shard)
        try:
            return reader.read(block, block + 1)[0]
        except Exception as error:  # array_record raises what its C++ reports
            raise _damaged(self._paths[shard], error) from None

    def _open_shard(self, shard: int) -> ArrayRecordReader:
        with self._opening:
            if (reader := self._readers[shard]) is not None:  # another thread was quicker
                return reader
            path, blocks = self._paths[shard], _blocks(self._sizes[shard])
            try:
                reader = ArrayRecordReader(str(path), READER_OPTIONS, file_reader_buffer_size=READER_BUFFER)
                found, size = reader.num_records(), len(reader.read(0, 1)[0])
                with path.open("rb") as file:
                    self._maps[shard] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except Exception as error:
                raise _damaged(path, error) from None
            if found != blocks or size != self._layout.size:
                what = f"{found} records of {size} bytes instead of {blocks} of {self._layout.size}"
                raise UserError(f"{path}: {what}; {REMEDY}")
            self._readers[shard] = reader
            return reader

    def _forget(self) -> None:
        """Starts with no file open and no block read."""
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._paths)
        self._maps = [memoryview(b"")] * len(self._paths)
        # For each block the document that holds its first token, once it has been read and checked.
        self._documents = np.full(self._first_block[-1], _UNREAD)

    def __getstate__(self) -> dict[str, Any]:
        closed = ("_readers", "_maps", "_documents", "_opening")
        return {name: value for name, value in self.__dict__.items() if name not in closed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
        self._opening = threading.Lock()


def _blocks(tokens):
    """Returns the blocks of so many tokens; also of arrays."""
    return -(-tokens // BLOCK_TOKENS)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path}: damaged ({reason}); {REMEDY}")
