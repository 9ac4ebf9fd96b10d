"""Writes texts as the sources that hold tables: Parquet, folders of save_to_disk, datasets of TFDS."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from pyarrow import parquet

from bert_jax.data.tfrecord import write_record


def table(texts: Sequence[str | None], field: str = "text") -> pa.Table:
    return pa.table({"number": range(len(texts)), field: pa.array(texts, pa.string())})


def write_parquet(path: Path, texts: Sequence[str | None], field: str = "text", **options) -> Path:
    parquet.write_table(table(texts, field), path, **options)
    return path


def write_arrow(folder: Path, shards: Sequence[Sequence[str | None]], field: str = "text", rows: int = 1000) -> Path:
    """Writes the files that Dataset.save_to_disk writes."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        data = table(texts, field)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, data.schema) as writer:
            writer.write_table(data, max_chunksize=rows)
    write_state(folder, names)
    return folder


def write_state(folder: Path, names: Sequence[str], **more) -> None:
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state | more))


def write_tfds(folder: Path, splits: dict[str, Sequence[str]], file_format: str, shards: int = 2) -> Path:
    """Writes a dataset as TFDS does; its texts are in `text`, and there is a number."""
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)})
    infos = []
    for split, texts in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="tiny", split=split, filetype_suffix=file_format
        )
        bounds = [len(texts) * number // shards for number in range(shards + 1)]
        for number, (start, stop) in enumerate(pairwise(bounds)):
            records = [
                features.serialize_example({"text": text, "number": number})
                for number, text in enumerate(texts[start:stop])
            ]
            _write_records(Path(template.sharded_filepath(shard_index=number, num_shards=shards)), records, file_format)
        lengths = [stop - start for start, stop in pairwise(bounds)]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=1, filename_template=template))
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="tiny", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format(file_format)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)
    return folder


def _write_records(path: Path, records: Sequence[bytes], file_format: str) -> None:
    if file_format == "array_record":
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return
    with path.open("wb") as file:
        for record in records:
            write_record(file, record)
