"""Reads the documents of a dataset that Hugging Face's datasets library saved (Dataset.save_to_disk), in bounded memory.

Such a folder has files in Arrow's stream format and state.json, which lists them in their order; a folder of several splits
has dataset_dict.json and a folder for each split. Source: datasets/arrow_dataset.py, dataset_dict.py.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, NotRequired, TypedDict

from bert_jax.data.remote import Url
from bert_jax.data.sources.arrow_columns import check_field, damaged, refusing_damage, texts_of
from bert_jax.data.sources.base import NOT_TEXT, BadRecords, Document, Progress, path_and_field
from bert_jax.data.sources.files import SourceFile, open_file, read_json_file, source_files, source_folder
from bert_jax.errors import UserError, listed
from bert_jax.files import GET_AGAIN

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream; without it pyarrow takes the end of the file for that of the stream
_SAVE_AGAIN = "save it again with Dataset.save_to_disk"


class _DataFile(TypedDict):
    filename: str


class _State(TypedDict):
    """The entries of state.json that matter here."""

    _data_files: list[_DataFile]
    # Of versions before 2.0: a choice or an order of the rows, in further files.
    _indices_data_files: NotRequired[list[Any] | None]


class _Splits(TypedDict):
    splits: list[str]


def find_arrow_files(argument: str, progress: Progress) -> Iterator[SourceFile]:
    """Yields the files of a saved dataset, FOLDER[:FIELD]. Raises UserError if the folder holds no dataset."""
    name, _ = path_and_field(argument)
    yield from source_files(_data_files(source_folder(name)), progress)


def read_arrow(files: Iterable[SourceFile], argument: str, bad: BadRecords) -> Iterator[Document]:
    """Yields the documents of the files of a saved dataset; a row without a text is an empty document."""
    _, field = path_and_field(argument)
    for file in files:
        yield from _documents(file, field, bad)


def _data_files(folder: Path | Url) -> list[tuple[Path | Url, str]]:
    """Returns the files of a saved dataset, with their names. Raises UserError if the folder holds no dataset."""
    if not (folder / _STATE).exists():
        if (folder / _SPLITS).exists():
            splits = read_json_file(folder / _SPLITS, _Splits, _SAVE_AGAIN)["splits"]
            example = splits[0] if splits else "SPLIT"
            raise UserError(f"{folder}: holds the splits {listed(splits)}; use one, as in arrow:{folder}/{example}")
        remedy = "use a folder made by Dataset.save_to_disk, or parquet:GLOB"
        raise UserError(f"{folder}: no saved dataset, because it has no {_STATE}; {remedy}")
    state = read_json_file(folder / _STATE, _State, _SAVE_AGAIN)
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: has an order of its own (indices); call flatten_indices() and {_SAVE_AGAIN}")
    names = [file["filename"] for file in state["_data_files"]]
    for name in names:
        if PurePath(name).name != name:  # names are untrusted
            raise UserError(f"{folder / _STATE}: names {name}, which is not in the folder; {_SAVE_AGAIN}")
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing; {GET_AGAIN}")
    if not names:
        raise UserError(f"{folder}: holds no files of data; {_SAVE_AGAIN}")
    return [(folder / name, name) for name in names]


def _documents(file: SourceFile, field: str, bad: BadRecords) -> Iterator[Document]:
    import pyarrow as pa

    with open_file(file.path) as stream, refusing_damage(file.path):
        file.report(0)
        batches = pa.ipc.open_stream(stream)
        check_field(batches.schema, field, file.path, "arrow:FOLDER:FIELD")
        for number, text in enumerate(texts_of(batches, field), 1):
            if text is None:
                bad.skip(NOT_TEXT, f"{file.path}: row {number}: {field!r} is not UTF-8; {GET_AGAIN}")
            else:
                yield Document(f"{file.name}:{number}", text)
            file.report(stream.tell())
        stream.seek(max(0, stream.tell() - len(_END)))
        if stream.read(len(_END)) != _END:
            raise damaged(file.path, "the end of the stream is missing")
        file.report(file.size)
