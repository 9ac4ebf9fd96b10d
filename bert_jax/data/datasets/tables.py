"""Reads rows with named fields from JSON lines, or tab- or comma-separated files with a header."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_jax.data.text import read_text_lines
from bert_jax.errors import UserError, listed
from bert_jax.files import LONGEST_LINE, decode_json

Row = dict[str, Any]  # text, or a list of texts


def numbered_rows(path: str | Path, fields: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yields the line number and fields of each row of a .jsonl file, or of a .tsv or .csv file with a header.

    Values are strings or, in JSON, lists of strings. Quotes have no meaning in .tsv files. Equal JSON numbers become the same
    string: 1 and 1.0 are both "1". Only `fields` must be there.

    Raises:
      UserError: the file is missing, empty, not text or of another kind; a line is too long, invalid or lacks a field; or
        a field is an object or an invalid list.
    """
    path = Path(path)
    lines = read_text_lines(path)
    is_empty = True
    if path.suffix not in READERS:
        next(lines, "")  # raises if the file does not exist
        raise UserError(f"{path}: unknown format; convert it to one of {', '.join(READERS)}")
    for number, row in READERS[path.suffix](path, lines):
        for name in fields:
            if name not in row:
                existing = listed([other for other, value in row.items() if value is not None])
                raise UserError(f"{path}: line {number} has no field {name!r}, only {existing}; use one of these")
            if problem := _problem(row[name]):
                raise UserError(f"{path}: line {number}: field {name!r} {problem}")
        is_empty = False
        yield number, {name: _as_text(value) for name, value in row.items()}
    if is_empty:
        raise UserError(f"{path}: contains no rows; use another file")


def tsv_lines(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and columns of each line that is not empty; quotes have no meaning."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.rstrip("\r\n").split("\t")


def _problem(value: Any) -> str | None:
    """Returns why a JSON value is neither text nor a list of texts; None if it is valid."""
    if value is None:
        return "is null; set it, or remove the row"
    if isinstance(value, dict):
        return "is an object, not text; fix it"
    for part in value if isinstance(value, list) else ():
        if isinstance(part, bool) or not isinstance(part, str | int):
            return f"is a list that contains {str(part)[:40]}; use texts or integers, such as the labels that apply"
    return None


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [str(part) for part in value]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _json_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = decode_json(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); fix or remove it") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; fix it")
        yield number, row


def _with_header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Row]]:
    _, header = next(lines, (0, []))
    if len(set(header)) < len(header):
        raise UserError(f"{path}: duplicate columns in {listed(header)}; rename one")
    for number, values in lines:
        if len(values) != len(header):
            raise UserError(f"{path}: line {number} has {len(values)} columns, the header {len(header)}; fix it")
        yield number, dict(zip(header, values, strict=True))


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LONGEST_LINE)  # characters; 131,072 by default
    before, size = 0, 0  # last line of the previous record, and characters since then

    def limited_lines() -> Iterator[str]:
        nonlocal size
        for line in lines:
            size += len(line)
            if size > LONGEST_LINE:  # a quote that is never closed
                raise csv.Error(f"a row of more than {LONGEST_LINE:,} characters")
            yield line

    def records() -> Iterator[tuple[int, list[str]]]:
        nonlocal before, size
        reader = csv.reader(limited_lines(), strict=True)
        for values in reader:
            before, size = reader.line_num, 0
            if values:
                yield before, values

    try:
        yield from _with_header(path, records())
    except csv.Error as error:
        raise UserError(f"{path}: line {before + 1} is not CSV ({error}); fix it") from None


READERS: dict[str, Callable[[Path, Iterable[str]], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _json_rows,
    ".tsv": lambda path, lines: _with_header(path, tsv_lines(lines)),
    ".csv": _csv_rows,
}
