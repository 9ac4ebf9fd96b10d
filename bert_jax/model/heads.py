"""What sits on top of the encoder. Which dense layers, activations and norms a family has there are values of its config.

A head's `logits(encoder, output, attention_mask_BxL)` computes those of the whole batch from the encoder and its output at all
positions (see model/build.py): [B, L, ...] for each position, or [B, C] for each sequence.

Shapes: B batch, L length, P predictions, K examples in a row, D hidden_size, E table_width, V vocabulary, C classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import Encoder, EncoderOutput
from bert_jax.model.layers import ACTIVATIONS, dense, dropout, norm


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


class SequenceClassifier(nnx.Module):
    """Classes, or a number, for a whole sequence: dropout -> dense over features that `config.classifier` names.

    `pooled`: the pooled state (BERT, ALBERT). `tanh`, `relu`, `gelu`: a dense layer of its own with this activation over the
    first position (RoBERTa, DistilBERT, ELECTRA). `transform`: a `Transform` of the first position or of the mean over
    positions (ModernBERT).
    """

    def __init__(self, config: EncoderConfig, num_classes: int, dropout: float, rngs: nnx.Rngs):
        self.config = config
        self.dropout = dropout
        if config.classifier == "transform":
            self.transform = Transform(config, config.hidden_size, rngs)
        elif config.classifier != "pooled":
            self.hidden = dense(config, config.hidden_size, config.hidden_size, ("embed", None), rngs)
        self.dense = dense(config, config.hidden_size, num_classes, ("embed", None), rngs, use_bias=True)

    def __call__(self, state: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits [..., C], float32, from the result [..., D] of `sequence_state`."""
        if self.config.classifier == "transform":
            state = self.transform(state)
        elif self.config.classifier != "pooled":
            state = ACTIVATIONS[self.config.classifier](self.hidden(state))
        return self.dense(dropout(state, self.dropout, key)).astype(jnp.float32)

    def logits(self, encoder: Encoder, output: EncoderOutput, attention_mask_BxL: jax.Array) -> jax.Array:
        return self(sequence_state(self.config, output, attention_mask_BxL))


def sequence_state(
    config: EncoderConfig, output: EncoderOutput, segment_ids_BxL: jax.Array, starts_BxK: jax.Array | None = None
) -> jax.Array:
    """Returns what a `SequenceClassifier` reads: [B, D], or [B, K, D] for rows of several examples from `starts_BxK` on.

    The last hidden states are those of all positions, or for such rows those of `positions_read`. The segment ids of rows of
    one example are their attention mask.
    """
    if config.classifier == "pooled":
        assert output.pooled is not None
        return output.pooled
    hidden = output.last_hidden_state
    if config.classifier_pooling == "first":
        return hidden[:, 0] if starts_BxK is None else hidden
    if starts_BxK is None:
        return mean_over_tokens(hidden, segment_ids_BxL)
    return means_over_examples(hidden, segment_ids_BxL, starts_BxK.shape[1])


def positions_read(config: EncoderConfig, length: int, starts_BxK: jax.Array) -> jax.Array | None:
    """Positions [B, P] whose last hidden states `sequence_state` reads; None where it is the pooled state."""
    if config.classifier == "pooled":
        return None
    if config.classifier_pooling == "first":
        return starts_BxK
    return jnp.broadcast_to(jnp.arange(length), (len(starts_BxK), length))


def means_over_examples(hidden_BxLxD: jax.Array, segment_ids_BxL: jax.Array, most: int) -> jax.Array:
    """Returns the mean [B, K, D] over the tokens of each example of a row, which has at most K = `most` of them."""
    numbers_K = jnp.arange(1, most + 1)
    of_example_BxKxL = (segment_ids_BxL[:, None] == numbers_K[None, :, None]).astype(hidden_BxLxD.dtype)
    shares_BxKxL = of_example_BxKxL / jnp.maximum(of_example_BxKxL.sum(2, keepdims=True), 1)
    return jnp.einsum("bld,bkl->bkd", hidden_BxLxD, shares_BxKxL)


def mean_over_tokens(hidden_BxLxD: jax.Array, attention_mask_BxL: jax.Array) -> jax.Array:
    """Returns the mean [B, D] of the states of a row that are not padding."""
    weights_BxL = attention_mask_BxL.astype(hidden_BxLxD.dtype)
    return jnp.einsum("bld,bl->bd", hidden_BxLxD, weights_BxL / weights_BxL.sum(1, keepdims=True))


class TokenClassifier(nnx.Module):
    """Classes for each token: dropout -> dense, of a `Transform` where `config.classifier` says so (ModernBERT).

    With two classes it is the head of extractive question answering: the logits of an answer's start and of its end.
    """

    def __init__(self, config: EncoderConfig, num_classes: int, dropout: float, rngs: nnx.Rngs):
        self.dropout = dropout
        self.has_transform = config.classifier == "transform"
        if self.has_transform:
            self.transform = Transform(config, config.hidden_size, rngs)
        self.dense = dense(config, config.hidden_size, num_classes, ("embed", None), rngs, use_bias=True)

    def __call__(self, hidden_BxLxD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits [B, L, C], float32."""
        x_BxLxD = self.transform(hidden_BxLxD) if self.has_transform else hidden_BxLxD
        return self.dense(dropout(x_BxLxD, self.dropout, key)).astype(jnp.float32)

    def logits(self, encoder: Encoder, output: EncoderOutput, attention_mask_BxL: jax.Array) -> jax.Array:
        return self(output.last_hidden_state)


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
