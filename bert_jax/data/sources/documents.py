"""Reads documents from a source, assigns them to the held-out split, and splits paragraphs into sentences."""

import contextlib
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import NamedTuple

from bert_jax.data.sources.compressed import DAMAGES, decompressed
from bert_jax.data.sources.python_docs import python_docstrings, python_topics
from bert_jax.data.text import decoded
from bert_jax.errors import UserError, listed
from bert_jax.files import LONGEST_LINE, decode_json, is_regular, open_regular, without_half_pairs

LINE_BYTES = 1 << 16  # longer lines are cut at white space; memory is bounded by about twice this
DOCUMENT_CHARACTERS = 1 << 24  # longer documents are split, so that a shard fits into memory


class Document(NamedTuple):
    """One text and the id that decides whether it is held out; paragraphs are lines of `text`."""

    id: str
    text: str


Progress = Callable[[float], None]  # called with the fraction of a source that has been read, 0 to 1


def read_documents(
    spec: str, document: str = "blank-line", progress: Progress = lambda share: None
) -> Iterator[Document]:
    """Yields the documents of a source, always in the same order.

    Args:
      spec: `python-docs`, `text:GLOB` or `jsonl:GLOB[:FIELD]` (FIELD defaults to `text`). Files may be compressed
        (.gz, .xz, .zst) and are read in the order of their names.
      document: what ends a document of a text source: `blank-line`, or `file` for the end of the file only.
      progress: called repeatedly, except by sources of unknown size (`python-docs`).

    Raises:
      UserError: an unknown kind, or a file that is missing, not UTF-8, truncated, contains NUL bytes or invalid JSON, lacks
        the field, or has a line that is too long. Errors in a file are raised when it is reached.
    """
    kind, _, argument = spec.partition(":")
    if document not in ("blank-line", "file"):
        raise UserError(f"document {document!r}: unknown boundary; use 'blank-line' or 'file'")
    if kind == "text":
        return _read_text(argument, document, progress)
    if kind == "jsonl":
        return _read_jsonl(argument, progress)
    if kind != "python-docs":
        remedy = "use one of python-docs, text:GLOB, jsonl:GLOB[:FIELD]"
        raise UserError(f"source {spec!r}: unknown kind {kind!r}; {remedy}")
    if argument:
        raise UserError(f"source {spec!r}: takes no argument; use 'python-docs'")
    return _read_python_docs()


def held_out(document_id: str, fraction: float) -> bool:
    """Checks whether a document belongs to the held-out `fraction` (0 to 1); this depends on its id only."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def _read_python_docs() -> Iterator[Document]:
    """Yields the English documentation of this Python installation, one document per module or topic."""
    docstrings = chain(python_docstrings(), python_topics())
    for module, group in groupby(docstrings, key=lambda docstring: docstring.module):
        yield Document(module, "\n".join(docstring.text for docstring in group))


def _read_text(pattern: str, document: str, progress: Progress) -> Iterator[Document]:
    """Yields the documents of text files: one paragraph per line, separated by empty lines or ends of files."""
    for path, name, report in _files(pattern, progress):
        count, text = 0, io.StringIO()
        for line in chain(_lines(path, LINE_BYTES, report), [None]):  # None: the end of the file
            ends = line is None or (document == "blank-line" and not line.strip())
            if text.tell() and (ends or text.tell() >= DOCUMENT_CHARACTERS):
                yield Document(f"{name}:{count}", text.getvalue())
                count, text = count + 1, io.StringIO()
            if line and line.strip():
                text.write(f"\n{line}" if text.tell() else line)


def _read_jsonl(argument: str, progress: Progress) -> Iterator[Document]:
    """Yields the documents of files with one JSON object per line, whose field FIELD is the text."""
    pattern, _, field = argument.rpartition(":")
    if not pattern or "/" in field:  # no field; the colon is part of a path
        pattern, field = argument, "text"
    for path, name, report in _files(pattern, progress):
        for number, line in enumerate(_lines(path, None, report), start=1):
            if not line.strip():
                continue
            try:
                # Crawled text contains unpaired surrogates here and there; they are replaced.
                record = decode_json(without_half_pairs(line.encode()))
            except ValueError as error:
                raise UserError(f"{path}:{number}: invalid JSON ({error}); put one JSON object on each line") from None
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                fields = listed(sorted(record)) if isinstance(record, dict) else "none"
                problem = f"no text field {field!r} (fields: {fields})"
                raise UserError(f"{path}:{number}: {problem}; set it with jsonl:GLOB:FIELD")
            yield Document(f"{name}:{number}", record[field])


def _files(pattern: str, progress: Progress) -> Iterator[tuple[Path, str, Callable[[int], None]]]:
    """Yields (path, name, report) for the matching files, sorted.

    The name does not depend on the place of the folder; `report` takes the number of bytes read of the file.
    """
    with contextlib.suppress(RuntimeError):  # an unknown ~NAME
        pattern = str(Path(pattern).expanduser())
    matches = sorted(map(Path, _matches(pattern)))
    if not matches:
        raise UserError(f"{pattern}: matches no file; use the path of a file or a glob pattern")
    # Several links may lead to one file; its first name counts.
    paths = sorted({path.resolve(): path for path in reversed(matches) if is_regular(path)}.values())
    if not paths:
        raise UserError(f"{pattern}: matches only folders, devices or pipes; use the path of text files")
    fixed = next((parent for parent in Path(pattern).parents if not glob.has_magic(str(parent))), Path())
    *starts, total = accumulate((path.stat().st_size for path in paths), initial=0)

    def report(start: int, done: int) -> None:
        progress((start + done) / max(1, total))

    for path, start in zip(paths, starts, strict=True):
        yield path, path.relative_to(fixed).as_posix(), partial(report, start)


def _matches(pattern: str) -> Iterator[str]:
    """Yields the paths that glob.glob(recursive=True) finds, without following loops of links forever."""
    parts = re.split(r"(?:^|(?<=/))(?:\*\*/)+", re.sub(r"(^|/)\*\*$", r"\1**/*", pattern), maxsplit=1)
    if len(parts) == 1:
        yield from glob.iglob(pattern)  # noqa: PTH207 - Path.glob refuses absolute patterns
        return
    for start in glob.iglob(parts[0]) if parts[0] else [""]:  # noqa: PTH207
        for folder in _folders(start):
            yield from _matches(glob.escape(folder) + parts[1])


def _folders(start: str) -> Iterator[str]:
    """Yields a folder and its subfolders, each once, with a trailing slash; without hidden and unreadable ones."""
    seen, stack = set[tuple[int, int]](), [start]
    while stack:
        folder = stack.pop()
        with contextlib.suppress(OSError):  # of a file, and of names that are too long
            with os.scandir(folder or ".") as entries:
                names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
            status = Path(folder).stat()
            if (identity := (status.st_dev, status.st_ino)) not in seen:
                seen.add(identity)
                stack += [f"{folder}{name}/" for name in sorted(names, reverse=True)]
                yield folder


def _lines(path: Path, limit: int | None, report: Callable[[int], None]) -> Iterator[str]:
    """Yields the lines of a UTF-8 file; those longer than `limit` bytes are cut at white space, or, if None, an error."""
    offset, rest, most = 0, b"", limit or LONGEST_LINE
    with open_regular(path) as file, decompressed(path, file) as stream:
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
            text = decoded(line[:cut], path, offset=offset)
            if offset == 0:
                text = text.removeprefix("\ufeff")
            inside = bool(rest)
            offset, rest = offset + cut, line[cut:]
            # White space that remains of a cut line is not an empty line, which would end the document.
            if not (inside and text.isspace()):
                yield text.rstrip("\r\n")


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
    """Splits a paragraph into sentences after ., ? or !, closing quotes and white space.

    Chinese and Japanese marks need no white space. Limits: abbreviations (common English ones are listed) and initials
    never end a sentence; no sentence begins with a lower-case letter; scripts without such marks (Thai) are not split.
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
