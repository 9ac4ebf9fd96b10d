"""The heads of pretraining. Which dense layers, activations and norms a family has there are values of its config.

A head's `logits(encoder, output, attention_mask_BxL)` computes those of the whole batch from the encoder and its output at all
positions (see model/build.py): [B, L, ...] for each position, or [B, C] for each sequence.

Shapes: B batch, L length, P predictions, D hidden_size, E table_width, V vocabulary, C classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import Encoder, EncoderOutput
from bert_jax.model.layers import ACTIVATIONS, dense, norm


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
        x_BxPxE = self.transform(hidden_BxPxD)
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
