"""Reads the inputs of commands (lines of text or JSON, tables, words in columns) and writes their outputs."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.data.datasets.conll import is_columns, read_words
from bert_jax.data.datasets.tables import numbered_rows
from bert_jax.data.text import decoded_lines, read_text_lines
from bert_jax.errors import UserError, listed
from bert_jax.files import decode_json, lines_of, whole_file


def output_file(path: Path, binary: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Opens a file for writing. Raises UserError as `check_output`."""
    check_output(path)
    return whole_file(path, binary)


def check_output(path: Path) -> None:
    """Raises UserError if the folder of an output file does not exist, or it is a folder itself."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; use a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder; create it, or write elsewhere")


def json_line(answer: dict[str, Any]) -> str:
    """Returns an answer as a line of JSON. Raises UserError if it contains NaN or infinity."""
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        problem = f"the model's answer is not finite: {json.dumps(answer)[:200]}"
        raise UserError(f"{problem}; use another checkpoint, or compute in float32") from None


@contextlib.contextmanager
def read_inputs(path: str, fields: tuple[str, ...]) -> Iterator[Iterator[dict[str, Any]]]:
    """Opens the inputs in a file, or in standard input for '-'.

    Lines are read by `parse_lines`; .tsv and .csv files have a header; a sentence of a .conll file becomes {text, words,
    document}, the last being the number of its document.

    Raises:
      UserError: the file is missing or of another format, or as `parse_lines`, `numbered_rows` and `read_words`.
    """
    if path == "-":
        name = "standard input"
        yield parse_lines(decoded_lines(lines_of(sys.stdin.buffer, name), name), fields, name)
    elif (suffix := Path(path).suffix) in (".tsv", ".csv"):
        yield (row for _, row in numbered_rows(path, fields))
    elif is_columns(path):
        if fields != ("text",):
            raise UserError(f"{path}: contains words, but the task needs {', '.join(fields)}")
        sentences = read_words(path)
        yield ({"text": " ".join(words), "words": words, "document": document} for words, document in sentences)
    elif suffix == ".json":
        use = f"use bert_jax.evaluate --config.data.validation={path}, which also writes predictions"
        raise UserError(f"{path}: not a file of inputs, which has lines of text or JSON; for labelled data {use}")
    else:
        yield parse_lines(read_text_lines(Path(path), "use a file of texts, or '-'"), fields, path)


def parse_lines(lines: Iterable[str], fields: tuple[str, ...], source: str) -> Iterator[dict[str, Any]]:
    """Yields the input of each line: a JSON object, or plain text whose fields are separated by tabs. Skips empty lines.

    Raises:
      UserError: a line is not UTF-8, contains an unpaired surrogate or lacks a field; or all lines are empty.
    """
    is_empty = True
    for number, line in enumerate(lines, 1):
        if line.strip():
            is_empty = False
            yield _parse_line(line.rstrip("\r\n"), fields, source, number)
    if is_empty:
        raise UserError(f"{source}: contains no text; add some")


def _parse_line(line: str, fields: tuple[str, ...], source: str, number: int) -> dict[str, Any]:
    place = f"{source}: line {number}"
    try:
        line.encode()  # bytes of an argument that are not UTF-8 are unpaired surrogates
    except UnicodeEncodeError:
        raise UserError(f"{place}: not UTF-8, or contains an unpaired surrogate; convert or fix it") from None
    try:
        is_json = source.endswith(".jsonl") or line.lstrip().startswith("{")
        values = decode_json(line, dict[str, Any]) if is_json else dict(zip(fields, line.split("\t"), strict=True))
    except ValueError as error:
        reason = f" ({error})" if is_json else ""
        problem = f"neither a JSON object{reason} nor {len(fields)} tab-separated text(s)"
        raise UserError(f"{place}: {problem}; fix it") from None
    for field in fields:
        if field not in values:
            raise UserError(f"{place}: no field {field!r}, only {listed(list(values))}; add or rename it")
        if not isinstance(values[field], str):
            raise UserError(f"{place}: field {field!r} is {values[field]!r:.80}, not a text; put it in quotes")
    return values
