"""Building blocks of the tables in families.py: rows that map parameters to tensors of Hugging Face's format, and `Family`.

Shapes: D hidden_size, F intermediate_size, H heads, S head size.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from bert_jax.model.build import ModuleFactory
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import (
    MaskedLMHead,
    PooledClassifier,
    ReplacedTokenHead,
    SequenceClassifier,
    TokenClassifier,
)

Arrays = list[np.ndarray]


class Row(NamedTuple):
    """Parameters and the tensors of Hugging Face's format that hold the same numbers."""

    paths: tuple[str, ...]  # of the parameters; those below encoder/layers are of one layer
    names: tuple[str, ...]  # of the tensors; {layer} stands for the prefix of a layer's names
    to_params: Callable[[Arrays, EncoderConfig], Arrays]
    to_tensors: Callable[[Arrays, EncoderConfig], Arrays]


def same(arrays: Arrays, config: EncoderConfig) -> Arrays:
    """Returns the arrays unchanged."""
    del config
    return arrays


def transposed(arrays: Arrays, config: EncoderConfig) -> Arrays:
    """Converts kernels between torch's [outputs, inputs] and flax's [inputs, outputs]."""
    del config
    return [array.T for array in arrays]


def parameter(path: str, name: str) -> list[Row]:
    return [Row((path,), (name,), same, same)]


def embedding(path: str, name: str) -> list[Row]:
    return parameter(f"{path}/embedding", f"{name}.weight")


def norm(path: str, name: str) -> list[Row]:
    return parameter(f"{path}/scale", f"{name}.weight") + parameter(f"{path}/bias", f"{name}.bias")


def linear(path: str, name: str) -> list[Row]:
    kernel = Row((f"{path}/kernel",), (f"{name}.weight",), transposed, transposed)
    return [kernel, *parameter(f"{path}/bias", f"{name}.bias")]


def attention_output(path: str, name: str) -> list[Row]:
    kernel = Row(
        (f"{path}/kernel",),
        (f"{name}.weight",),
        lambda arrays, config: [arrays[0].T.reshape(config.num_heads, config.head_size, -1)],
        lambda arrays, config: [arrays[0].reshape(-1, arrays[0].shape[-1]).T],
    )
    return [kernel, *parameter(f"{path}/bias", f"{name}.bias")]


def query_key_value(path: str, names: Sequence[str]) -> list[Row]:
    """Returns rows for three linear layers that are one here: kernel [D, 3, H, S], bias [3, H, S]."""

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
        Row((f"{path}/kernel",), tuple(f"{name}.weight" for name in names), kernel_from, kernel_to),
        Row((f"{path}/bias",), tuple(f"{name}.bias" for name in names), bias_from, bias_to),
    ]


def fused_query_key_value(path: str, name: str) -> list[Row]:
    """Returns the row for one linear layer with weights [3 H S, D] and no biases."""

    def kernel_from(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [arrays[0].T.reshape(config.hidden_size, 3, config.num_heads, config.head_size)]

    def kernel_to(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [arrays[0].reshape(config.hidden_size, -1).T]

    return [Row((f"{path}/kernel",), (f"{name}.weight",), kernel_from, kernel_to)]


def fused_gate(path: str, name: str) -> list[Row]:
    """Returns the row for a gated MLP's weights [2 F, D]: the half with the activation first, then the gate."""

    def kernels_from(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [half.T for half in np.split(arrays[0], 2)]

    def kernels_to(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [np.concatenate([kernel.T for kernel in arrays])]

    return [Row((f"{path}/up/kernel", f"{path}/gate/kernel"), (f"{name}.weight",), kernels_from, kernels_to)]


def transform(path: str, dense: str, norm_name: str) -> list[Row]:
    """Returns rows for a `Transform` of model/heads.py."""
    return linear(f"{path}/dense", dense) + norm(f"{path}/norm", norm_name)


# ----------------------------------------------------------------------------------------------------------------------
# Families
# ----------------------------------------------------------------------------------------------------------------------

# Name in transformers' activations.py: name here, for every function that is implemented here. Where a function has several
# names, exports use the first. (gelu_10, quick_gelu and others are different functions.)
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


class Head(NamedTuple):
    """A head that classes of transformers have: the rows of its parameters, and its module here."""

    rows: list[Row]  # paths begin with the head's name
    module: Callable[[EncoderConfig, int, nnx.Rngs], nnx.Module]  # of (config, num_classes, rngs)
    has_classes: bool = False  # whether the number of classes depends on the task

    def factory(self, num_classes: int) -> ModuleFactory:
        """Returns the factory of the module; only heads that have classes use `num_classes`."""
        return lambda config, rngs: self.module(config, num_classes, rngs)


def masked_lm(dense: str, norm: str, bias: str) -> Head:
    rows = [*transform("mlm/transform", dense, norm), *parameter("mlm/bias", bias)]
    return Head(rows, lambda config, classes, rngs: MaskedLMHead(config, rngs))


def pair_classifier(rows: list[Row]) -> Head:
    return Head(rows, lambda config, classes, rngs: PooledClassifier(config, 2, rngs))


def sequence_classifier(rows: list[Row]) -> Head:
    return Head(rows, lambda config, classes, rngs: SequenceClassifier(config, classes, config.dropout, rngs), True)


def token_classifier(rows: list[Row]) -> Head:
    return Head(rows, lambda config, classes, rngs: TokenClassifier(config, classes, config.dropout, rngs), True)


def question_answering(rows: list[Row]) -> Head:
    return Head(rows, lambda config, classes, rngs: TokenClassifier(config, 2, config.dropout, rngs))


def replaced_tokens(rows: list[Row]) -> Head:
    return Head(rows, lambda config, classes, rngs: ReplacedTokenHead(config, rngs))


@dataclasses.dataclass(frozen=True)
class Family:
    """Names of options and tensors of one `model_type` of Hugging Face's format; "HF" is its config.json."""

    model_type: str
    options: dict[str, str]  # our option: HF option with the same value (activations by the table above)
    fixed: dict[str, Any]  # our options with one value in the whole family
    read: Callable[[dict[str, Any]], dict[str, Any]]  # HF config -> our options that are computed
    write: Callable[[EncoderConfig], dict[str, Any]]  # our config -> HF options that are computed
    prefix: str  # of the encoder's tensors in a model with a head
    layer: Callable[[EncoderConfig, int], str]  # prefix of the names of layer n
    encoder: list[Row]  # names without the prefix
    architectures: dict[str, tuple[str, ...]]  # class in transformers: heads in it
    heads: dict[str, Head]
    duplicates: dict[str, str]  # tied tensor that a file may repeat: the original
    defaults: dict[str, Any]  # HF options that may be missing, as transformers fills them in
    required: dict[str, Any] = dataclasses.field(default_factory=dict)  # HF options with one supported value


def nothing(config: Any) -> dict[str, Any]:
    del config
    return {}


def classes(name: str, **others: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Returns the classes of transformers for a family, and the heads in each."""
    heads = {
        **others,
        "ForMaskedLM": ("mlm",),
        "ForSequenceClassification": ("classification",),
        "ForTokenClassification": ("token",),
        "ForQuestionAnswering": ("qa",),
        "Model": (),
    }
    return {name + suffix: held for suffix, held in heads.items()}
