"""Rows with named fields, from JSON lines, or tab- or comma-separated files with a header."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError, listed

Row = dict[str, Any]  # text, or a list of texts
LONGEST_FIELD = 2**31 - 1  # characters of a field in .csv; the default limit of the module `csv` is 131,072
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_table(path: str | Path, fields: Sequence[str]) -> list[Row]:
    """The named fields of every row of a file. Raises UserError as `numbered_rows`."""
    return [{name: row[name] for name in fields} for _, row in numbered_rows(path, fields)]


def numbered_rows(path: str | Path, fields: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yields the line number and fields of each row, as text (lists of JSON as lists of texts). In .tsv files quotes are text.

    One row at a time is in memory. JSON numbers that are equal become the same text: 1 and 1.0 are both "1".

    Args:
      path: .jsonl, or .tsv or .csv with a header.
      fields: that every row must have.

    Raises:
      UserError: the file is missing, empty or of another kind, not UTF-8, or a line lacks a field, or a field holds an object,
        NaN, or a list of anything but texts and integers.
    """
    path = Path(path)
    if path.is_file() and path.suffix not in READERS:
        raise UserError(f"{path}: none of {', '.join(READERS)}; convert or rename it")
    is_empty = True
    for number, row in READERS[path.suffix](path, read_lines(path)):
        if empty := [field for field in fields if field in row and row[field] is None]:
            raise UserError(f"{path}: line {number}: field {empty[0]!r} is null; leave the row out, or fill it in")
        if missing := [field for field in fields if field not in row]:
            there = listed([name for name, value in row.items() if value is not None])
            raise UserError(f"{path}: line {number} has no field {missing[0]!r}, only {there}; name the right one")
        for name in fields:
            if problem := _problem(row[name]):
                raise UserError(f"{path}: line {number}: field {name!r} {problem}")
        is_empty = False
        yield number, {name: _as_text(value) for name, value in row.items()}
    if is_empty:
        raise UserError(f"{path}: holds no rows; name a file with some")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, without a byte-order mark. Raises UserError where it is missing or not UTF-8."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a file that is there")
    with path.open("rb") as file:
        before = 0
        for number, content in enumerate(file, 1):
            try:
                line = content.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                place = f"line {number}, at byte {before + error.start}"
                raise UserError(f"{path}: not UTF-8 in {place}; convert it") from None
            if number == 1 and "\n" not in line and "\r" in line.rstrip("\r"):
                raise UserError(f"{path}: its lines end with CR alone; convert it to LF")
            before += len(content)
            yield line


def read_text(path: Path) -> str:
    """A whole file, as `read_lines` reads it."""
    return "".join(read_lines(path))


def json_value(text: str) -> Any:
    """What the JSON says. Raises ValueError where it is none, or escapes half of a surrogate pair, which is no character."""
    value = json.loads(text)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{error.object[error.start]!r} is half of a surrogate pair and no character") from None
    return value


def tsv_lines(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of each line that is not empty. Nothing but tabs and line ends separates: quotes do not quote."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.rstrip("\r\n").split("\t")


def _problem(value: Any) -> str | None:
    """Returns what is wrong with a JSON value where a text or a list of texts is required; None if it is valid."""
    if isinstance(value, dict):
        return "is an object, not a text; fix it"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which is not a valid value; leave the row out, or fix it"
    if isinstance(value, list):
        wrong = [part for part in value if isinstance(part, bool) or not isinstance(part, str | int)]
        if wrong:
            return (
                f"is a list that contains {str(wrong[0])[:40]}; list texts or integers, such as the labels that apply"
            )
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
            row = json_value(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); fix it") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; fix it")
        yield number, row


def _with_header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Row]]:
    _, header = next(lines, (0, []))
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two of the columns {listed(header)} have the same name; rename one")
    for number, values in lines:
        if len(values) != len(header):
            raise UserError(f"{path}: line {number} has {len(values)} columns, the header {len(header)}; fix it")
        yield number, dict(zip(header, values, strict=True))


def _tsv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    return _with_header(path, tsv_lines(lines))


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    reader = csv.reader(lines, strict=True)
    before = 0  # last line of the record before

    def records() -> Iterator[tuple[int, list[str]]]:
        nonlocal before
        for values in reader:
            before = reader.line_num
            if values:
                yield before, values

    try:
        yield from _with_header(path, records())
    except csv.Error as error:
        raise UserError(f"{path}: line {before + 1} is not CSV ({error}); fix it") from None


READERS: dict[str, Callable[[Path, Iterable[str]], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _json_rows,
    ".tsv": _tsv_rows,
    ".csv": _csv_rows,
}
