"""What the tables in families.py are made of: rows of parameters and tensors that hold the same numbers, and the `Family`.

Shapes: D hidden_size, F intermediate_size, H heads, S head size.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.model.config import EncoderConfig

Arrays = list[np.ndarray]


class Row(NamedTuple):
    """Some parameters of ours and the tensors of theirs that hold the same numbers."""

    ours: tuple[str, ...]  # paths; those within encoder/layers are of one layer
    theirs: tuple[str, ...]  # names; {layer} stands for the beginning of a layer's names
    from_theirs: Callable[[Arrays, EncoderConfig], Arrays]
    to_theirs: Callable[[Arrays, EncoderConfig], Arrays]


def same(arrays: Arrays, config: EncoderConfig) -> Arrays:
    """As it is."""
    del config
    return arrays


def transposed(arrays: Arrays, config: EncoderConfig) -> Arrays:
    """Between torch's [outputs, inputs] and our [inputs, outputs]."""
    del config
    return [array.T for array in arrays]


def parameter(ours: str, theirs: str) -> list[Row]:
    return [Row((ours,), (theirs,), same, same)]


def embedding(ours: str, theirs: str) -> list[Row]:
    return parameter(f"{ours}/embedding", f"{theirs}.weight")


def norm(ours: str, theirs: str) -> list[Row]:
    return parameter(f"{ours}/scale", f"{theirs}.weight") + parameter(f"{ours}/bias", f"{theirs}.bias")


def linear(ours: str, theirs: str) -> list[Row]:
    kernel = Row((f"{ours}/kernel",), (f"{theirs}.weight",), transposed, transposed)
    return [kernel, *parameter(f"{ours}/bias", f"{theirs}.bias")]


def attention_output(ours: str, theirs: str) -> list[Row]:
    kernel = Row(
        (f"{ours}/kernel",),
        (f"{theirs}.weight",),
        lambda arrays, config: [arrays[0].T.reshape(config.num_heads, config.head_size, -1)],
        lambda arrays, config: [arrays[0].reshape(-1, arrays[0].shape[-1]).T],
    )
    return [kernel, *parameter(f"{ours}/bias", f"{theirs}.bias")]


def query_key_value(ours: str, theirs: Sequence[str]) -> list[Row]:
    """Three layers of theirs, one of ours: kernel [D, 3, H, S], bias [3, H, S]."""

    def kernel_from(arrays: Arrays, config: EncoderConfig) -> Arrays:
        heads = (config.num_heads, config.head_size)
        return [np.stack([array.T.reshape(-1, *heads) for array in arrays], axis=1)]

    def kernel_to(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [arrays[0][:, part].reshape(config.hidden_size, -1).T for part in range(3)]

    def bias_from(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [np.stack([array.reshape(config.num_heads, -1) for array in arrays])]

    def bias_to(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [part.reshape(-1) for part in arrays[0]]

    return [
        Row((f"{ours}/kernel",), tuple(f"{name}.weight" for name in theirs), kernel_from, kernel_to),
        Row((f"{ours}/bias",), tuple(f"{name}.bias" for name in theirs), bias_from, bias_to),
    ]


def fused_query_key_value(ours: str, theirs: str) -> list[Row]:
    """One layer of theirs [3 H S, D], without biases."""

    def kernel_from(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [arrays[0].T.reshape(config.hidden_size, 3, config.num_heads, config.head_size)]

    def kernel_to(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [arrays[0].reshape(config.hidden_size, -1).T]

    return [Row((f"{ours}/kernel",), (f"{theirs}.weight",), kernel_from, kernel_to)]


def fused_gate(ours: str, theirs: str) -> list[Row]:
    """One layer of theirs [2 F, D]: first what the activation is applied to, then what it is multiplied with."""

    def kernels_from(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [half.T for half in np.split(arrays[0], 2)]

    def kernels_to(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [np.concatenate([kernel.T for kernel in arrays])]

    return [Row((f"{ours}/up/kernel", f"{ours}/gate/kernel"), (f"{theirs}.weight",), kernels_from, kernels_to)]


def transform(ours: str, theirs_dense: str, theirs_norm: str) -> list[Row]:
    """A `Transform` of model/heads.py."""
    return linear(f"{ours}/dense", theirs_dense) + norm(f"{ours}/norm", theirs_norm)


# ----------------------------------------------------------------------------------------------------------------------
# Families
# ----------------------------------------------------------------------------------------------------------------------

# Their name: ours, for every name in transformers' activations.py whose function is implemented here. Of several names of one
# function, exports use the first. (gelu_10, quick_gelu and others are different functions.)
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What one `model_type` of Hugging Face's calls things."""

    model_type: str
    options: dict[str, str]  # our option: theirs, where the value is the same (activations by the table above)
    fixed: dict[str, Any]  # our options that have one value in the whole family
    read: Callable[[dict[str, Any]], dict[str, Any]]  # the options that have to be computed, of their config
    write: Callable[[EncoderConfig], dict[str, Any]]  # and of ours
    prefix: str  # of the encoder's tensors in a model with a head
    layer: Callable[[EncoderConfig, int], str]  # beginning of the names of the layer whose weights are number n
    encoder: list[Row]  # names without the prefix
    architectures: dict[str, tuple[str, ...]]  # class of theirs: our heads in it
    heads: dict[str, list[Row]]  # rows of each head
    duplicates: dict[str, str]  # tensors that are another one stored twice
    defaults: dict[str, Any]  # their options that config.json may leave out, as transformers fills them in
    required: dict[str, Any] = dataclasses.field(default_factory=dict)  # their options that have one value here


def nothing(config: Any) -> dict[str, Any]:
    del config
    return {}


def classes(name: str, **others: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Their classes for a family, and our heads in each."""
    heads = {
        **others,
        "ForMaskedLM": ("mlm",),
        "ForSequenceClassification": ("classification",),
        "ForTokenClassification": ("token",),
        "ForQuestionAnswering": ("qa",),
        "Model": (),
    }
    return {name + suffix: held for suffix, held in heads.items()}
