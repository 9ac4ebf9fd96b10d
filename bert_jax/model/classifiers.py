"""The heads of fine-tuning, and what they read of the encoder's output. See heads.py for their method `logits`.

Shapes: B batch, L length, P positions, K examples in a row, D hidden_size, C classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import Encoder, EncoderOutput
from bert_jax.model.heads import Transform
from bert_jax.model.layers import ACTIVATIONS, dense, dropout


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

    def __call__(self, state: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Logits [..., C], float32, from the result [..., D] of `sequence_state`."""
        if self.config.classifier == "transform":
            state = self.transform(state)
        elif self.config.classifier != "pooled":
            state = ACTIVATIONS[self.config.classifier](self.hidden(state))
        return self.dense(dropout(state, self.dropout, keys_B)).astype(jnp.float32)

    def logits(self, encoder: Encoder, output: EncoderOutput, attention_mask_BxL: jax.Array) -> jax.Array:
        return self(sequence_state(self.config, output, attention_mask_BxL))


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

    def __call__(self, hidden_BxLxD: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Logits [B, L, C], float32."""
        x_BxLxD = self.transform(hidden_BxLxD) if self.has_transform else hidden_BxLxD
        return self.dense(dropout(x_BxLxD, self.dropout, keys_B)).astype(jnp.float32)

    def logits(self, encoder: Encoder, output: EncoderOutput, attention_mask_BxL: jax.Array) -> jax.Array:
        return self(output.last_hidden_state)


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
