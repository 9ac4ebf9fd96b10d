"""Rows with named fields, from JSON lines or tab-separated files with a header."""

import json
from pathlib import Path

from bert_jax.errors import UserError


def read_table(path: str | Path, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """The named fields of every row, as text. In .tsv files quotes are text like any other.

    Raises:
      UserError: the file is missing, empty or of another kind, not UTF-8, or a line lacks a field.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a .jsonl or .tsv file")
    if path.suffix not in (".jsonl", ".tsv"):
        raise UserError(f"{path}: neither .jsonl nor .tsv; convert or rename it")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it") from None
    rows = _json_rows(path, lines) if path.suffix == ".jsonl" else _tsv_rows(path, lines)
    if not rows:
        raise UserError(f"{path}: holds no rows; name a file with some")
    for number, row in enumerate(rows, 1):
        if missing := [field for field in fields if field not in row]:
            raise UserError(
                f"{path}: row {number} has no field {missing[0]!r}, only {', '.join(row)}; name the right one"
            )
    return [{field: str(row[field]) for field in fields} for row in rows]


def _json_rows(path: Path, lines: list[str]) -> list[dict]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: row {number} is not JSON ({error}); mend it") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is not a JSON object; mend it")
        rows.append(row)
    return rows


def _tsv_rows(path: Path, lines: list[str]) -> list[dict]:
    header, *rest = [line.rstrip("\r").split("\t") for line in lines] or [[]]
    for number, values in enumerate(rest, 1):
        if len(values) != len(header):
            raise UserError(f"{path}: row {number} has {len(values)} columns, the header {len(header)}; mend it")
    return [dict(zip(header, values, strict=True)) for values in rest]
