"""The on-disk corpus: token streams cut into blocks, as a TFDS dataset (ArrayRecord) that TFDS and Grain also read.

A shard is one stream: the tokens of its documents, each followed by one separator. It is stored as records of
BLOCK_TOKENS tokens, the last one filled up with padding, so that any window is found in constant time.
"""

import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from bert_jax.data.corpus.index import BLOCK_TOKENS, INDEX_FILE, REMEDY, Index, read_index, role_ids
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

TOKENIZER_FOLDER = "tokenizer"
# One record per chunk and no compression: measured on Wikipedia, reading a block takes 6 us, against 12 us with Snappy
# (4.1 kB a block) and 17 us with zstd (3.4 kB); uncompressed it has 6.3 kB.
WRITER_OPTIONS = "group_size:1,uncompressed"
# No read-ahead, and a buffer of about a record: reads are random. Range reads of one record are the fastest kind.
READER_OPTIONS, READER_BUFFER = "readahead_buffer_size:0,max_parallelism:0", 8192
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
        self._readers: list[ArrayRecordReader | None] = [None] * len(shards)
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

    def read(self, shard: int, start: int, length: int) -> Span:
        """Reads the window [start, start + length) of a shard, in time that does not depend on the corpus's size.

        Raises:
          IndexError: the window is empty or begins outside the shard.
          UserError: the file is damaged, or holds a token that is not in the vocabulary.
        """
        stop = min(start + length, self._sizes[shard])
        if not 0 <= start < stop:
            raise IndexError(f"window [{start}, {start + length}) of shard {shard} with {self._sizes[shard]} tokens")
        first, offset = divmod(start, BLOCK_TOKENS)
        record = self._records(shard, first, first + 1)[0]
        tokens, starts, document = self._decode(record)
        # Each separator before the window is the end of a document.
        document += int(np.count_nonzero(tokens[:offset] == self._separator))
        end = stop - first * BLOCK_TOKENS
        if end <= BLOCK_TOKENS:
            return Span(self._checked(tokens[offset:end].astype(np.int32), shard), starts[offset:end], document)
        token_pieces, start_pieces = [tokens[offset:]], [starts[offset:]]
        for block in range(first + 1, (stop - 1) // BLOCK_TOKENS + 1):
            tokens, starts, _ = self._decode(self._records(shard, block, block + 1)[0])
            end = stop - block * BLOCK_TOKENS
            token_pieces.append(tokens[:end])
            start_pieces.append(starts[:end])
        joined = np.concatenate(token_pieces, dtype=np.int32)
        return Span(self._checked(joined, shard), np.concatenate(start_pieces), document)

    def _checked(self, tokens: np.ndarray, shard: int) -> np.ndarray:
        """Returns int32 tokens. Raises UserError if one is not in the vocabulary.

        ArrayRecord has checksums, so such a file is not damaged but was made for another vocabulary.
        """
        largest = tokens.view(np.uint32).argmax()  # a third of the time of `max`; negative ids are the largest, too
        if not 0 <= (token := tokens.item(largest)) < self.vocab_size:
            raise UserError(f"{self._paths[shard]}: holds token {token} of a vocabulary of {self.vocab_size}; {REMEDY}")
        return tokens

    def token_counts(self) -> np.ndarray:
        """How often each token occurs, int64 [V], separators included, padding not: streams the whole split."""
        counts = np.zeros(self.vocab_size, np.int64)
        window = _COUNTING_BLOCKS * BLOCK_TOKENS
        for shard, size in enumerate(self._sizes):
            for start in range(0, size, window):
                counts += np.bincount(self.read(shard, start, window).tokens, minlength=self.vocab_size)
        return counts

    def _decode(self, record: bytes) -> tuple[np.ndarray, np.ndarray, int]:
        """(tokens, sentence_starts, document) of a block; the arrays are views of the record."""
        layout = self._layout
        return (
            np.frombuffer(record, self._dtype, BLOCK_TOKENS, layout.tokens),
            np.frombuffer(record, np.bool_, BLOCK_TOKENS, layout.sentence_starts),
            int.from_bytes(record[layout.document : layout.document + 8], "little"),
        )

    def _records(self, shard: int, start: int, stop: int) -> list[bytes]:
        reader = self._readers[shard] or self._open_reader(shard)
        try:
            return reader.read(start, stop)
        except Exception as error:  # array_record raises what its C++ reports
            raise _damaged(self._paths[shard], error) from None

    def _open_reader(self, shard: int) -> ArrayRecordReader:
        with self._opening:
            if (reader := self._readers[shard]) is not None:  # another thread was quicker
                return reader
            path, blocks = self._paths[shard], _blocks(self._sizes[shard])
            try:
                reader = ArrayRecordReader(str(path), READER_OPTIONS, file_reader_buffer_size=READER_BUFFER)
                found, size = reader.num_records(), len(reader.read(0, 1)[0])
            except Exception as error:
                raise _damaged(path, error) from None
            if found != blocks or size != self._layout.size:
                what = f"{found} records of {size} bytes instead of {blocks} of {self._layout.size}"
                raise UserError(f"{path}: {what}; {REMEDY}")
            self._readers[shard] = reader
            return reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": [None] * len(self._paths), "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opening = threading.Lock()


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path}: damaged ({reason}); {REMEDY}")
