"""Reads the documents of a dataset that tensorflow-datasets has prepared, without TensorFlow; nothing is downloaded.

ArrayRecord files are read through its data source, TFRecord files one record after the other.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.remote import is_url
from bert_jax.data.sources.base import DAMAGED, NOT_TEXT, BadRecords, Document, Progress
from bert_jax.data.sources.files import SourceFile, open_file, source_files
from bert_jax.data.tfrecord import REMEDY, read_records
from bert_jax.errors import UserError, listed
from bert_jax.files import LONGEST_LINE

_RECORDS = 64  # read from ArrayRecord at a time
_VERSION = re.compile(r"[\d*]+\.[\d*]+\.[\d*]+")
_INFO = "dataset_info.json"


def find_tfds_files(argument: str, progress: Progress) -> Iterator[SourceFile]:
    """Yields the files of a split of a prepared dataset.

    Args:
      argument: NAME[/CONFIG][:VERSION][:SPLIT][:FIELD], where NAME may also be the folder of a dataset.
      progress: as for `read_documents`.

    Raises:
      UserError: there is no such dataset, split or field, it is not prepared here, or a file is missing.
    """
    builder, split, _ = _open(argument)
    paths = _paths(builder, split)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: missing; {REMEDY}")
    yield from source_files([(path, path.name) for path in paths], progress)


def read_tfds(files: Iterable[SourceFile], argument: str, bad: BadRecords) -> Iterator[Document]:
    """Yields the documents of files of a prepared dataset, one per example.

    Args:
      files: of the split; the id of a document is its number in the whole split.
      argument: as for `find_tfds_files`.
      bad: examples that are damaged or not UTF-8.

    Raises:
      UserError: a file is damaged, or has another number of examples than the dataset says.
    """
    builder, split, field = _open(argument)
    info = builder.info.splits[split]
    name = "/".join(part for part in (builder.info.name, builder.info.config_name, split) if part)
    places = {path.name: number for number, path in enumerate(_paths(builder, split))}
    records = _array_records if _file_format(builder) == "array_record" else _tf_records
    for file in files:
        shard = places[file.name]
        first, count = sum(info.shard_lengths[:shard]), info.shard_lengths[shard]
        file.report(0)
        for number, (place, record) in enumerate(records(builder, split, file, first, count, bad), 1):
            text = None if record is None else _text(record, field, place, bad)
            if text is not None:
                yield Document(f"{name}:{first + number - 1}", text)
            file.report(file.size * number // max(1, count))
        file.report(file.size)


def absolute_argument(argument: str) -> str:
    """Returns the argument with the absolute path of the dataset, if it names a folder."""
    if (count := _parts_of_folder(argument)) is None:
        return argument
    parts = argument.split(":")
    return ":".join([str(_folder(parts[:count]).absolute()), *parts[count:]])


def _parts_of_folder(argument: str) -> int | None:
    """Returns how many parts between colons are the folder of a dataset: a path may contain colons. None for a name."""
    parts = argument.split(":")
    return next((count for count in range(len(parts), 0, -1) if (_folder(parts[:count]) / _INFO).is_file()), None)


def _folder(parts: list[str]) -> Path:
    folder = Path(":".join(parts))
    with contextlib.suppress(RuntimeError):  # an unknown ~NAME
        folder = folder.expanduser()
    return folder


def _open(argument: str) -> tuple[Any, str, str]:
    """Returns a tfds.core.DatasetBuilder, and the names of the split and the field, which it has."""
    builder, split, field = _builder(argument)
    info = builder.info
    if split not in info.splits:
        raise UserError(f"tfds:{argument}: no split {split!r}, only {listed(list(info.splits))}; use one of these")
    fields = _text_fields(info.features)
    if field not in fields:
        among = f"no text field {field!r} (text fields: {listed(fields) or 'none'})"
        raise UserError(f"tfds:{argument}: {among}; set it with tfds:NAME:{split}:FIELD")
    return builder, split, field


def _builder(argument: str) -> tuple[Any, str, str]:
    import tensorflow_datasets as tfds

    if is_url(argument):
        raise UserError(f"tfds:{argument}: is read from local folders only; copy the dataset, or use parquet:GLOB")
    parts = argument.split(":")
    if (count := _parts_of_folder(argument)) is not None:
        folder = _folder(parts[:count])
        try:
            return tfds.builder_from_directory(folder), *_split_and_field(argument, parts[count:])
        except Exception as error:  # it raises errors of many kinds
            raise UserError(f"{folder / _INFO}: damaged ({error!s:.200}); copy the dataset again") from None
    count = 2 if len(parts) > 1 and _VERSION.fullmatch(parts[1]) else 1
    name = ":".join(parts[:count])
    try:
        builder = tfds.builder(name)
        is_prepared = bool(builder.info.splits)
    except Exception as error:
        problem = f"neither a folder with {_INFO} nor a dataset that tensorflow-datasets knows"
        raise UserError(f"tfds:{name}: {problem} ({error!s:.60}); check the name") from None
    if not is_prepared:
        call = f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        command = f'python -c "import tensorflow_datasets as tfds; {call}"'
        raise UserError(f"tfds:{name}: not prepared in {builder.data_dir}; prepare it: {command}")
    return builder, *_split_and_field(argument, parts[count:])


def _split_and_field(argument: str, parts: list[str]) -> tuple[str, str]:
    if len(parts) > 2:
        raise UserError(f"tfds:{argument}: too many colons; use tfds:NAME[/CONFIG][:SPLIT][:FIELD]")
    split, field = (*parts, "", "")[:2]
    return split or "train", field or "text"


def _text_fields(features: Any) -> list[str]:
    """Returns the names of the features that are single texts."""
    from tensorflow_datasets import features as kinds

    def is_text(feature: Any) -> bool:
        return isinstance(feature, kinds.Tensor) and feature.shape == () and np.dtype(feature.np_dtype) == object

    return [name for name, feature in (features or {}).items() if is_text(feature)]


def _file_format(builder: Any) -> str:
    """Returns the format in which a dataset is read. Raises UserError if it has none that can be read here."""
    formats = [file_format.value for file_format in builder.info.available_file_formats()]
    for file_format in ("array_record", "tfrecord"):
        if file_format in formats:
            return file_format
    remedy = "prepare it with file_format='array_record'"
    names = listed(formats) or "unknown"
    raise UserError(f"{builder.data_dir}: its format ({names}) is not read here; {remedy}, or use parquet:GLOB")


def _paths(builder: Any, split: str) -> list[Path]:
    """Returns the files of a split, in their order."""
    info = builder.info.splits[split]
    template = info.filename_template.replace(filetype_suffix=_file_format(builder))
    return [Path(path) for path in template.sharded_filepaths(info.num_shards)]


# Both yield the records of a file with their places for messages; None in the place of one that is damaged.
def _tf_records(
    builder: Any, split: str, file: SourceFile, first: int, count: int, bad: BadRecords
) -> Iterator[tuple[str, bytes | None]]:
    number = 0
    with open_file(file.path) as stream:
        for record in read_records(stream, Path(str(file.path)), LONGEST_LINE, partial(bad.skip, DAMAGED)):
            yield f"{file.path}: record {number}", record
            number += 1
    if number != count:
        raise UserError(f"{file.path}: {number} records instead of {count}; {REMEDY}")


def _array_records(
    builder: Any, split: str, file: SourceFile, first: int, count: int, bad: BadRecords
) -> Iterator[tuple[str, bytes | None]]:
    from tensorflow_datasets.core import decode

    raw = decode.DeserializeMethod.RAW_BYTES
    try:
        source = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    except Exception as error:  # array_record raises errors of its C++ code
        raise UserError(f"{file.path}: truncated or damaged ({error!s:.200}); {REMEDY}") from None

    def read_one(number: int) -> bytes | None:
        try:
            return source.__getitems__([number])[0]
        except Exception as error:
            where = f"{file.path}: record {number - first}"
            bad.skip(DAMAGED, f"{where}: truncated or damaged ({error!s:.200}); {REMEDY}")
            return None

    for start in range(first, first + count, _RECORDS):
        numbers = range(start, min(start + _RECORDS, first + count))
        try:
            records = source.__getitems__(numbers)
        except Exception:
            records = map(read_one, numbers)
        for number, record in zip(numbers, records, strict=True):
            yield f"{file.path}: record {number - first}", record


def _text(record: bytes, field: str, place: str, bad: BadRecords) -> str | None:
    """Returns a text of a serialised tf.train.Example; "" if it is missing there, None if it cannot be read."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
        return features[field].bytes_list.value[0].decode() if features[field].bytes_list.value else ""
    except DecodeError:
        bad.skip(DAMAGED, f"{place}: not a tf.train.Example; {REMEDY}")
    except UnicodeDecodeError:
        bad.skip(NOT_TEXT, f"{place}: {field!r} is not UTF-8; use another field")
    return None
