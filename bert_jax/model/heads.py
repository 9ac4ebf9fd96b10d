"""What sits on top of the encoder: the MLM transform tied to the token table, and classifiers of the pooled state.

Shapes: B batch, P predictions, D hidden_size, E table_width, V vocabulary, C classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import ACTIVATIONS, dense, dropout, norm


class MaskedLMHead(nnx.Module):
    """dense -> activation -> norm -> product with the token table + a bias for each token (Devlin et al. 2019)."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.dense = dense(config, config.hidden_size, config.table_width, ("embed", None), rngs)
        self.norm = norm(config, config.table_width, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.dtype(config.param_dtype)), axes=("vocab",))

    def __call__(self, hidden_BxPxD: jax.Array, table_VxE: jax.Array) -> jax.Array:
        """Logits [B, P, V], float32."""
        x_BxPxE = self.norm(ACTIVATIONS[self.config.activation](self.dense(hidden_BxPxD)))
        table_VxE = table_VxE.astype(x_BxPxE.dtype)
        logits = jnp.einsum("bpe,ve->bpv", x_BxPxE, table_VxE, preferred_element_type=jnp.float32)
        # As a product, whose gradient is one too: on CPU, XLA sums over the long side of an array slowly.
        return logits + jnp.einsum("bp,v->bpv", jnp.ones(logits.shape[:2]), self.bias[...].astype(jnp.float32))


class PooledClassifier(nnx.Module):
    """dropout -> dense over the pooled state: next-sentence and sequence classification."""

    def __init__(self, config: EncoderConfig, num_classes: int, dropout: float, rngs: nnx.Rngs):
        self.dropout = dropout
        self.dense = dense(config, config.hidden_size, num_classes, ("embed", None), rngs)

    def __call__(self, pooled_BxD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits [B, C], float32."""
        return self.dense(dropout(pooled_BxD, self.dropout, key)).astype(jnp.float32)
