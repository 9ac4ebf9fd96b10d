"""Reads the documents of Parquet files: a text field, one document per row, in bounded memory."""

from collections.abc import Iterable, Iterator
from typing import Any

from bert_jax.data.sources.arrow_columns import check_field, damaged, refusing_damage, texts_of
from bert_jax.data.sources.base import NOT_TEXT, BadRecords, Document, path_and_field
from bert_jax.data.sources.files import SourceFile, open_file
from bert_jax.files import GET_AGAIN

_BATCH_BYTES, _BATCH_ROWS = 1 << 22, 1 << 12  # at a time, by what the file says of its sizes
_BUFFER = 1 << 20  # bytes of a column that are read at once, instead of its part of a whole row group


def read_parquet(files: Iterable[SourceFile], argument: str, bad: BadRecords) -> Iterator[Document]:
    """Yields the documents of Parquet files, GLOB[:FIELD]; a row without a text is an empty document."""
    _, field = path_and_field(argument)
    for file in files:
        yield from _documents(file, field, bad)


def _documents(file: SourceFile, field: str, bad: BadRecords) -> Iterator[Document]:
    from pyarrow import parquet

    with open_file(file.path) as stream, refusing_damage(file.path):
        table = parquet.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
        check_field(table.schema_arrow, field, file.path, "parquet:GLOB:FIELD")
        number, rows = 0, table.metadata.num_rows
        file.report(0)
        for number, text in enumerate(texts_of(_batches(table, field), field), 1):
            if text is None:
                bad.skip(NOT_TEXT, f"{file.path}: row {number}: {field!r} is not UTF-8; {GET_AGAIN}")
            else:
                yield Document(f"{file.name}:{number}", text)
            file.report(file.size * min(number, rows) // max(1, rows))
    if number != rows:
        raise damaged(file.path, f"{number:,} rows instead of {rows:,}")
    file.report(file.size)


def _batches(table: Any, field: str) -> Iterator[Any]:
    """Yields the record batches of a pyarrow.parquet.ParquetFile, with this field only."""
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        columns = [group.column(place) for place in range(group.num_columns)]
        size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)
        rows = _BATCH_BYTES * group.num_rows // max(1, size)
        yield from table.iter_batches(
            min(max(1, rows), _BATCH_ROWS), row_groups=[number], columns=[field], use_threads=False
        )
