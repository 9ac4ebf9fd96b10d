"""Where text comes from: a source specification in, a stream of documents out; the held-out split; sentences."""

import glob
import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import zstandard

from bert_jax.data.python_docs import Docstring, python_docstrings, python_topics
from bert_jax.errors import UserError, listed

__all__ = ["SOURCES", "Docstring", "Document", "held_out", "python_docstrings", "read_documents", "split_sentences"]

LINE_BYTES = 1 << 16  # a longer line is cut at white space, so that no step ever holds more than about twice this
DOCUMENT_CHARACTERS = 1 << 24  # a longer document is continued as the next one, so that a shard fits into memory


class Document(NamedTuple):
    """One text and the id that decides whether it is held out; paragraphs are lines of `text`."""

    id: str
    text: str


Progress = Callable[[float], None]  # told the share of a source that has been read, 0 to 1


def read_documents(
    spec: str, document: str = "blank-line", progress: Progress = lambda share: None
) -> Iterator[Document]:
    """Streams the documents of a source, in an order that is the same every time.

    Args:
      spec: `python-docs`, `text:GLOB` or `jsonl:GLOB[:FIELD]` (FIELD is `text` unless given). Files may be compressed
        (.gz, .xz, .zst) and are read in the order of their names.
      document: what ends a document of a text source: `blank-line`, or `file` for the end of the file only.
      progress: called now and then; not by sources whose size is not known (`python-docs`).

    Raises:
      UserError: unknown kind, no such file, not UTF-8, not JSON, no such field, truncated file. Those of a file come
        when it is reached.
    """
    kind, _, argument = spec.partition(":")
    if kind not in SOURCES:
        known = ", ".join(usage for _, usage in SOURCES.values())
        raise UserError(f"source {spec!r}: unknown kind {kind!r}; use one of {known}")
    if document not in ("blank-line", "file"):
        raise UserError(f"document {document!r}: unknown boundary; use 'blank-line' or 'file'")
    reader, _ = SOURCES[kind]
    return reader(argument, document, progress)


def held_out(document_id: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out `fraction` (0 to 1): a function of its id only."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of source
# ---------------------------------------------------------------------------------------------------------------------


def _read_python_docs(argument: str, document: str, progress: Progress) -> Iterator[Document]:
    """The English documentation of this Python installation, one document per module (`python_docs.py`)."""
    del document, progress  # a module is a document
    if argument:
        raise UserError(f"source 'python-docs:{argument}': takes no argument; use 'python-docs'")
    module, paragraphs = "", list[str]()
    for docstring in python_docstrings():
        if docstring.module != module and paragraphs:
            yield Document(module, "\n".join(paragraphs))
            paragraphs = []
        module = docstring.module
        paragraphs.append(docstring.text)
    if paragraphs:
        yield Document(module, "\n".join(paragraphs))
    for topic in python_topics():
        yield Document(topic.module, topic.text)


def _read_text(pattern: str, document: str, progress: Progress) -> Iterator[Document]:
    """Plain text files: a paragraph a line, documents separated by blank lines (or by the ends of the files)."""
    for path, name, read in _files(pattern, progress):
        count, size, paragraphs = 0, 0, list[str]()
        for line in chain(_lines(path, LINE_BYTES, read), [None]):  # None: the end of the file
            ends = line is None or (document == "blank-line" and not line.strip())
            if paragraphs and (ends or size >= DOCUMENT_CHARACTERS):
                yield Document(f"{name}:{count}", "\n".join(paragraphs))
                count, size, paragraphs = count + 1, 0, []
            if line and line.strip():
                paragraphs.append(line)
                size += len(line)


def _read_jsonl(argument: str, document: str, progress: Progress) -> Iterator[Document]:
    """One JSON object a line, whose field FIELD is the text of a document."""
    del document  # a line is a document
    pattern, _, field = argument.rpartition(":")
    if not pattern or "/" in field:  # no field given; a colon may still be part of a path
        pattern, field = argument, "text"
    for path, name, read in _files(pattern, progress):
        for number, line in enumerate(_lines(path, -1, read), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error.msg}); put one JSON object on each line") from None
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                fields = listed(sorted(record)) if isinstance(record, dict) else "none"
                raise UserError(
                    f"{path}:{number}: no text field {field!r} (fields: {fields}); name it: jsonl:GLOB:FIELD"
                )
            # JSON can escape half a surrogate pair, which is no character: replace it.
            yield Document(f"{name}:{number}", record[field].encode("utf-8", "replace").decode())


# kind: (reader(argument, document, progress), how to write it). A new kind of source is one function and one row.
SOURCES: dict[str, tuple[Callable[[str, str, Progress], Iterator[Document]], str]] = {
    "python-docs": (_read_python_docs, "python-docs"),
    "text": (_read_text, "text:GLOB"),
    "jsonl": (_read_jsonl, "jsonl:GLOB[:FIELD]"),
}

# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _files(pattern: str, progress: Progress) -> Iterator[tuple[Path, str, Callable[[int], None]]]:
    """(path, name, read) of the files that match, sorted.

    The name does not depend on where the folder lies; `read` is to be told the bytes that have been read of the file.
    """
    pattern = str(Path(pattern).expanduser())
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
    paths = sorted(path for path in map(Path, found) if path.is_file())
    if not paths:
        raise UserError(f"{pattern}: no file matches; give the path of a file or a glob pattern")
    fixed = next((parent for parent in Path(pattern).parents if not glob.has_magic(str(parent))), Path())
    sizes = [path.stat().st_size for path in paths]
    total, before = max(1, sum(sizes)), 0
    for path, size in zip(paths, sizes, strict=True):

        def read(done: int, before: int = before) -> None:
            progress((before + done) / total)

        yield path, path.relative_to(fixed).as_posix(), read
        before += size


def _lines(path: Path, limit: int, read: Callable[[int], None]) -> Iterator[str]:
    """Streams the lines of a UTF-8 file, cutting those longer than `limit` bytes (-1: none) at white space."""
    offset, rest = 0, b""
    with _opened(path) as file, _decompressed(path, file) as stream:
        while True:
            read(file.tell())
            try:
                piece = stream.readline(limit)
            except (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
                raise UserError(f"{path}: truncated or damaged ({error}); fetch or compress it again") from None
            line = rest + piece
            if not line:
                return
            cut = _last_gap(line) if len(piece) == limit and not piece.endswith(b"\n") else len(line)
            try:
                text = line[:cut].decode()
            except UnicodeDecodeError as error:
                position = offset + error.start
                raise UserError(f"{path}: not UTF-8 at byte {position}; convert it, for instance with iconv") from None
            # A blank remainder of a line that was cut is no blank line: it would end the document.
            if offset == 0:
                text = text.removeprefix("\ufeff")
            inside = bool(rest)
            offset, rest = offset + cut, line[cut:]
            if not (inside and text.isspace()):
                yield text.rstrip("\r\n")


def _last_gap(line: bytes) -> int:
    """Where to cut an over-long line: behind its last white space, else before its last character; always > 0."""
    # The last byte stays in the remainder, which marks it as the continuation of this line.
    gap = max(line.rfind(b" ", 0, -1), line.rfind(b"\t", 0, -1)) + 1
    if gap:
        return gap
    start = len(line) - 1
    while start > len(line) - 4 and line[start] & 0xC0 == 0x80:  # UTF-8 continuation bytes
        start -= 1
    return start


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _decompressed(path: Path, file: BinaryIO) -> BinaryIO:
    """The bytes of a file, decompressed according to its suffix."""
    match path.suffix:
        case ".gz":
            return cast(BinaryIO, gzip.open(file))
        case ".xz":
            return cast(BinaryIO, lzma.open(file))
        case ".zst":
            return io.BufferedReader(_ZstdFile(file), 1 << 20)
        case _:
            return file


class _ZstdFile(io.RawIOBase):
    """Streams a .zst file and, unlike zstandard's own reader, notices when its end is missing."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._compressed, self._plain = b"", b""
        self._started = False  # inside a frame

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            compressed = self._compressed or self._file.read(1 << 16)
            if not compressed:
                if self._started:
                    raise EOFError("the end of the compressed data is missing")
                return 0
            self._started = True
            self._plain = self._frame.decompress(compressed)
            self._compressed = b""
            if self._frame.eof:  # another frame may follow
                self._compressed, self._started = self._frame.unused_data, False
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count


# ---------------------------------------------------------------------------------------------------------------------
# Sentences
# ---------------------------------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"""[.!?…؟][.!?…؟"'”’»)\]]*\s+|[。！？][”’」』）]*\s*""")  # noqa: RUF001
_OPENING = "(['\"“‘"  # noqa: RUF001
# fmt: off
_ABBREVIATIONS = frozenset([
    "al", "approx", "bros", "capt", "cf", "co", "col", "corp", "dept", "dr", "e.g", "ed", "eds", "esp", "etc", "gen",
    "gov", "hon", "i.e", "inc", "jr", "lt", "ltd", "mr", "mrs", "ms", "mt", "prof", "ref", "rev", "sen", "sgt", "sr",
    "st", "u.k", "u.s", "vs",
])
# fmt: on
_BEFORE_NUMBERS = frozenset(["art", "ch", "eq", "eqs", "fig", "figs", "no", "nos", "p", "pp", "sec", "vol", "vols"])


def split_sentences(paragraph: str) -> list[str]:
    """Splits a paragraph into sentences, by rules: a full stop, question or exclamation mark, closing quotes, a gap.

    What it cannot do: tell an abbreviation (the common English ones are listed) or an initial at the end of a sentence
    from one within; split before a sentence that begins with a lower-case letter; split scripts without these marks,
    such as Thai. Chinese and Japanese marks end a sentence without a gap.
    """
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(paragraph):
        following = paragraph[end.end() : end.end() + 1]
        if following.islower():
            continue
        if end.group()[0] == ".":
            word = paragraph[paragraph.rfind(" ", start, end.start()) + 1 : end.start()].lstrip(_OPENING)
            initial = len(word) == 1 and word.isalpha()
            if initial or word.lower() in (_BEFORE_NUMBERS if following.isdigit() else _ABBREVIATIONS):
                continue
        sentences.append(paragraph[start : end.end()].strip())
        start = end.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]
