"""The heads of pretraining. Which dense layers, activations and norms a family has there are values of its config.

A head's `logits(encoder, output, attention_mask_BxL)` computes those of the whole batch from the encoder and its output at all
positions (see model/build.py): [B, L, ...] for each position, or [B, C] for each sequence.

Shapes: B batch, L length, P predictions (C of a chunk), D hidden_size, E table_width, V vocabulary, C classes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import Encoder, EncoderOutput
from bert_jax.model.layers import ACTIVATIONS, dense, norm
from bert_jax.parallel.mesh import shards

LOGITS_BYTES = 256 << 20  # of a device; the backward pass needs up to three times as much


class Transform(nnx.Module):
    """dense -> activation -> norm, before a prediction for each position."""

    def __init__(self, config: EncoderConfig, outputs: int, rngs: nnx.Rngs):
        self.activation = config.head_activation or config.activation
        self.dense = dense(config, config.hidden_size, outputs, ("embed", None), rngs)
        self.norm = norm(config, outputs, rngs)

    def __call__(self, hidden_BxPxD: jax.Array) -> jax.Array:
        return self.norm(ACTIVATIONS[self.activation](self.dense(hidden_BxPxD)))


class MaskedLMHead(nnx.Module):
    """Transform -> product with the token table + a bias for each token (Devlin et al. 2019)."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.transform = Transform(config, config.table_width, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.dtype(config.param_dtype)), axes=("vocab",))

    def __call__(self, hidden_BxPxD: jax.Array, table_VxE: jax.Array) -> jax.Array:
        """Logits [B, P, V], float32."""
        return token_logits(self.transform(hidden_BxPxD), table_VxE, self.bias[...])

    def cross_entropy(
        self, hidden_BxPxD: jax.Array, table_VxE: jax.Array, labels_BxP: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes -log p(label), float32 [B, P], and whether no logit is above the label's, bool [B, P]."""
        return self.over_logits(cross_entropy, hidden_BxPxD, table_VxE, labels_BxP)

    def over_logits(
        self, function: Callable[..., Any], hidden_BxPxD: jax.Array, table_VxE: jax.Array, *others_BxP: jax.Array
    ) -> Any:
        """Returns function(logits [B, C, V], *others [B, C]), a tree of arrays [B, C], for all positions: [B, P].

        Logits that take much memory are computed in chunks (see `in_chunks`).
        """
        bias_V = self.bias[...]

        def of_chunk(x_BxCxE: jax.Array, *others_BxC: jax.Array) -> Any:
            return function(token_logits(x_BxCxE, table_VxE, bias_V), *others_BxC)

        return in_chunks(of_chunk, len(table_VxE), self.transform(hidden_BxPxD), *others_BxP)

    def logits(self, encoder: Encoder, output: EncoderOutput, attention_mask_BxL: jax.Array) -> jax.Array:
        return self(output.last_hidden_state, encoder.embeddings.tokens.embedding[...])


def token_logits(x_BxPxE: jax.Array, table_VxE: jax.Array, bias_V: jax.Array) -> jax.Array:
    """Returns the logits of all tokens, float32 [B, P, V]."""
    table_VxE = table_VxE.astype(x_BxPxE.dtype)
    logits = jnp.einsum("bpe,ve->bpv", x_BxPxE, table_VxE, preferred_element_type=jnp.float32)
    # As a product, whose gradient is one too: on CPU, XLA sums over the long side of an array slowly.
    return logits + jnp.einsum("bp,v->bpv", jnp.ones(logits.shape[:2]), bias_V.astype(jnp.float32))


def cross_entropy(logits_BxPxV: jax.Array, labels_BxP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns -log p(label), float32 [B, P], and whether no logit is above the label's, bool [B, P]."""
    losses_BxP = optax.softmax_cross_entropy_with_integer_labels(logits_BxPxV, labels_BxP)
    # Not by argmax, which costs as much as the product on CPU.
    label_logits_BxP = jnp.take_along_axis(logits_BxPxV, labels_BxP[:, :, None], axis=-1)[:, :, 0]
    return losses_BxP, label_logits_BxP == logits_BxPxV.max(-1)


def in_chunks(function: Callable[..., Any], num_tokens: int, *arrays_BxP: jax.Array) -> Any:
    """Returns function(*arrays [B, P, ...]), a tree of arrays [B, P], which computes logits of `num_tokens` tokens.

    Logits of more than `LOGITS_BYTES` on a device are computed in chunks of P, and again in the backward pass.
    """
    num_rows, num_positions = arrays_BxP[0].shape[:2]
    logits_bytes = 4 * num_rows * num_positions * num_tokens
    devices = shards("batch", num_rows) * shards("vocab", num_tokens)
    num_chunks = min(math.ceil(logits_bytes / devices / LOGITS_BYTES), num_positions)
    if num_chunks <= 1:
        return function(*arrays_BxP)
    size = math.ceil(num_positions / num_chunks)
    num_chunks = math.ceil(num_positions / size)  # with the size rounded up, fewer may do

    def chunks(array: jax.Array) -> jax.Array:
        rest = [(0, 0)] * (array.ndim - 2)
        padded = jnp.pad(array, ((0, 0), (0, num_chunks * size - num_positions), *rest))
        return jnp.moveaxis(padded.reshape(num_rows, num_chunks, size, *array.shape[2:]), 1, 0)

    results = jax.lax.map(jax.checkpoint(lambda arrays: function(*arrays)), [chunks(array) for array in arrays_BxP])
    return jax.tree.map(lambda result: jnp.moveaxis(result, 0, 1).reshape(num_rows, -1)[:, :num_positions], results)


class PooledClassifier(nnx.Module):
    """A dense layer over the pooled state: next-sentence and sentence-order prediction."""

    def __init__(self, config: EncoderConfig, num_classes: int, rngs: nnx.Rngs):
        self.dense = dense(config, config.hidden_size, num_classes, ("embed", None), rngs, use_bias=True)

    def __call__(self, pooled_BxD: jax.Array) -> jax.Array:
        """Logits [B, C], float32."""
        return self.dense(pooled_BxD).astype(jnp.float32)

    def logits(self, encoder: Encoder, output: EncoderOutput, attention_mask_BxL: jax.Array) -> jax.Array:
        assert output.pooled is not None
        return self(output.pooled)


class ReplacedTokenHead(nnx.Module):
    """Was this token replaced? dense -> activation -> dense (ELECTRA's discriminator, Clark et al. 2020, section 2)."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.activation = config.activation
        self.hidden = dense(config, config.hidden_size, config.hidden_size, ("embed", None), rngs)
        self.dense = dense(config, config.hidden_size, 1, ("embed", None), rngs, use_bias=True)

    def __call__(self, hidden_BxLxD: jax.Array) -> jax.Array:
        """Logits [B, L], float32; above 0: replaced."""
        x_BxLxD = ACTIVATIONS[self.activation](self.hidden(hidden_BxLxD))
        return self.dense(x_BxLxD)[..., 0].astype(jnp.float32)

    def logits(self, encoder: Encoder, output: EncoderOutput, attention_mask_BxL: jax.Array) -> jax.Array:
        return self(output.last_hidden_state)
