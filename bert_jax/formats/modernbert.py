"""ModernBERT's table (see families.py), and the options whose names depend on the version of transformers."""

from typing import Any

from bert_jax.errors import UserError
from bert_jax.formats.rows import (
    Family,
    attention_output,
    classes,
    embedding,
    fused_gate,
    fused_query_key_value,
    linear,
    masked_lm,
    norm,
    sizes,
    transform,
)
from bert_jax.model.config import EncoderConfig


def read_modernbert(hf: dict[str, Any]) -> dict[str, Any]:
    ropes = hf.get("rope_parameters") or {}  # since transformers 5
    if scaled := [rope["rope_type"] for rope in ropes.values() if rope.get("rope_type", "default") != "default"]:
        raise UserError(f"rope_type={scaled[0]!r} in config.json is not supported, only 'default'; use another model")
    every, num_layers = hf["global_attn_every_n_layers"], hf["num_hidden_layers"]
    if types := hf.get("layer_types"):  # since transformers 5, instead
        if len(types) != num_layers:
            raise UserError(
                f"layer_types in config.json names {len(types)} layers, not {num_layers}; get the file again"
            )
        every = next((i for i in range(1, num_layers) if types[i] == "full_attention"), num_layers)
        if types != [("sliding" if i % every else "full") + "_attention" for i in range(num_layers)]:
            raise UserError(
                "layer_types in config.json: only a global layer in every n-th place is supported; use another model"
            )
    return {
        "global_attention_every": every,
        "local_window": hf["local_attention"] // 2,  # local_attention counts both sides
        "rope_theta": ropes.get("full_attention", {}).get("rope_theta") or hf["global_rope_theta"],
        "local_rope_theta": ropes.get("sliding_attention", {}).get("rope_theta") or hf["local_rope_theta"],
        "classifier_pooling": {"cls": "first"}.get(hf["classifier_pooling"], hf["classifier_pooling"]),
    }


def write_modernbert(config: EncoderConfig) -> dict[str, Any]:
    return {
        "global_attn_every_n_layers": config.global_attention_every,
        "local_attention": 2 * config.local_window,
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "classifier_pooling": {"first": "cls", "mean": "mean"}[config.classifier_pooling],
    }


MODERNBERT = Family(
    model_type="modernbert",
    options=sizes(
        without="num_token_types",
        norm_epsilon="norm_eps",
        activation="hidden_activation",
        head_activation="classifier_activation",
        dropout="mlp_dropout",
        attention_dropout="attention_dropout",
    ),
    fixed={
        "num_token_types": 0,
        "positions": "rope",
        "norm_position": "pre",
        "first_attention_norm": False,
        "gated_mlp": True,
        "use_bias": False,
        "pooler": False,
        "classifier": "transform",
    },
    read=read_modernbert,
    write=write_modernbert,
    prefix="model.",
    layer=lambda config, number: f"layers.{number}",
    encoder=[
        *embedding("embeddings/tokens", "embeddings.tok_embeddings"),
        *norm("embeddings/norm", "embeddings.norm"),
        *fused_query_key_value("layers/attention/qkv", "{layer}.attn.Wqkv"),
        *attention_output("layers/attention/out", "{layer}.attn.Wo"),
        *norm("layers/attention_norm", "{layer}.attn_norm"),
        *fused_gate("layers/mlp", "{layer}.mlp.Wi"),
        *linear("layers/mlp/down", "{layer}.mlp.Wo"),
        *norm("layers/mlp_norm", "{layer}.mlp_norm"),
        *norm("final_norm", "final_norm"),
    ],
    architectures=classes("ModernBert"),
    heads={"mlm": masked_lm("head.dense", "head.norm", "decoder.bias")}
    | {
        name: [*transform(f"{name}/transform", "head.dense", "head.norm"), *linear(f"{name}/dense", "classifier")]
        for name in ("classification", "token", "qa")
    },
    duplicates={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    defaults={
        "norm_eps": 1e-5,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "classifier_pooling": "cls",
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "mlp_dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    },
    required=dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), False)
    | {"decoder_bias": True},
)
