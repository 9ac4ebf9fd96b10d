"""What commands read and write that take texts: lines of text or JSON, tables, or words in columns."""

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.data.conll import is_columns, read_words
from bert_jax.data.tables import numbered_rows
from bert_jax.errors import UserError, listed
from bert_jax.files import whole_file

ENCODING = "utf-8-sig"  # UTF-8, with or without a byte-order mark


def output_file(path: Path, binary: bool = False) -> contextlib.AbstractContextManager[Any]:
    """The file to write. Raises UserError where there is no such folder, or it is one."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder; make it, or write elsewhere")
    return whole_file(path, binary)


@contextlib.contextmanager
def read_inputs(path: str, fields: tuple[str, ...]) -> Iterator[Iterator[dict[str, Any]]]:
    """The inputs in a file, or for '-' in standard input: as `parsed` takes them, or the rows of .tsv and .csv with a
    header, or {text, words, document} of each sentence of a .conll, the number of whose document is the last.

    Raises:
      UserError: no such file, one that holds no inputs but labelled data in another format, or as `parsed`, `numbered_rows` and
        `read_words`.
    """
    if path == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding=ENCODING)
        yield parsed(sys.stdin, fields, "standard input")
    elif not Path(path).is_file():
        raise UserError(f"{path}: no such file; name a file of texts, or '-'")
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
        with Path(path).open(encoding=ENCODING) as file:
            yield parsed(file, fields, path)


def parsed(lines: Iterable[str], fields: tuple[str, ...], source: str) -> Iterator[dict[str, Any]]:
    """The inputs: plain lines, whose fields are separated by tabs, or JSON objects. Empty lines are passed over.

    Raises:
      UserError: a line that is not UTF-8, or escapes half of a surrogate pair, or lacks one of the fields; or nothing but
        empty lines.
    """
    is_empty = True
    try:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            try:
                is_json = source.endswith(".jsonl") or line.lstrip().startswith("{")
                values = json.loads(line) if is_json else dict(zip(fields, line.split("\t"), strict=True))
                if not isinstance(values, dict):
                    raise ValueError(line)
            except ValueError:
                raise UserError(
                    f"{source}: line {number}: neither a JSON object nor {len(fields)} text(s) separated by tabs; fix it"
                ) from None
            for field in fields:
                if field not in values:
                    raise UserError(
                        f"{source}: line {number}: no field {field!r}, only {listed(list(values))}; add or rename it"
                    )
                if not isinstance(values[field], str):
                    raise UserError(
                        f"{source}: line {number}: field {field!r} is {repr(values[field])[:80]}, not a text; put it in quotes"
                    )
            try:
                json.dumps(values, ensure_ascii=False).encode()  # other fields come out again, too
            except UnicodeEncodeError:
                raise UserError(
                    f"{source}: line {number}: not UTF-8, or half of a surrogate pair is escaped in it; convert or fix it"
                ) from None
            is_empty = False
            yield values
        if is_empty:
            raise UserError(f"{source}: there is no text in it; give some")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
