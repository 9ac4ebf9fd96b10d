"""What commands read and write that take texts: lines of text or JSON, tables, or words in columns."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.data.datasets.conll import is_columns, read_words
from bert_jax.data.datasets.tables import numbered_rows
from bert_jax.data.text import decoded_lines, read_lines
from bert_jax.errors import UserError, listed
from bert_jax.files import decode_json, lines_of, whole_file

_REMEDY = "name a file of texts, or '-'"


def output_file(path: Path, binary: bool = False) -> contextlib.AbstractContextManager[Any]:
    """The file to write. Raises UserError where there is no such folder, or it is one."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder; make it, or write elsewhere")
    return whole_file(path, binary)


def json_line(answer: dict[str, Any]) -> str:
    """Returns an answer as a line of JSON. Raises UserError for numbers that are not finite, which JSON does not have."""
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise UserError(
            f"the model's answer is not finite for {json.dumps(answer)[:200]}; use another checkpoint, or compute in float32"
        ) from None


@contextlib.contextmanager
def read_inputs(path: str, fields: tuple[str, ...]) -> Iterator[Iterator[dict[str, Any]]]:
    """The inputs in a file, or for '-' in standard input: as `parsed` takes them, or the rows of .tsv and .csv with a
    header, or {text, words, document} of each sentence of a .conll, the number of whose document is the last.

    Raises:
      UserError: no such file, one that holds no inputs but labelled data in another format, or as `parsed`, `numbered_rows` and
        `read_words`.
    """
    if path == "-":
        yield parsed(
            decoded_lines(lines_of(sys.stdin.buffer, "standard input"), "standard input"), fields, "standard input"
        )
    elif (suffix := Path(path).suffix) in (".tsv", ".csv"):
        yield (row for _, row in numbered_rows(path, fields))
    elif is_columns(path):
        if fields != ("text",):
            raise UserError(f"{path}: holds texts cut into words, and what is needed are {', '.join(fields)}")
        sentences = read_words(path)
        yield ({"text": " ".join(words), "words": words, "document": document} for words, document in sentences)
    elif suffix == ".json":
        raise UserError(
            f"{path}: not a file of inputs, which are lines of text or of JSON; for labelled data of a task there is "
            f"bert_jax.evaluate --config.data.validation={path}, which writes the predictions, too"
        )
    else:
        yield parsed(read_lines(Path(path), _REMEDY), fields, path)


def parsed(lines: Iterable[str], fields: tuple[str, ...], source: str) -> Iterator[dict[str, Any]]:
    """The inputs: plain lines, whose fields are separated by tabs, or JSON objects. Empty lines are passed over.

    Raises:
      UserError: a line that is not UTF-8, or escapes half of a surrogate pair, or lacks one of the fields; or nothing but
        empty lines.
    """
    is_empty = True
    for number, line in enumerate(lines, 1):
        if line.strip():
            is_empty = False
            yield _values(line.rstrip("\r\n"), fields, source, number)
    if is_empty:
        raise UserError(f"{source}: there is no text in it; give some")


def _values(line: str, fields: tuple[str, ...], source: str, number: int) -> dict[str, Any]:
    """What a line holds. Raises UserError as `parsed`."""
    place = f"{source}: line {number}"
    try:
        line.encode()  # of a command, in which bytes that are not UTF-8 become such halves, too
    except UnicodeEncodeError:
        raise UserError(f"{place}: not UTF-8, or with half of a surrogate pair in it; convert or fix it") from None
    try:
        is_json = source.endswith(".jsonl") or line.lstrip().startswith("{")
        values = decode_json(line, dict[str, Any]) if is_json else dict(zip(fields, line.split("\t"), strict=True))
    except ValueError as error:
        reason = f" ({error})" if is_json else ""
        raise UserError(
            f"{place}: neither a JSON object{reason} nor {len(fields)} text(s) separated by tabs; fix it"
        ) from None
    for field in fields:
        if field not in values:
            raise UserError(f"{place}: no field {field!r}, only {listed(list(values))}; add or rename it")
        if not isinstance(values[field], str):
            shown = repr(values[field])[:80]
            raise UserError(f"{place}: field {field!r} is {shown}, not a text; put it in quotes")
    return values
