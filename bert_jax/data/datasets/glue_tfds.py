"""GLUE as TensorFlow Datasets has it, as glue/NAME: read from ArrayRecord files, without TensorFlow.

TFDS downloads and prepares what is not there yet (tensorflow_datasets/text/glue.py says from where).
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# Registers the dataset. TFDS would import all such modules by itself, but stops at the first that lacks a package (h5py,
# which comes with TensorFlow).
import tensorflow_datasets.text.glue

from bert_jax.errors import UserError

logger = logging.getLogger(__name__)
_PREPARE_AGAIN = "remove that folder and it is prepared again"
_RECORDS = 1024  # read at a time
_OWN_FOLDER = "TFDS's own folder"  # $TFDS_DATA_DIR, or ~/tensorflow_datasets


def read_rows(
    folder: str, name: str, texts: Sequence[str], labels: Sequence[str], split: str
) -> list[tuple[str, tuple[str, ...], str]]:
    """(index, texts, label) of the rows of a split, in the order of the official file. TFDS stores them in another one.

    Args:
      folder: of all datasets; '' for TFDS's own.
      name: of the dataset in the collection glue/.
      texts: features that are the texts.
      labels: as they stand in the official files; () for a number.
      split: `train`, `validation`, `test_matched` and so on.

    Returns:
      The labels are those of the official files, and '' where the split has none. A number is written as briefly as can be.

    Raises:
      UserError: not there and not to be prepared here, in another format than ArrayRecord, damaged, or no dataset of GLUE's.
    """
    builder = _builder(folder, name)
    known = _label_names(builder, {*texts, "label", "idx"}, labels)
    try:
        records = sorted(_records(builder, split), key=lambda record: record["idx"])
        return [
            (str(record["idx"]), tuple(record[text].decode() for text in texts), _label(record["label"], known))
            for record in records
        ]
    except (ValueError, IndexError) as error:  # not UTF-8, or a label that there is not
        raise UserError(f"{builder.data_path}: damaged ({_reason(error)}); {_PREPARE_AGAIN}") from None


def _builder(folder: str, name: str) -> tfds.core.DatasetBuilder:
    """The dataset of a name, the newest version that is there. Where there is none it is prepared."""
    try:
        data_dir = tfds.core.Path(folder).expanduser() if folder else None
        builder = tfds.builder(f"glue/{name}", data_dir=data_dir, version="*.*.*")
        if not builder.data_path.exists():
            logger.info("glue/%s is not in %s; TFDS downloads and prepares it", name, folder or _OWN_FOLDER)
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # of the network, the disk, or of a package that TFDS wants
        raise UserError(
            f"glue/{name}: TFDS neither finds it in {folder or _OWN_FOLDER} nor can prepare it here ({_reason(error)}); "
            f"prepare it on a machine with a network (tfds build glue/{name} --file_format=array_record) and copy the "
            "folder, or set data.dir to GLUE's official folders"
        ) from None
    return builder


def _label_names(builder: tfds.core.DatasetBuilder, needed: set[str], labels: Sequence[str]) -> Sequence[str]:
    """The label of the official files for each number of a label; () where labels are numbers of their own."""
    features = builder.info.features
    if missing := needed.difference(features):
        raise UserError(
            f"{builder.data_path}: has no feature {min(missing)!r}, only {', '.join(sorted(features))}; it is not GLUE's"
        )
    if not labels:
        return ()
    theirs = features["label"].names
    if set(theirs) == set(labels):
        return theirs
    if all(label.isdecimal() for label in labels) and len(theirs) == len(labels):  # where the files have 0 and 1
        return labels
    raise UserError(
        f"{builder.data_path}: has the labels {', '.join(theirs)} instead of {', '.join(labels)}; it is not GLUE's"
    )


def _label(value: Any, known: Sequence[str]) -> str:
    if value < 0:  # of a test set
        return ""
    return known[value] if known else str(np.float32(value))  # as float32 again: the shortest text that is read as it


def _records(builder: tfds.core.DatasetBuilder, split: str) -> list[dict[str, Any]]:
    path, info = builder.data_path, builder.info
    if split not in info.splits:
        raise UserError(f"{path}: has no split {split!r}, only {', '.join(info.splits)}; prepare it again elsewhere")
    try:
        source = builder.as_data_source(split)
        numbers = range(len(source))
        parts = (numbers[start : start + _RECORDS] for start in numbers[::_RECORDS])
        return [record for part in parts for record in source.__getitems__(part)]  # at once: twice as fast
    except NotImplementedError:
        raise UserError(
            f"{path}: prepared as {info.file_format.value}, which takes TensorFlow to read; name another folder, as "
            "data.dir=tfds:FOLDER, and it is prepared there"
        ) from None
    except Exception as error:  # array_record raises what its C++ reports
        raise UserError(f"{path}: damaged ({_reason(error)}); {_PREPARE_AGAIN}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
