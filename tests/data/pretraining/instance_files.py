"""Folders of instances for tests, written record by record."""

from pathlib import Path

import numpy as np

from bert_jax.data.corpus.index import TOKENIZER_FOLDER
from bert_jax.data.joining import HostBatch, join_rows
from bert_jax.data.pretraining.instances import encode_instance
from bert_jax.data.tfrecord import write_record
from bert_jax.objectives import mlm
from bert_jax.random_numbers import row_keys

LENGTH = 32


def random_instances(tokenizer, count: int, seed: int, length: int = LENGTH) -> HostBatch:
    """Pairs of random tokens and lengths, masked, with all fields of instances."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, (length - 3) // 2 + 1, (2, count))
    first = max(tokenizer.special_ids) + 1
    segments = [(rng.integers(first, tokenizer.vocab_size, size.sum(), np.int32), size) for size in sizes]
    batch = join_rows(tokenizer, length, *segments) | {"nsp_labels": rng.integers(0, 2, count, np.int32)}
    return mlm.Objective(mlm.Options(), tokenizer).corrupt(batch, row_keys(seed, np.arange(count)))


def write_instances(path: Path, batch: HostBatch) -> None:
    with path.open("wb") as file:
        for row in range(len(batch["input_ids"])):
            write_record(file, encode_instance(batch, row))


def instance_folder(folder: Path, tokenizer) -> dict[str, HostBatch]:
    """Writes two files of 30 and 21 training instances, and one of 20 that are held out; returns all of each split."""
    folder.mkdir()
    tokenizer.save(folder / TOKENIZER_FOLDER)
    parts = {
        "a.tfrecord": random_instances(tokenizer, 30, seed=0),
        "b.tf_record-00001-of-00002": random_instances(tokenizer, 21, seed=1),
        "c-validation.tfrecord": random_instances(tokenizer, 20, seed=2),
    }
    for name, batch in parts.items():
        write_instances(folder / name, batch)
    first, second, held_out = parts.values()
    return {"train": {name: np.concatenate([first[name], second[name]]) for name in first}, "validation": held_out}
