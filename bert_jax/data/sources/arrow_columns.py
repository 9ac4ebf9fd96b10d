"""Takes texts out of Arrow data, for the sources that pyarrow reads."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.data.remote import Url
from bert_jax.errors import UserError, listed
from bert_jax.files import GET_AGAIN

# The types of the same bytes without the claim that they are UTF-8.
_BINARY = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}
_ROWS = 256  # converted to Python strings at a time


@contextlib.contextmanager
def refusing_damage(path: Path | Url) -> Iterator[None]:
    """Turns what pyarrow raises while it reads a file into the UserError of `damaged`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:  # the last one for names of fields
        raise damaged(path, str(error)) from None


def damaged(path: Path | Url, reason: str) -> UserError:
    """Returns the error of a file that cannot be read."""
    return UserError(f"{path}: truncated, damaged or of another format ({reason:.200}); {GET_AGAIN}")


def check_field(schema: Any, field: str, path: Path | Url, form: str) -> None:
    """Raises UserError if a pyarrow.Schema has no field of this name that holds texts; `form` is how to set it."""
    fields = [one.name for one in schema if _holds_texts(one.type)]
    if field not in fields:
        raise UserError(
            f"{path}: no text field {field!r} (text fields: {listed(fields) or 'none'}); set it with {form}"
        )
    if schema.names.count(field) > 1:
        raise UserError(f"{path}: several fields are named {field!r}; rename one")


def texts_of(batches: Iterable[Any], field: str) -> Iterator[str | None]:
    """Yields the texts of a field in pyarrow.RecordBatches; "" for null, None for what is not UTF-8."""
    import pyarrow as pa

    for batch in batches:
        column = batch.column(field)
        try:
            column.validate(full=True)  # offsets and UTF-8: what follows trusts them
        except pa.ArrowInvalid:
            if pa.types.is_dictionary(column.type):
                raise
            column = column.view(_BINARY[str(column.type)])
            column.validate(full=True)  # the offsets again
        for start in range(0, len(column), _ROWS):
            yield from map(_text, column[start : start + _ROWS].to_pylist())


def _text(value: str | bytes | None) -> str | None:
    try:
        return value.decode() if isinstance(value, bytes) else value or ""
    except UnicodeDecodeError:
        return None


def _holds_texts(type_: Any) -> bool:
    from pyarrow import types

    values = type_.value_type if types.is_dictionary(type_) else type_
    return types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)
