"""Takes texts out of Arrow data, for the sources that pyarrow reads."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.data.remote import Url
from bert_jax.errors import UserError, listed
from bert_jax.files import GET_AGAIN

_ROWS = 256  # converted to Python strings at a time


@contextlib.contextmanager
def refusing_damage(path: Path | Url) -> Iterator[None]:
    """Raises UserError, as the message of `damaged`, for what pyarrow raises while it reads a file."""
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


def texts_of(batches: Iterable[Any], field: str) -> Iterator[str]:
    """Yields the texts of a field in pyarrow.RecordBatches; "" for null."""
    for batch in batches:
        column = batch.column(field)
        column.validate(full=True)  # offsets and UTF-8: what follows trusts them
        for start in range(0, len(column), _ROWS):
            yield from (text or "" for text in column[start : start + _ROWS].to_pylist())


def _holds_texts(type_: Any) -> bool:
    from pyarrow import types

    values = type_.value_type if types.is_dictionary(type_) else type_
    return types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)
