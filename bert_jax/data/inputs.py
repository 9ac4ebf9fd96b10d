"""What commands read and write that take texts: a line each, plain or as a JSON object."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.files import whole_file


def output_file(path: Path, binary: bool = False) -> contextlib.AbstractContextManager[Any]:
    """The file to write. Raises UserError where there is no such folder."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder; make it, or write elsewhere")
    return whole_file(path, binary)


def opened(path: str):
    """The file, to be read. Raises UserError where there is none."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; name a file of texts, or '-'")
    return Path(path).open(encoding="utf-8")


def parsed(lines: Iterable[str], fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
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
                values = json.loads(line) if line.startswith("{") else dict(zip(fields, line.split("\t"), strict=True))
            except ValueError:
                raise UserError(
                    f"line {number}: neither a JSON object nor {len(fields)} text(s) separated by tabs; mend it"
                ) from None
            for field in fields:
                if field not in values:
                    raise UserError(f"line {number}: no field {field!r}, only {', '.join(values)}; name it so")
                if not isinstance(values[field], str):
                    raise UserError(
                        f"line {number}: field {field!r} is {values[field]!r}, not a text; put it in quotes"
                    )
            try:
                json.dumps(values, ensure_ascii=False).encode()  # other fields come out again, too
            except UnicodeEncodeError:
                raise UserError(
                    f"line {number}: not UTF-8, or half of a surrogate pair is escaped in it; convert or mend it"
                ) from None
            is_empty = False
            yield values
        if is_empty:
            raise UserError("there is no text in the input; give some")
    except UnicodeDecodeError as error:
        raise UserError(f"input is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
