"""Instances: static examples of masked language modelling and next-sentence prediction, masked when they were written.

They are in TFRecord files, as google-research/bert create_pretraining_data.py and tools/write_instances.py write them. A folder
of instances has these files (`.tfrecord` or `.tf_record` is in their names; `validation` in those that are held out) and
`tokenizer/`, a tokenizer with the same ids, such as the vocab.txt that they were made with. (google-research/albert writes
such files, too, but its labels mean whether segments are swapped, which a file does not say.)

Shapes: n rows, L length, P predictions (max_predictions_per_seq).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data.corpus.index import INDEX_FILE, TOKENIZER_FOLDER
from bert_jax.data.joining import HostBatch
from bert_jax.data.tfrecord import RecordFile
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

_SUFFIXES = (".tfrecord", ".tf_record")
_REMEDY = "write the file again, or remove it"
# Of values as they are in a file, which may be anything, and in our batches, by kind of feature.
_IN_FILE = {"int64_list": np.int64, "float_list": np.float64}
_IN_BATCH = {"int64_list": np.int32, "float_list": np.float32}


class Feature(NamedTuple):
    """A feature of the tf.train.Example of an instance."""

    field: str  # of our batches
    size: str  # L or P; '' for one value
    kind: str = "int64_list"


# In the names of the original.
FEATURES = {
    "input_ids": Feature("input_ids", "L"),
    "input_mask": Feature("attention_mask", "L"),
    "segment_ids": Feature("token_type_ids", "L"),
    "masked_lm_positions": Feature("mlm_positions", "P"),
    "masked_lm_ids": Feature("mlm_labels", "P"),
    "masked_lm_weights": Feature("mlm_weights", "P", "float_list"),
    "next_sentence_labels": Feature("nsp_labels", ""),
}


def holds_instances(folder: str | Path) -> bool:
    """Checks whether a folder is one of instances: it has TFRecord files and is not a prepared corpus."""
    folder = Path(folder)
    return folder.is_dir() and not (folder / INDEX_FILE).exists() and any(_record_paths(folder))


def encode_instance(batch: HostBatch, row: int) -> bytes:
    """Encodes a row of a batch with the fields of `FEATURES` as a serialised tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2  # lazy import: TFDS is slow to import

    example = tf_example_pb2.Example()
    for name, (field, _, kind) in FEATURES.items():
        values = np.atleast_1d(batch[field][row]).tolist()
        getattr(example.features.feature[name], kind).value.extend(values)
    return example.SerializeToString(deterministic=True)  # sorted by name: the same bytes everywhere


class Instances:
    """One split of a folder of instances. Reading is thread-safe; a pickled object opens its files again."""

    def __init__(self, directory: Path, files: list[RecordFile]):
        """Takes what `open` has opened; use that."""
        self.directory = directory
        self._files = files
        self._first = np.concatenate([[0], np.cumsum([len(file) for file in files])])  # instance of each file
        self.size = int(self._first[-1])
        first = self._values(0)
        self.sequence_length, self.max_predictions = len(first["input_ids"]), len(first["masked_lm_positions"])
        if not (self.sequence_length and self.max_predictions):
            raise self._error(0, "no tokens, or nothing to predict")

    @classmethod
    def open(cls, directory: str | Path, split: str = "train") -> "Instances":
        """Opens a split, `train` or `validation`.

        Raises:
          UserError: there is no tokenizer, the split has no instances, a file is damaged, or its first record is no instance.
        """
        directory = Path(directory)
        if not (tokenizer := directory / TOKENIZER_FOLDER).is_dir():
            raise UserError(f"{tokenizer}: missing; put the vocab.txt there that the instances were made with")
        paths = [path for path in _record_paths(directory) if ("validation" in path.name) == (split == "validation")]
        files = [RecordFile(path) for path in paths]
        if not any(map(len, files)):
            names = f"TFRecord files with{'' if split == 'validation' else 'out'} 'validation' in their names"
            raise UserError(f"{directory}: no instances of the split {split}, which are those in {names}; add some")
        return cls(directory, files)

    @property
    def num_tokens(self) -> int:
        """Tokens of the split, with padding."""
        return self.size * self.sequence_length

    @property
    def summary(self) -> str:
        """Size of the split, for the log."""
        return f"{self.size:,} instances of {len(self._files)} files"

    def check_tokenizer(self, tokenizer: Tokenizer, remedy: str) -> None:
        """Raises UserError, with the remedy, if the folder has another tokenizer."""
        own = Tokenizer.load(self.directory / TOKENIZER_FOLDER)
        if own.fingerprint != tokenizer.fingerprint:
            other = f"fingerprint {own.fingerprint}, not {tokenizer.fingerprint}"
            raise UserError(f"{self.directory}: has another tokenizer ({other}); {remedy}")

    def rows(self, indices: np.ndarray, tokenizer: Tokenizer) -> HostBatch:
        """Returns the fields of `FEATURES` for the instances [n], int32 and float32 [n, L], [n, P] and [n].

        Raises:
          UserError: a record is damaged, of another length than the first, or has values that no instance has.
        """
        sizes = {"L": self.sequence_length, "P": self.max_predictions, "": 1}
        values: dict[str, np.ndarray] = {
            name: np.empty((len(indices), sizes[feature.size]), _IN_FILE[feature.kind])
            for name, feature in FEATURES.items()
        }
        for row, index in enumerate(indices.tolist()):
            for name, numbers in self._values(index).items():
                if len(numbers) != (size := values[name].shape[1]):
                    raise self._error(index, f"{len(numbers)} values of {name}, not {size} as in the first record")
                values[name][row] = numbers
        self._check_values(values, indices, tokenizer)
        batch = {field: values[name].astype(_IN_BATCH[kind]) for name, (field, _, kind) in FEATURES.items()}
        return batch | {"nsp_labels": batch["nsp_labels"][:, 0]}

    def _values(self, index: int) -> dict[str, list[Any]]:
        """Returns the values of each feature of an instance. Raises UserError if the record holds no instance."""
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2  # lazy import: TFDS is slow to import

        file, number = self._place(index)
        try:
            features = tf_example_pb2.Example.FromString(file.read(number)).features.feature
        except DecodeError:
            raise self._error(index, "not a tf.train.Example") from None
        values = {}
        for name, feature in FEATURES.items():
            if name not in features or features[name].WhichOneof("kind") != feature.kind:
                raise self._error(index, f"not an instance, because it has no {name} ({feature.kind})")
            values[name] = list(getattr(features[name], feature.kind).value)
        return values

    def _check_values(self, values: dict[str, np.ndarray], indices: np.ndarray, tokenizer: Tokenizer) -> None:
        """Raises UserError for the first row with a value that it cannot have."""
        ids, mask, labels = (values[name] for name in ("input_ids", "input_mask", "masked_lm_ids"))
        size, length, cls_id = tokenizer.vocab_size, self.sequence_length, tokenizer.cls_id
        flags = ("input_mask", "segment_ids", "masked_lm_weights", "next_sentence_labels")
        problems = {
            f"a token outside the vocabulary of {size}": _outside(ids, size) | _outside(labels, size),
            f"begins with another token than [CLS] ({cls_id}): made with another tokenizer?": ids[:, 0] != cls_id,
            f"a position outside 0 to {length - 1}": _outside(values["masked_lm_positions"], length),
            **{f"a value of {name} that is not 0 or 1": ~np.isin(values[name], (0, 1)).all(axis=1) for name in flags},
            "no tokens, or tokens after padding": (mask[:, 0] != 1) | (np.diff(mask) > 0).any(axis=1),
            "nothing to predict": ~values["masked_lm_weights"].any(axis=1),
        }
        for problem, is_bad in problems.items():
            if is_bad.any():
                raise self._error(int(indices[is_bad.argmax()]), problem)

    def _place(self, index: int) -> tuple[RecordFile, int]:
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._files[file], index - int(self._first[file])

    def _error(self, index: int, problem: str) -> UserError:
        file, number = self._place(index)
        return file.error(number, problem, _REMEDY)


def _record_paths(directory: Path) -> Iterable[Path]:
    """Returns the TFRecord files of a folder, sorted."""
    return sorted(path for path in directory.iterdir() if any(suffix in path.name for suffix in _SUFFIXES))


def _outside(values: np.ndarray, end: int) -> np.ndarray:
    """Returns which rows of values [n, k] have one outside [0, end), bool [n]."""
    return np.any((values < 0) | (values >= end), axis=1)
