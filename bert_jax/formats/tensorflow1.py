"""Reads Google's original TensorFlow checkpoints of BERT and ALBERT, with the names of Hugging Face's format.

The variables' names are in google-research/bert modeling.py and google-research/albert modeling.py.
"""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_jax.errors import UserError
from bert_jax.files import open_regular, read_json
from bert_jax.formats.tensors import Tensors

# State of the optimizer, which pretraining leaves in the checkpoint.
_NOT_WEIGHTS = re.compile(r"global_step|.*/(adam|lamb)_[mv](_\d+)?")
_EVERYWHERE = [
    (r"^cls/squad/output_", "qa_outputs/"),
    (r"^output_", "classifier/"),  # of run_classifier.py
    (r"_embeddings$", r"\g<0>/weight"),
    (r"/(kernel|gamma|weights)$", "/weight"),
    (r"/beta$", "/bias"),
    (r"/", "."),
]


class Release(NamedTuple):
    """Family of a released checkpoint, and how its variables' names become those of the family's tensors."""

    model_type: str
    names: list[tuple[str, str]]  # regex, replacement; applied in order


RELEASES = {  # by the name of the config file
    "bert_config.json": Release(
        "bert",
        [
            (r"/layer_(\d+)/", r"/layer/\1/"),
            (r"^cls/predictions/output_bias", "cls/predictions/bias"),
            (r"^cls/seq_relationship/output_", "cls/seq_relationship/"),
        ],
    ),
    "albert_config.json": Release(
        "albert",
        [
            (r"^bert/", "albert/"),
            (r"/transformer/group_(\d+)/inner_group_(\d+)/", r"/albert_layer_groups/\1/albert_layers/\2/"),
            (r"/attention_1/(self|output)/", "/attention/"),
            (r"/ffn_1/intermediate/output/dense/", "/ffn_output/"),
            (r"/ffn_1/intermediate/dense/", "/ffn/"),
            (r"(/albert_layers/\d+)/LayerNorm_1/", r"\1/full_layer_layer_norm/"),
            (r"(/albert_layers/\d+)/LayerNorm/", r"\1/attention/LayerNorm/"),
            (r"/pooler/dense/", "/pooler/"),
            (r"^cls/predictions/(transform/|output_(?=bias))", "predictions/"),
            (r"^cls/seq_relationship/output_", "sop_classifier/classifier/"),
        ],
    ),
}


def read_release(prefix: Path) -> tuple[dict[str, Any], Tensors]:
    """Reads a release; returns the contents of an equivalent config.json of Hugging Face's format, and the tensors.

    Args:
      prefix: of the checkpoint's files, 'FOLDER/bert_model.ckpt' for bert_model.ckpt.index and its data; the folder also
        holds bert_config.json or albert_config.json.

    Raises:
      UserError: a file is missing or damaged, or tensorflow is not installed.
    """
    config_files = [name for name in RELEASES if (prefix.parent / name).is_file()]
    if len(config_files) != 1:
        raise UserError(f"{prefix.parent}: needs one of {' and '.join(RELEASES)} next to the checkpoint; copy it there")
    release, path = RELEASES[config_files[0]], prefix.parent / config_files[0]
    config = read_json(path, remedy="get the folder again")
    if config.get("hidden_act") == "gelu":  # in Google's code this is the tanh approximation
        config["hidden_act"] = "gelu_new"
    config |= {"model_type": release.model_type, "layer_norm_eps": 1e-12}  # default of contrib's layer_norm
    return config, _tensors(prefix, release)


def _tensors(prefix: Path, release: Release) -> Tensors:
    reader, num_bytes = _open(prefix)
    types = {name: dtype.name for name, dtype in reader.get_variable_to_dtype_map().items()}
    tensors = Tensors()
    for name, shape in sorted(reader.get_variable_to_shape_map().items()):
        if math.prod(shape) > num_bytes:  # less than a byte for each number
            raise UserError(f"{prefix}: variable {name} of shape {shape} is larger than the files; get them again")
        if not _NOT_WEIGHTS.fullmatch(name):
            is_kernel = name.endswith("/kernel")
            shape = shape[::-1] if is_kernel else shape
            dtype = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(types[name], types[name])
            tensors.add(huggingface_name(name, release), shape, dtype, partial(_read, reader, name, is_kernel))
    return tensors


def huggingface_name(variable: str, release: Release) -> str:
    """Returns the name of a variable's tensor in Hugging Face's format."""
    for pattern, replacement in release.names + _EVERYWHERE:
        variable = re.sub(pattern, replacement, variable)
    return variable


def _open(prefix: Path) -> tuple[Any, int]:
    """Returns TensorFlow's reader of a checkpoint, and the size of its files in bytes."""
    try:
        import tensorflow
    except ImportError:
        raise UserError(f"{prefix}: only tensorflow can read it; pip install tensorflow-cpu") from None
    data = sorted(path for path in prefix.parent.iterdir() if path.name.startswith(f"{prefix.name}.data-"))
    num_bytes = 0
    for path in (prefix.with_name(f"{prefix.name}.index"), *data):
        with open_regular(path, "get the checkpoint again") as file:  # TensorFlow would block on a pipe
            num_bytes += file.seek(0, 2)
    try:
        return tensorflow.train.load_checkpoint(str(prefix)), num_bytes
    except Exception as error:  # of many types
        raise UserError(f"{prefix}: missing or damaged checkpoint ({_first_line(error)}); get it again") from None


def _read(reader, name: str, is_kernel: bool) -> np.ndarray:
    try:
        array = reader.get_tensor(name)
    except Exception as error:  # of many types
        raise UserError(f"variable {name}: damaged ({_first_line(error)}); get the checkpoint again") from None
    return array.T if is_kernel else array  # TensorFlow has [inputs, outputs], torch [outputs, inputs]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
