"""Reads GLUE from TensorFlow Datasets (glue/NAME), from ArrayRecord files and without TensorFlow.

TFDS downloads and prepares missing datasets (URLs in tensorflow_datasets/text/glue.py).
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# Registers the dataset. TFDS would import all modules of datasets, and fail at the first that needs a missing package (h5py,
# which comes with TensorFlow).
import tensorflow_datasets.text.glue

from bert_jax.errors import UserError

logger = logging.getLogger(__name__)
_PREPARE_AGAIN = "remove the folder, and it will be prepared again"
_RECORDS = 1024  # read at a time


def read_examples(
    folder: str, name: str, texts: Sequence[str], labels: Sequence[str], split: str
) -> list[tuple[str, tuple[str, ...], str]]:
    """Reads (index, texts, label) of a split, in the order of the official file, which differs from that of TFDS.

    Labels are those of the official files, '' if the split has none; numbers are their shortest decimals.

    Args:
      folder: data_dir of TFDS; '' for its default.
      name: of the dataset in the collection glue/.
      texts: names of the features with the texts.
      labels: as in the official files; () for regression.
      split: `train`, `validation`, `test_matched` ...

    Raises:
      UserError: the dataset cannot be prepared, is not in ArrayRecord format, damaged, or not one of GLUE.
    """
    builder = _builder(folder, name)
    names = _label_names(builder, {*texts, "label", "idx"}, labels)
    examples = []
    try:
        for record in sorted(_records(builder, split), key=lambda record: record["idx"]):
            label = record["label"]
            shown = "" if label < 0 else names[label] if names else str(np.float32(label))  # < 0: of a test set
            examples.append((str(record["idx"]), tuple(record[text].decode() for text in texts), shown))
        return examples
    except (ValueError, IndexError) as error:  # not UTF-8, or an unknown label
        raise UserError(f"{builder.data_path}: damaged ({_reason(error)}); {_PREPARE_AGAIN}") from None


def _builder(folder: str, name: str) -> tfds.core.DatasetBuilder:
    """Returns the latest available version of a dataset; prepares it if there is no version."""
    where = folder or "TFDS's own folder"  # $TFDS_DATA_DIR, or ~/tensorflow_datasets
    try:
        data_dir = tfds.core.Path(folder).expanduser() if folder else None
        builder = tfds.builder(f"glue/{name}", data_dir=data_dir, version="*.*.*")
        if not builder.data_path.exists():
            logger.info("glue/%s is not in %s; downloading and preparing it with TFDS", name, where)
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # of the network, the disk, or a missing package
        raise UserError(
            f"glue/{name}: not in {where}, and cannot be prepared here ({_reason(error)}); prepare it on a machine with a "
            f"network (tfds build glue/{name} --file_format=array_record) and copy the folder, or set data.dir to GLUE's "
            "official folders"
        ) from None
    return builder


def _label_names(builder: tfds.core.DatasetBuilder, needed: set[str], labels: Sequence[str]) -> Sequence[str]:
    """Returns the official label for each integer label of the dataset; () for regression."""
    features = builder.info.features
    if missing := needed.difference(features):
        problem = f"has no feature {min(missing)!r}, only {', '.join(sorted(features))}"
        raise UserError(f"{builder.data_path}: {problem}; it is not from GLUE")
    if not labels:
        return ()
    names = features["label"].names
    if set(names) == set(labels):
        return names
    if all(label.isdecimal() for label in labels) and len(names) == len(labels):  # the files have 0 and 1
        return labels
    problem = f"has the labels {', '.join(names)} instead of {', '.join(labels)}"
    raise UserError(f"{builder.data_path}: {problem}; it is not from GLUE")


def _records(builder: tfds.core.DatasetBuilder, split: str) -> list[dict[str, Any]]:
    path, info = builder.data_path, builder.info
    if split not in info.splits:
        raise UserError(f"{path}: has no split {split!r}, only {', '.join(info.splits)}; prepare it again elsewhere")
    try:
        source = builder.as_data_source(split)
        numbers = range(len(source))
        parts = (numbers[start : start + _RECORDS] for start in numbers[::_RECORDS])
        return [record for part in parts for record in source.__getitems__(part)]  # twice as fast as one by one
    except NotImplementedError:
        remedy = "use another folder with data.dir=tfds:FOLDER, and it will be prepared there"
        problem = f"stored as {info.file_format.value}, which needs TensorFlow"
        raise UserError(f"{path}: {problem}; {remedy}") from None
    except Exception as error:  # array_record raises errors of its C++ code
        raise UserError(f"{path}: damaged ({_reason(error)}); {_PREPARE_AGAIN}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
