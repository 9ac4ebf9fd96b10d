"""The on-disk corpus: token streams cut into blocks, as a TFDS dataset (ArrayRecord) that TFDS and Grain also read.

A shard is one stream: the tokens of its documents, each followed by one separator ([SEP], a special token). It is stored as
records of BLOCK_TOKENS tokens, the last one filled up with padding, so that any window is found in constant time.
"""

import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from bert_jax.data.corpus.arrays import (
    CHECKSUM_DTYPE,
    LENGTH_DTYPE,
    Checksums,
    checksums_file,
    lengths_file,
    open_array,
)
from bert_jax.data.corpus.block_files import BlockFiles, Layout, Records, first_blocks, num_blocks
from bert_jax.data.corpus.index import BLOCK_TOKENS, INDEX_FILE, REMEDY, Index, Shard, read_index, role_ids
from bert_jax.data.corpus.local_records import LocalRecords
from bert_jax.data.corpus.remote_folder import local_folder
from bert_jax.data.corpus.remote_records import CACHE_MEGABYTES, RemoteRecords
from bert_jax.data.remote import Url, is_url
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

# One record per chunk and no compression: so the place of each token in the file is known.
WRITER_OPTIONS = "group_size:1,uncompressed"
_COUNTED_TOKENS = 256 * BLOCK_TOKENS  # read at a time when the whole corpus is streamed


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the type that stores token ids: uint16 if the vocabulary allows."""
    return np.dtype(np.uint16 if vocab_size < 1 << 16 else np.int32)


def record_bytes(vocab_size: int) -> int:
    """Returns the size of every record, in bytes."""
    return _layout(token_dtype(vocab_size)).size


def encode_block(tokens: np.ndarray, sentence_starts: np.ndarray, document: int) -> bytes:
    """Encodes one record: a serialised tf.train.Example, exactly as TFDS writes the features of `prepare.dataset_features`.

    It holds tokens, of the type `token_dtype`, and sentence starts, bool, both [BLOCK_TOKENS], and the number of the document
    that holds the first token.
    """
    # Imported here, because TFDS is slow to import and predict reads no corpus.
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["document"].bytes_list.value.append(np.int64(document).tobytes())
    feature["sentence_starts"].bytes_list.value.append(sentence_starts.tobytes())
    feature["tokens"].bytes_list.value.append(tokens.tobytes())
    return example.SerializeToString(deterministic=True)  # sorted by name: the same bytes everywhere


def _layout(dtype: np.dtype) -> Layout:
    tokens, starts, document = np.full(BLOCK_TOKENS, 0x7A7A, dtype), np.ones(BLOCK_TOKENS, bool), 0x7B7B7B7B7B7B7B7B
    record = encode_block(tokens, starts, document)
    markers = (tokens.tobytes(), starts.tobytes(), np.int64(document).tobytes())
    return Layout(len(record), *(record.index(marker) for marker in markers))


def write_shard(
    path: Path, tokens: np.ndarray, sentence_starts: np.ndarray, documents: np.ndarray, pad_id: int
) -> np.ndarray:
    """Writes one shard, with `pad_id` at the end of the last block; returns the checksums of its records, uint32 [b].

    Args:
      path: the file.
      tokens: [n] of the type `token_dtype`, separators included.
      sentence_starts: bool [n].
      documents: int64 [d, 2], ascending (position of its first token, number) of each document.

    Raises:
      UserError: the file cannot be written, e.g. on a full disk.
    """
    padding = -len(tokens) % BLOCK_TOKENS
    tokens = np.pad(tokens, (0, padding), constant_values=pad_id)
    sentence_starts = np.pad(sentence_starts, (0, padding))
    checksums = list[int]()
    try:
        writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
        for start in range(0, len(tokens), BLOCK_TOKENS):
            block = slice(start, start + BLOCK_TOKENS)
            holder = np.searchsorted(documents[:, 0], start, side="right") - 1
            record = encode_block(tokens[block], sentence_starts[block], documents[holder, 1])
            writer.write(record)
            checksums.append(zlib.crc32(record))
        writer.close()
    except RuntimeError as error:  # array_record raises what its C++ reports
        reason = str(error).partition(";")[0]
        remedy = "free some space or write elsewhere, and start again"
        raise UserError(f"{path.parent}: cannot be written ({reason}); {remedy}") from None
    return np.array(checksums, CHECKSUM_DTYPE)


class Corpus:
    """One split of a prepared corpus. Reading is thread-safe; a pickled corpus opens its files again."""

    def __init__(self, directory: Path, index: Index, split: str, url: Url | None = None, cache_megabytes: int = 0):
        """Takes what `open` has checked; use that."""
        shards = index["splits"][split]["shards"]
        self.directory = directory  # of a corpus at a URL, that with copies of its small files
        self.place = str(url or directory)  # for messages
        self._split, self._shards = split, shards
        self.tokenizer_fingerprint: str = index["tokenizer"]
        self.vocab_size: int = index["vocab_size"]  # V
        self.special_ids: dict[str, int] = index["special_ids"]  # by role: pad, unk, cls, sep, mask
        self.num_documents: int = index["splits"][split]["documents"]
        self.shard_tokens = np.array([shard["tokens"] for shard in shards], np.int64)  # [num_shards], with separators
        self.num_tokens = int(self.shard_tokens.sum())
        self._dtype = token_dtype(self.vocab_size)
        self._layout = _layout(self._dtype)
        sizes, checksums = (self.shard_tokens, self._layout.size), self._checksums()
        records: Records
        if url:
            assert checksums, "see `open`"
            cache, cache_bytes = directory / f"records-{split}", int(cache_megabytes * 1e6)
            records = RemoteRecords(url, [shard["file"] for shard in shards], *sizes, checksums, cache, cache_bytes)
        else:
            records = LocalRecords([directory / shard["file"] for shard in shards], *sizes, checksums)
        self._files = BlockFiles(records, self.shard_tokens, self._layout, self._dtype, self.vocab_size)

    @classmethod
    def open(cls, directory: str | Path, split: str = "train", cache_megabytes: int = CACHE_MEGABYTES) -> "Corpus":
        """Opens a split (`train` or `validation`) and checks that its files are there and whole.

        Args:
          directory: a folder, or the URL of one.
          split: its name.
          cache_megabytes: size of the file that keeps records of a corpus at a URL.

        Raises:
          UserError: no such folder, not a finished corpus, another format version, no such split, or a file that is
            missing, truncated, or too small for its tokens; a corpus at a URL that cannot be read, or has no checksums.
            (What is in a record is checked when it is first read.)
        """
        url = Url(str(directory)) if is_url(str(directory)) else None
        folder = local_folder(directory)
        index = read_index(folder)
        if split not in index["splits"]:
            known = ", ".join(sorted(index["splits"]))
            size = "smaller" if split == "train" else "larger"
            problem = f"no split {split!r}, only {known}"
            raise UserError(f"{directory}: {problem}; prepare another one with a {size} --held_out")
        _check_shards(url or folder, index, split)
        if url and not (folder / checksums_file(split)).exists():
            problem = "has no checksums, being of an older version"
            raise UserError(f"{url}: {problem}; prepare it again elsewhere, or copy it to a disk")
        return cls(folder, index, split, url, cache_megabytes)

    @property
    def summary(self) -> str:
        """Size of the split, for the log."""
        return f"{self.num_tokens:,} tokens of {self.num_documents:,} documents"

    def check_tokenizer(self, tokenizer: Tokenizer, remedy: str) -> None:
        """Raises UserError, with the remedy, where the corpus was made with another tokenizer, or corpus.json was changed."""
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            other = f"fingerprint {self.tokenizer_fingerprint}, not {tokenizer.fingerprint}"
            raise UserError(f"{self.place}: made with another tokenizer ({other}); {remedy}")
        if (tokenizer.vocab_size, role_ids(tokenizer)) != (self.vocab_size, self.special_ids):
            problem = "vocab_size or special_ids are not its tokenizer's"
            raise UserError(f"{self.place}/{INDEX_FILE}: {problem}; {REMEDY}")

    def packed_rows(self, length: int) -> np.ndarray | None:
        """Returns how many rows of a length the documents of each shard fill, int64 [num_shards], if that is stored."""
        counts = [shard.get("packed_rows", {}).get(str(length), 0) for shard in self._shards]
        return np.array(counts, np.int64) if all(counts) else None

    def tokens(self, shards: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the token ids int32 [n, length] from the positions `starts` [n] of `shards` [n] on.

        The end of a shard runs on into its beginning. The time does not depend on the size of the corpus.

        Raises:
          UserError: a file is damaged, or holds a token that is not in the vocabulary.
        """
        return self._files.values(shards, starts, length, self._layout.tokens, self._dtype).astype(np.int32)

    def sentence_starts(self, shards: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns bool [n, length], True at the first token of each sentence, for the same positions as `tokens`."""
        return self._files.values(shards, starts, length, self._layout.sentence_starts, np.dtype(bool))

    def documents(self, shards: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the numbers int64 [n], unique in the corpus, of the documents that hold positions [n] of `shards` [n]."""
        blocks, offsets = np.divmod(positions, BLOCK_TOKENS)
        tokens = self.tokens(shards, blocks * BLOCK_TOKENS, int(offsets.max(initial=0)) + 1)
        # Each separator before a position is the end of a document.
        is_end = (tokens == self.special_ids["sep"]) & (np.arange(tokens.shape[1]) < offsets[:, None])
        return self._files.first_documents(shards, blocks) + is_end.sum(axis=1)

    def document_lengths(self, shard: int) -> np.ndarray:
        """Returns the number of tokens of each document of a shard, int32 [d], separators not counted.

        Raises:
          UserError: the corpus was prepared before these were stored, or the file is damaged.
        """
        first, last = self._first_documents[shard : shard + 2]
        return np.asarray(self._lengths[first:last])

    @cached_property
    def _first_documents(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([shard.get("documents", 0) for shard in self._shards])])

    @cached_property
    def _lengths(self) -> np.ndarray:
        path = self.directory / lengths_file(self._split)
        if not path.exists() or any("documents" not in shard for shard in self._shards):
            remedy = "prepare it again elsewhere, or set --config.data.packing=windows"
            raise UserError(f"{self.place}: has no lengths of documents, being of an older version; {remedy}")
        return open_array(path, LENGTH_DTYPE, self._first_documents[-1])

    def _checksums(self) -> Checksums | None:
        """Returns the checksums of the records; None of a corpus of an older version, which has none."""
        path = self.directory / checksums_file(self._split)
        return Checksums(path, int(first_blocks(self.shard_tokens)[-1])) if path.exists() else None

    def token_counts(self) -> np.ndarray:
        """Counts each token of the whole split, int64 [V], separators included, padding not."""
        counts = np.zeros(self.vocab_size, np.int64)
        for shard, size in enumerate(self.shard_tokens.tolist()):
            for start in range(0, size, _COUNTED_TOKENS):
                length = min(_COUNTED_TOKENS, size - start)
                tokens = self.tokens(np.array([shard]), np.array([start]), length)
                counts += np.bincount(tokens[0], minlength=self.vocab_size)
        return counts


def check_whole(directory: str | Path) -> None:
    """Raises UserError if a shard of a finished corpus, in a folder or at a URL, is missing or of another size."""
    index = read_index(local_folder(directory))
    for split in index["splits"]:
        _check_shards(Url(str(directory)) if is_url(str(directory)) else Path(directory), index, split)


def _check_shards(place: Path | Url, index: Index, split: str) -> None:
    shards = index["splits"][split]["shards"]
    sizes = place.sizes() if isinstance(place, Url) else _sizes(place, shards)
    for shard in shards:
        _check_size(f"{place}/{shard['file']}", sizes.get(shard["file"]), shard, index["vocab_size"])


def _sizes(folder: Path, shards: list[Shard]) -> dict[str, int]:
    """Returns the sizes in bytes of those of the shards that are in a folder, by name."""
    paths = [folder / shard["file"] for shard in shards]
    return {path.name: path.stat().st_size for path in paths if path.is_file()}


def _check_size(path: str, size: int | None, shard: Shard, vocab_size: int) -> None:
    """Raises UserError if the file of a shard is missing, or not as large as it should be."""
    if size is None:
        raise UserError(f"{path}: missing; {REMEDY}")
    if size != (expected := shard["bytes"]):
        raise UserError(f"{path}: {size} bytes instead of {expected}; {REMEDY}")
    if size < (needed := num_blocks(shard["tokens"]) * record_bytes(vocab_size)):
        raise UserError(f"{path}: {size} bytes instead of the {needed} of its tokens; {REMEDY}")
