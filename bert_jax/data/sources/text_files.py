"""Reads the documents of text files and of files with one JSON object per line, in bounded memory."""

import io
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from bert_jax.data.remote import Url
from bert_jax.data.sources.base import (
    DOCUMENT_CHARACTERS,
    NO_FIELD,
    NOT_JSON,
    NOT_TEXT,
    BadRecords,
    Document,
    path_and_field,
)
from bert_jax.data.sources.compressed import DAMAGES, decompressed
from bert_jax.data.sources.files import SourceFile, open_file
from bert_jax.data.text import decoded
from bert_jax.errors import UserError, listed
from bert_jax.files import LONGEST_LINE, decode_json, without_half_pairs

LINE_BYTES = 1 << 16  # longer lines are cut at white space; memory is bounded by about twice this


def read_text(files: Iterable[SourceFile], argument: str, bad: BadRecords, by_file: bool = False) -> Iterator[Document]:
    """Yields the documents of text files, one paragraph per line; empty lines end them, unless `by_file`."""
    for path, name, _, report in files:
        count, text, is_bad = 0, io.StringIO(), False
        for line in chain(_lines(path, LINE_BYTES, report), [None]):  # None: the end of the file
            if isinstance(line, UserError):
                if not is_bad:
                    bad.skip(NOT_TEXT, str(line))
                is_bad = True
                continue
            ends = line is None or (not by_file and not line.strip())
            if (text.tell() or is_bad) and (ends or text.tell() >= DOCUMENT_CHARACTERS):
                if not is_bad:
                    yield Document(f"{name}:{count}", text.getvalue())
                count, text, is_bad = count + 1, io.StringIO(), False
            if line and line.strip():
                text.write(f"\n{line}" if text.tell() else line)


def read_jsonl(files: Iterable[SourceFile], argument: str, bad: BadRecords) -> Iterator[Document]:
    """Yields the documents of files with one JSON object per line, whose field FIELD is the text."""
    _, field = path_and_field(argument)
    for path, name, _, report in files:
        for number, line in enumerate(_lines(path, None, report), start=1):
            if isinstance(line, UserError):
                bad.skip(NOT_TEXT, str(line))
                continue
            if not line.strip():
                continue
            try:
                # Crawled text contains unpaired surrogates here and there; they are replaced.
                record = decode_json(without_half_pairs(line.encode()))
            except ValueError as error:
                bad.skip(NOT_JSON, f"{path}:{number}: invalid JSON ({error}); put one JSON object on each line")
                continue
            if problem := _problem_of(record, field):
                bad.skip(NO_FIELD, f"{path}:{number}: {problem}")
                continue
            yield Document(f"{name}:{number}", record[field] or "")


def _problem_of(record: Any, field: str) -> str:
    """Returns why a line of JSON has no text in a field, and the remedy; '' if it has one, or null."""
    if not isinstance(record, dict):
        return "not a JSON object; write one on each line"
    if field not in record:
        return f"no field {field!r} (fields: {listed(sorted(record)) or 'none'}); set it with jsonl:GLOB:FIELD"
    if record[field] is None or isinstance(record[field], str):
        return ""
    return f"{field!r} is not a text; set another field with jsonl:GLOB:FIELD, or write texts"


def _lines(path: Path | Url, limit: int | None, report: Callable[[int], None]) -> Iterator[str | UserError]:
    """Yields the lines of a UTF-8 file; those longer than `limit` bytes are cut at white space, or, if None, an error.

    In the place of a line that is not UTF-8 it yields the error.
    """
    offset, rest, most = 0, b"", limit or LONGEST_LINE
    with open_file(path) as file, decompressed(path, file) as stream:
        while True:
            report(file.tell())
            try:
                piece = stream.readline(most)
            except DAMAGES as error:
                remedy = "download or compress it again (zstd up to --long=27, xz up to -9)"
                raise UserError(f"{path}: truncated or damaged ({error}); {remedy}") from None
            line = rest + piece
            if not line:
                return
            is_cut = len(piece) == most and not piece.endswith(b"\n")
            if is_cut and limit is None:
                raise UserError(f"{path}: the line at byte {offset} is longer than {most:,} bytes; split it")
            cut = _last_gap(line) if is_cut else len(line)
            text = _decoded(line[:cut], path, offset)
            inside, is_first = bool(rest), offset == 0
            offset, rest = offset + cut, line[cut:]
            if isinstance(text, UserError):
                yield text
            # White space that remains of a cut line is not an empty line, which would end the document.
            elif not (inside and text.isspace()):
                yield (text.removeprefix("\ufeff") if is_first else text).rstrip("\r\n")


def _decoded(line: bytes, path: Path | Url, offset: int) -> str | UserError:
    try:
        return decoded(line, path, offset=offset)
    except UserError as error:
        return error


def _last_gap(line: bytes) -> int:
    """Returns where to cut a long line: after its last white space, else before its last character; always > 0."""
    # The last byte stays in the remainder, so that the remainder is never empty.
    gap = max(line.rfind(b" ", 0, -1), line.rfind(b"\t", 0, -1)) + 1
    if gap:
        return gap
    start = len(line) - 1
    while start > len(line) - 4 and line[start] & 0xC0 == 0x80:  # UTF-8 continuation bytes
        start -= 1
    return start
