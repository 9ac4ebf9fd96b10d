"""The heads of pretraining. Which dense layers, activations and norms a family has there are values of its config.

A head's `logits(encoder, output, attention_mask_BxL)` computes those of the whole batch from the encoder and its output at all
positions (see model/build.py): [B, L, ...] for each position, or [B, C] for each sequence.

Shapes: B batch, L length, P predictions (C of a chunk), D hidden_size, E table_width, V vocabulary, C classes.
"""

import math

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
        return self._product(self.transform(hidden_BxPxD), table_VxE)

    def cross_entropy(
        self, hidden_BxPxD: jax.Array, table_VxE: jax.Array, labels_BxP: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes -log p(label), float32 [B, P], and whether no logit is above the label's, bool [B, P].

        Logits of more than `LOGITS_BYTES` on a device are computed in chunks, and again in the backward pass.
        """
        x_BxPxE = self.transform(hidden_BxPxD)

        def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x_BxCxE, labels_BxC = chunk
            logits_BxCxV = self._product(x_BxCxE, table_VxE)
            losses_BxC = optax.softmax_cross_entropy_with_integer_labels(logits_BxCxV, labels_BxC)
            # Not by argmax, which costs as much as the product on CPU.
            label_logits_BxC = jnp.take_along_axis(logits_BxCxV, labels_BxC[:, :, None], axis=-1)[:, :, 0]
            return losses_BxC, label_logits_BxC == logits_BxCxV.max(-1)

        num_rows, num_predictions = labels_BxP.shape
        logits_bytes = 4 * labels_BxP.size * len(table_VxE)
        devices = shards("batch", num_rows) * shards("vocab", len(table_VxE))
        num_chunks = min(math.ceil(logits_bytes / devices / LOGITS_BYTES), num_predictions)
        if num_chunks <= 1:
            return of_chunk((x_BxPxE, labels_BxP))
        size = math.ceil(num_predictions / num_chunks)
        num_chunks = math.ceil(num_predictions / size)  # with the size rounded up, fewer may do

        def chunks(array: jax.Array) -> jax.Array:
            rest = [(0, 0)] * (array.ndim - 2)
            padded = jnp.pad(array, ((0, 0), (0, num_chunks * size - num_predictions), *rest))
            return jnp.moveaxis(padded.reshape(num_rows, num_chunks, size, *array.shape[2:]), 1, 0)

        results = jax.lax.map(jax.checkpoint(of_chunk), (chunks(x_BxPxE), chunks(labels_BxP)))
        losses, correct = (jnp.moveaxis(result, 0, 1).reshape(num_rows, -1)[:, :num_predictions] for result in results)
        return losses, correct

    def _product(self, x_BxPxE: jax.Array, table_VxE: jax.Array) -> jax.Array:
        table_VxE = table_VxE.astype(x_BxPxE.dtype)
        logits = jnp.einsum("bpe,ve->bpv", x_BxPxE, table_VxE, preferred_element_type=jnp.float32)
        # As a product, whose gradient is one too: on CPU, XLA sums over the long side of an array slowly.
        return logits + jnp.einsum("bp,v->bpv", jnp.ones(logits.shape[:2]), self.bias[...].astype(jnp.float32))

    def logits(self, encoder: Encoder, output: EncoderOutput, attention_mask_BxL: jax.Array) -> jax.Array:
        return self(output.last_hidden_state, encoder.embeddings.tokens.embedding[...])


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
