"""Reads the documents of a dataset that tensorflow-datasets has prepared, without TensorFlow; nothing is downloaded.

ArrayRecord files are read through its data source, TFRecord files one record after the other.
"""

import contextlib
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.remote import is_url
from bert_jax.data.sources.base import Document, Progress
from bert_jax.data.sources.files import open_file
from bert_jax.data.tfrecord import REMEDY, read_records
from bert_jax.errors import UserError, listed
from bert_jax.files import LONGEST_LINE

_RECORDS = 64  # read from ArrayRecord at a time
_VERSION = re.compile(r"[\d*]+\.[\d*]+\.[\d*]+")
_INFO = "dataset_info.json"


def read_tfds(argument: str, progress: Progress) -> Iterator[Document]:
    """Yields the documents of a prepared dataset, one per example.

    Args:
      argument: NAME[/CONFIG][:VERSION][:SPLIT][:FIELD], where NAME may also be the folder of a dataset.
      progress: as for `read_documents`.

    Raises:
      UserError: there is no such dataset, split or field, it is not prepared here, or its files are damaged.
    """
    builder, split, field = _open(argument)
    info = builder.info
    if split not in info.splits:
        raise UserError(f"tfds:{argument}: no split {split!r}, only {listed(list(info.splits))}; use one of these")
    fields = _text_fields(info.features)
    if field not in fields:
        among = f"no text field {field!r} (text fields: {listed(fields) or 'none'})"
        raise UserError(f"tfds:{argument}: {among}; set it with tfds:NAME:{split}:FIELD")
    name = "/".join(part for part in (info.name, info.config_name, split) if part)
    count = max(1, info.splits[split].num_examples)
    progress(0.0)
    for number, (place, record) in enumerate(_records(builder, split)):
        yield Document(f"{name}:{number}", _text(record, field, place))
        progress(min(1.0, (number + 1) / count))


def _open(argument: str) -> tuple[Any, str, str]:
    """Returns a tfds.core.DatasetBuilder, and the names of the split and the field."""
    import tensorflow_datasets as tfds

    if is_url(argument):
        raise UserError(f"tfds:{argument}: is read from local folders only; copy the dataset, or use parquet:GLOB")
    parts = argument.split(":")
    for count in range(len(parts), 0, -1):  # a path may contain colons
        folder = Path(":".join(parts[:count]))
        with contextlib.suppress(RuntimeError):  # an unknown ~NAME
            folder = folder.expanduser()
        if (folder / _INFO).is_file():
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


def _records(builder: Any, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields the records of a split with their places for messages, in the order of its files."""
    from tensorflow_datasets.core import FileFormat

    formats = builder.info.available_file_formats()
    if FileFormat.ARRAY_RECORD in formats:
        yield from _array_records(builder, split)
    elif FileFormat.TFRECORD in formats:
        info = builder.info.splits[split]
        for path, expected in zip(map(Path, info.filepaths), info.shard_lengths, strict=True):
            number = 0
            with open_file(path) as file:
                for record in read_records(file, path, LONGEST_LINE):
                    yield f"{path}: record {number}", record
                    number += 1
            if number != expected:
                raise UserError(f"{path}: {number} records instead of {expected}; {REMEDY}")
    else:
        names = listed([file_format.value for file_format in formats]) or "unknown"
        remedy = "prepare it with file_format='array_record'"
        raise UserError(f"{builder.data_dir}: its format ({names}) is not read here; {remedy}, or use parquet:GLOB")


def _array_records(builder: Any, split: str) -> Iterator[tuple[str, bytes]]:
    from tensorflow_datasets.core import decode

    raw, path = decode.DeserializeMethod.RAW_BYTES, builder.data_dir
    try:
        source = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
        for start, stop in pairwise((*range(0, len(source), _RECORDS), len(source))):
            for number, record in enumerate(source.__getitems__(range(start, stop)), start):
                yield f"{path}: {split} record {number}", record
    except Exception as error:  # array_record raises errors of its C++ code
        raise UserError(f"{path}: truncated or damaged ({error!s:.200}); copy or prepare it again") from None


def _text(record: bytes, field: str, place: str) -> str:
    """Returns a text of a serialised tf.train.Example; "" if it is missing there."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
        return features[field].bytes_list.value[0].decode() if features[field].bytes_list.value else ""
    except DecodeError:
        raise UserError(f"{place}: not a tf.train.Example; {REMEDY}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place}: {field!r} is not UTF-8; use another field") from None
