"""Building blocks of the tables in families.py: rows that map parameters to tensors of Hugging Face's format, and `Family`.

Shapes: D hidden_size, F intermediate_size, H heads, S head size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from bert_jax.errors import UserError
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig

Arrays = list[np.ndarray]
Convert = Callable[[Arrays, EncoderConfig], Arrays]


class Row(NamedTuple):
    """Parameters and the tensors of Hugging Face's format that hold the same numbers."""

    paths: tuple[str, ...]  # of the parameters; those below encoder/layers are of one layer
    names: tuple[str, ...]  # of the tensors; {layer} stands for the prefix of a layer's names
    to_params: Convert = lambda arrays, config: arrays
    to_tensors: Convert = lambda arrays, config: arrays

    @property
    def of_layers(self) -> bool:
        return "{layer}" in self.names[0]


def parameter(path: str, name: str) -> list[Row]:
    return [Row((path,), (name,))]


def embedding(path: str, name: str) -> list[Row]:
    return parameter(f"{path}/embedding", f"{name}.weight")


def norm(path: str, name: str) -> list[Row]:
    return parameter(f"{path}/scale", f"{name}.weight") + parameter(f"{path}/bias", f"{name}.bias")


def _kernel(path: str, name: str, to_params: Convert, to_tensors: Convert) -> list[Row]:
    return [Row((f"{path}/kernel",), (f"{name}.weight",), to_params, to_tensors)]


def linear(path: str, name: str) -> list[Row]:
    """Returns rows for a linear layer, whose kernel is [inputs, outputs] in flax and [outputs, inputs] in torch."""
    kernel = _kernel(path, name, lambda arrays, config: [arrays[0].T], lambda arrays, config: [arrays[0].T])
    return [*kernel, *parameter(f"{path}/bias", f"{name}.bias")]


def attention_output(path: str, name: str) -> list[Row]:
    kernel = _kernel(
        path,
        name,
        lambda arrays, config: [arrays[0].T.reshape(config.num_heads, config.head_size, -1)],
        lambda arrays, config: [arrays[0].reshape(-1, arrays[0].shape[-1]).T],
    )
    return [*kernel, *parameter(f"{path}/bias", f"{name}.bias")]


def two_layers(path: str, hidden: str, dense: str) -> list[Row]:
    return linear(f"{path}/hidden", hidden) + linear(f"{path}/dense", dense)


def query_key_value(path: str, prefix: str, *names: str) -> list[Row]:
    """Returns rows for three linear layers that are one here: kernel [D, 3, H, S], bias [3, H, S]."""

    def kernel_from(arrays: Arrays, config: EncoderConfig) -> Arrays:
        heads = (config.num_heads, config.head_size)
        return [np.stack([array.T.reshape(-1, *heads) for array in arrays], axis=1)]

    def kernel_to(arrays: Arrays, config: EncoderConfig) -> Arrays:
        return [arrays[0][:, part].reshape(config.hidden_size, -1).T for part in range(3)]

    return [
        Row((f"{path}/kernel",), tuple(f"{prefix}.{name}.weight" for name in names), kernel_from, kernel_to),
        Row(
            (f"{path}/bias",),
            tuple(f"{prefix}.{name}.bias" for name in names),
            lambda arrays, config: [np.stack([array.reshape(config.num_heads, -1) for array in arrays])],
            lambda arrays, config: [part.reshape(-1) for part in arrays[0]],
        ),
    ]


def fused_query_key_value(path: str, name: str) -> list[Row]:
    """Returns the row for one linear layer with weights [3 H S, D] and no biases."""
    return _kernel(
        path,
        name,
        lambda arrays, config: [arrays[0].T.reshape(config.hidden_size, 3, config.num_heads, config.head_size)],
        lambda arrays, config: [arrays[0].reshape(config.hidden_size, -1).T],
    )


def fused_gate(path: str, name: str) -> list[Row]:
    """Returns the row for a gated MLP's weights [2 F, D]: the half with the activation first, then the gate."""
    return [
        Row(
            (f"{path}/up/kernel", f"{path}/gate/kernel"),
            (f"{name}.weight",),
            lambda arrays, config: [half.T for half in np.split(arrays[0], 2)],
            lambda arrays, config: [np.concatenate([kernel.T for kernel in arrays])],
        )
    ]


def transform(path: str, dense: str, norm_name: str) -> list[Row]:
    """Returns rows for a `Transform` of model/heads.py."""
    return linear(f"{path}/dense", dense) + norm(f"{path}/norm", norm_name)


def masked_lm(dense: str, norm_name: str, bias: str) -> list[Row]:
    return [*transform("mlm/transform", dense, norm_name), *parameter("mlm/bias", bias)]


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


@dataclasses.dataclass(frozen=True)
class Family:
    """Names of options and tensors of one `model_type` of Hugging Face's format; "HF" is its config.json."""

    model_type: str
    options: dict[str, str]  # our option: HF option with the same value (activations by `ACTIVATIONS`)
    prefix: str  # of the encoder's tensors in a model with a head
    layer: Callable[[EncoderConfig, int], str]  # prefix of the names of layer n
    encoder: list[Row]  # names without the prefix
    architectures: dict[str, tuple[str, ...]]  # class in transformers: heads in it
    heads: dict[str, list[Row]]  # paths begin with the head's name
    duplicates: dict[str, str]  # tied tensor that a file may repeat: the original
    defaults: dict[str, Any]  # HF options that may be missing, as transformers fills them in
    required: dict[str, Any] = dataclasses.field(default_factory=dict)  # HF options with one supported value
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)  # our options with one value in the whole family
    read: Callable[[dict[str, Any]], dict[str, Any]] = lambda hf: {}  # HF config -> our options that are computed
    write: Callable[[EncoderConfig], dict[str, Any]] = lambda config: {}  # our config -> HF options that are computed


def sizes(without: str = "", **renamed: str) -> dict[str, str]:
    """Returns our options, except `without`, and their names in BERT's config.json or those of `renamed`."""
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "num_token_types": "type_vocab_size",
        "norm_epsilon": "layer_norm_eps",
        "activation": "hidden_act",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "initializer_range": "initializer_range",
    } | renamed
    return {name: hf_name for name, hf_name in names.items() if name != without}


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


def rows_of(family: Family, model: Model, without_heads: tuple[str, ...] = ()) -> list[Row]:
    """Returns the rows of the family whose parameters the model has, with full names and paths."""
    paths = set(traverse_util.flatten_dict(model.abstract, sep="/"))
    rows = [
        row._replace(
            paths=tuple(f"encoder/{path}" for path in row.paths),
            names=tuple(family.prefix + name for name in row.names),
        )
        for row in family.encoder
    ]
    for head in [name for name in model.heads if name not in without_heads]:
        if head not in family.heads:
            raise UserError(
                f"head '{head}': not supported for {family.model_type} in Hugging Face's format; leave it out"
            )
        rows += [row._replace(paths=tuple(f"heads/{path}" for path in row.paths)) for row in family.heads[head]]
    return [row for row in rows if paths.issuperset(row.paths)]


def layer_names(family: Family, config: EncoderConfig, row: Row, number: int) -> tuple[str, ...]:
    """Returns the names of a row's tensors in layer `number`."""
    return tuple(name.format(layer=family.layer(config, number)) for name in row.names)


def is_unused(config: EncoderConfig, row: Row, number: int) -> bool:
    """Checks whether a parameter, stacked for all layers, is unused in this one (see EncoderConfig.first_attention_norm)."""
    return number == 0 and not config.first_attention_norm and row.paths[0].startswith("encoder/layers/attention_norm/")
