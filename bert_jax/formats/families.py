"""One table per family: how Hugging Face's files name its options and tensors; read in both directions.

Rows whose parameters a model lacks (a pooler, biases) are skipped.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from bert_jax.formats.modernbert import MODERNBERT
from bert_jax.formats.rows import (
    Family,
    attention_output,
    classes,
    embedding,
    linear,
    masked_lm,
    norm,
    query_key_value,
    sizes,
    two_layers,
)
from bert_jax.model.build import ModuleFactory
from bert_jax.model.classifiers import SequenceClassifier, TokenClassifier
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead, PooledClassifier, ReplacedTokenHead

DEFAULTS = {
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}

EMBEDDINGS = [
    *embedding("embeddings/tokens", "embeddings.word_embeddings"),
    *embedding("embeddings/positions", "embeddings.position_embeddings"),
    *embedding("embeddings/token_types", "embeddings.token_type_embeddings"),
    *norm("embeddings/norm", "embeddings.LayerNorm"),
]
BERT_ENCODER = [
    *EMBEDDINGS,
    *query_key_value("layers/attention/qkv", "{layer}.attention.self", "query", "key", "value"),
    *attention_output("layers/attention/out", "{layer}.attention.output.dense"),
    *norm("layers/attention_norm", "{layer}.attention.output.LayerNorm"),
    *linear("layers/mlp/up", "{layer}.intermediate.dense"),
    *linear("layers/mlp/down", "{layer}.output.dense"),
    *norm("layers/mlp_norm", "{layer}.output.LayerNorm"),
    *linear("pooler", "pooler.dense"),
]
TOKEN_HEADS = {"token": linear("token/dense", "classifier"), "qa": linear("qa/dense", "qa_outputs")}
TWO_LAYER_CLASSIFIER = two_layers("classification", "classifier.dense", "classifier.out_proj")

BERT = Family(
    model_type="bert",
    options=sizes(),
    prefix="bert.",
    layer=lambda config, number: f"encoder.layer.{number}",
    encoder=BERT_ENCODER,
    architectures=classes("Bert", ForPreTraining=("mlm", "nsp"), ForNextSentencePrediction=("nsp",)),
    heads={
        "mlm": masked_lm(
            "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
        ),
        "nsp": linear("nsp/dense", "cls.seq_relationship"),
        "classification": linear("classification/dense", "classifier"),
        **TOKEN_HEADS,
    },
    duplicates={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    defaults=DEFAULTS,
    required={"is_decoder": False, "add_cross_attention": False},
)

ROBERTA = Family(
    model_type="roberta",
    options=sizes(without="max_positions"),
    fixed={"head_activation": "gelu", "classifier": "tanh"},
    # Position numbers start at pad_token_id + 1, so the first rows of the table are unused.
    read=lambda hf: {
        "position_offset": hf["pad_token_id"] + 1,
        "max_positions": hf["max_position_embeddings"] - hf["pad_token_id"] - 1,
    },
    write=lambda config: {
        "pad_token_id": config.position_offset - 1,
        "max_position_embeddings": config.max_positions + config.position_offset,
    },
    prefix="roberta.",
    layer=lambda config, number: f"encoder.layer.{number}",
    encoder=BERT_ENCODER,
    architectures=classes("Roberta"),
    heads={
        "mlm": masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
        "classification": TWO_LAYER_CLASSIFIER,
        **TOKEN_HEADS,
    },
    duplicates={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    defaults=DEFAULTS | {"pad_token_id": 1},
    required={"is_decoder": False, "add_cross_attention": False},
)


def _as_roberta(model_type: str, class_name: str, prefix: str = "roberta.") -> Family:
    """Returns RoBERTa's layout under another name, which an export keeps; `class_name` is the prefix of its class names."""
    return dataclasses.replace(
        ROBERTA,
        model_type=model_type,
        fixed=ROBERTA.fixed | {"exported_as": model_type},
        prefix=prefix,
        architectures=classes(class_name),
        duplicates=ROBERTA.duplicates | {"lm_head.decoder.weight": f"{prefix}embeddings.word_embeddings.weight"},
    )


CAMEMBERT = _as_roberta("camembert", "Camembert")
XLM_ROBERTA = _as_roberta("xlm-roberta", "XLMRoberta")
DATA2VEC_TEXT = _as_roberta("data2vec-text", "Data2VecText", prefix="data2vec_text.")

ALBERT = Family(
    model_type="albert",
    options=sizes(
        without="num_layers",
        embedding_size="embedding_size",
        num_layer_groups="num_hidden_groups",
        layers_per_group="inner_group_num",
    ),
    # num_hidden_layers counts runs of a group.
    read=lambda hf: {"num_layers": hf["num_hidden_layers"] * hf["inner_group_num"]},
    write=lambda config: {"num_hidden_layers": config.num_layers // config.layers_per_group},
    prefix="albert.",
    layer=lambda config, number: (
        f"encoder.albert_layer_groups.{number // config.layers_per_group}"
        f".albert_layers.{number % config.layers_per_group}"
    ),
    encoder=[
        *EMBEDDINGS,
        *linear("embeddings/projection", "encoder.embedding_hidden_mapping_in"),
        *query_key_value("layers/attention/qkv", "{layer}.attention", "query", "key", "value"),
        *attention_output("layers/attention/out", "{layer}.attention.dense"),
        *norm("layers/attention_norm", "{layer}.attention.LayerNorm"),
        *linear("layers/mlp/up", "{layer}.ffn"),
        *linear("layers/mlp/down", "{layer}.ffn_output"),
        *norm("layers/mlp_norm", "{layer}.full_layer_layer_norm"),
        *linear("pooler", "pooler"),
    ],
    architectures=classes("Albert", ForPreTraining=("mlm", "sop")),
    heads={
        "mlm": masked_lm("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
        "sop": linear("sop/dense", "sop_classifier.classifier"),
        "classification": linear("classification/dense", "classifier"),
        **TOKEN_HEADS,
    },
    duplicates={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    defaults=DEFAULTS
    | {"hidden_act": "gelu_new", "num_hidden_groups": 1, "inner_group_num": 1}
    | dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0),
)

DISTILBERT = Family(
    model_type="distilbert",
    options={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "max_positions": "max_position_embeddings",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_range",
    },
    fixed={"num_token_types": 0, "pooler": False, "classifier": "relu"},
    prefix="distilbert.",
    layer=lambda config, number: f"transformer.layer.{number}",
    encoder=[
        *EMBEDDINGS,
        *query_key_value("layers/attention/qkv", "{layer}.attention", "q_lin", "k_lin", "v_lin"),
        *attention_output("layers/attention/out", "{layer}.attention.out_lin"),
        *norm("layers/attention_norm", "{layer}.sa_layer_norm"),
        *linear("layers/mlp/up", "{layer}.ffn.lin1"),
        *linear("layers/mlp/down", "{layer}.ffn.lin2"),
        *norm("layers/mlp_norm", "{layer}.output_layer_norm"),
    ],
    architectures=classes("DistilBert"),
    heads={
        "mlm": masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        "classification": two_layers("classification", "pre_classifier", "classifier"),
        **TOKEN_HEADS,
    },
    duplicates={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    defaults={"activation": "gelu", "dropout": 0.1, "attention_dropout": 0.1, "initializer_range": 0.02},
)

ELECTRA = Family(
    model_type="electra",
    options=sizes(),
    fixed={"pooler": False, "head_activation": "gelu", "classifier": "gelu"},
    # There is a projection only if the embeddings are narrower than the encoder.
    read=lambda hf: {"embedding_size": hf["embedding_size"] if hf["embedding_size"] != hf["hidden_size"] else 0},
    write=lambda config: {"embedding_size": config.table_width},
    prefix="electra.",
    layer=lambda config, number: f"encoder.layer.{number}",
    encoder=[*BERT_ENCODER, *linear("embeddings/projection", "embeddings_project")],
    architectures=classes("Electra", ForPreTraining=("rtd",)),
    heads={
        "mlm": masked_lm("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
        "rtd": two_layers("rtd", "discriminator_predictions.dense", "discriminator_predictions.dense_prediction"),
        "classification": TWO_LAYER_CLASSIFIER,
        **TOKEN_HEADS,
    },
    duplicates={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    defaults=DEFAULTS,
)

_ALL = (BERT, ROBERTA, ALBERT, DISTILBERT, ELECTRA, MODERNBERT, CAMEMBERT, XLM_ROBERTA, DATA2VEC_TEXT)
FAMILIES = {family.model_type: family for family in _ALL}


class Head(NamedTuple):
    """A head that classes of transformers have; its module is the same in all families."""

    module: Callable[[EncoderConfig, int, nnx.Rngs], nnx.Module]  # of (config, num_classes, rngs)
    has_classes: bool = False  # whether the number of classes depends on the task

    def factory(self, num_classes: int) -> ModuleFactory:
        """Returns the factory of the module; only heads that have classes use `num_classes`."""
        return lambda config, rngs: self.module(config, num_classes, rngs)


HEADS = {
    "mlm": Head(lambda config, classes, rngs: MaskedLMHead(config, rngs)),
    "classification": Head(
        lambda config, classes, rngs: SequenceClassifier(config, classes, config.dropout, rngs), has_classes=True
    ),
    "token": Head(
        lambda config, classes, rngs: TokenClassifier(config, classes, config.dropout, rngs), has_classes=True
    ),
    "qa": Head(lambda config, classes, rngs: TokenClassifier(config, 2, config.dropout, rngs)),
    "rtd": Head(lambda config, classes, rngs: ReplacedTokenHead(config, rngs)),
    "sop": Head(lambda config, classes, rngs: PooledClassifier(config, 2, rngs)),
    "nsp": Head(lambda config, classes, rngs: PooledClassifier(config, 2, rngs)),
}
