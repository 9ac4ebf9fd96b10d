"""Token ids to hidden states: embeddings, the stack of layers (stack.py), the pooler.

Shapes: B batch, L length, P positions asked for, K examples in a row, D hidden_size, N layers, G groups of layer weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.attention.contract import Visibility
from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import dense, dropout, embedding, norm, split, take_positions
from bert_jax.model.stack import run_layers, stacked_layers
from bert_jax.parallel.mesh import constrain


class EncoderOutput(NamedTuple):
    last_hidden_state: jax.Array  # [B, L, D], or [B, P, D] when positions were asked for
    pooled: jax.Array | None  # [B, D], or [B, K, D] for rows of several examples
    hidden_states: jax.Array | None  # [N + 1, B, L, D], embeddings first, the last normed; only when asked for


class Embeddings(nnx.Module):
    """Sum of token, position and token-type rows, normalised; projected where `embedding_size` gives them their own width.

    Without tables of its own, it uses those and the norm of another encoder (see `Encoder`).
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, has_tables: bool = True):
        self.config = config
        if has_tables:
            self.tokens = embedding(config, config.vocab_size, "vocab", rngs)
            if config.positions == "learned":
                self.positions = embedding(config, config.max_positions + config.position_offset, None, rngs)
            if config.num_token_types:
                self.token_types = embedding(config, config.num_token_types, None, rngs)
            self.norm = norm(config, config.table_width, rngs)
        if config.embedding_size:
            self.projection = dense(config, config.table_width, config.hidden_size, (None, "embed"), rngs)

    def __call__(
        self,
        input_ids_BxL: jax.Array,
        token_type_ids_BxL: jax.Array | None,
        position_ids_BxL: jax.Array | None,
        keys_B: jax.Array | None,
        shared: "Embeddings | None" = None,
    ) -> jax.Array:
        tables = shared or self
        x = tables.tokens(input_ids_BxL)
        if self.config.positions == "learned":
            rows = position_rows(self.config.position_offset, input_ids_BxL, position_ids_BxL)
            table = tables.positions.embedding[...]
            in_order = table[: input_ids_BxL.shape[1]][None]
            x += (in_order if rows is None else table[rows]).astype(x.dtype)
        if self.config.num_token_types:
            types_BxL = jnp.zeros_like(input_ids_BxL) if token_type_ids_BxL is None else token_type_ids_BxL
            x += tables.token_types(types_BxL)
        x = dropout(tables.norm(x), self.config.dropout, keys_B)
        return self.projection(x) if self.config.embedding_size else x


def position_rows(offset: int, input_ids_BxL: jax.Array, position_ids_BxL: jax.Array | None) -> jax.Array | None:
    """Returns rows [B, L] of the position table; None if they are 0, 1, 2, ... in each row of the batch.

    With an `offset` they are derived from the ids as in fairseq (utils.py, make_positions): padding, whose id is `offset` - 1,
    has the row of that number, and the other tokens of an example are counted from `offset`. So positions do not depend on
    the side that is padded, and a token with that id within a text is not counted, as in the original.
    """
    if not offset:
        return position_ids_BxL
    is_counted_BxL = (input_ids_BxL != offset - 1).astype(jnp.int32)
    counts_BxL = jnp.cumsum(is_counted_BxL, axis=1)
    if position_ids_BxL is not None:  # subtracts the tokens of earlier examples in the row
        starts_BxL = jnp.arange(input_ids_BxL.shape[1])[None] - position_ids_BxL
        counts_BxL -= jnp.take_along_axis(counts_BxL - is_counted_BxL, starts_BxL, axis=1)
    return offset - 1 + counts_BxL * is_counted_BxL


class LayerMix(nnx.Module):
    """A weighted mean of the hidden states of all layers, times a number; both are learned (Peters et al. 2018, equation 1)."""

    def __init__(self, config: EncoderConfig):
        dtype = jnp.dtype(config.param_dtype)
        self.weights = nnx.Param(jnp.zeros(config.num_layers + 1, dtype), axes=(None,))  # before a softmax
        self.size = nnx.Param(jnp.ones(1, dtype), axes=(None,))

    def __call__(self, hidden_states_NxBxLxD: jax.Array) -> jax.Array:
        """Returns the mean [B, L, D]; the first of the hidden states are the embeddings."""
        weights_N = self.size[...] * jax.nn.softmax(self.weights[...].astype(jnp.float32))
        return jnp.einsum("nbld,n->bld", hidden_states_NxBxLxD, weights_N.astype(hidden_states_NxBxLxD.dtype))


class Encoder(nnx.Module):
    """A BERT-family encoder.

    Without tables of embeddings of its own (`has_tables`), it is called with the embeddings of another one.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, has_tables: bool = True):
        self.config = config
        self.embeddings = Embeddings(config, rngs, has_tables)
        self.layers = stacked_layers(config, rngs)
        if config.norm_position == "pre":
            self.final_norm = norm(config, config.hidden_size, rngs)
        if config.pooler:
            self.pooler = dense(config, config.hidden_size, config.hidden_size, ("embed", None), rngs)
        if config.scalar_mix:
            self.mix = LayerMix(config)

    def __call__(
        self,
        input_ids_BxL: jax.Array,
        attention_mask_BxL: jax.Array | None = None,
        token_type_ids_BxL: jax.Array | None = None,
        *,
        keys_B: jax.Array | None = None,
        lengths_B: jax.Array | None = None,
        all_hidden_states: bool = False,
        positions_BxP: jax.Array | None = None,
        position_ids_BxL: jax.Array | None = None,
        segment_ids_BxL: jax.Array | None = None,
        starts_BxK: jax.Array | None = None,
        embeddings: Embeddings | None = None,
    ) -> EncoderOutput:
        """Encodes a batch of sequences, or of rows that hold several examples each, none of which sees another.

        Args:
          input_ids_BxL: token ids.
          attention_mask_BxL: 1 for tokens, 0 for padding, on either side; all ones when absent; not read if there are lengths.
          token_type_ids_BxL: 0 or 1, which text of a pair each token belongs to; all zero when absent.
            Unused by encoders without token types.
          keys_B: dropout keys of the rows; without them nothing is dropped.
          lengths_B: the tokens of each row, where padding is on the right: more implementations of attention take them.
          all_hidden_states: return the states after the embeddings and every layer too.
          positions_BxP: the positions whose last hidden states are wanted; all when absent.
          position_ids_BxL: for rows of several examples, the position of each token within its example. Such rows may be
            longer than `max_positions`, which then limits the position ids; the caller must keep them below it, since their
            values are not checked here.
          segment_ids_BxL: for such rows, the number of each token's example, from 1, and 0 for padding.
          starts_BxK: for such rows, where the examples begin: what the pooler reads.
          embeddings: of another encoder, whose tables one without tables uses.

        Raises:
          ValueError: sequences longer than `max_positions`, without position ids.
        """
        config = self.config
        if input_ids_BxL.shape[1] > config.max_positions and position_ids_BxL is None:
            raise ValueError(
                f"sequence length {input_ids_BxL.shape[1]} exceeds model.max_positions={config.max_positions}"
            )
        embeddings_keys_B, layers_keys_B = split(keys_B, 2)
        x_BxLxD = self.embeddings(input_ids_BxL, token_type_ids_BxL, position_ids_BxL, embeddings_keys_B, embeddings)
        x_BxLxD = embedded_BxLxD = constrain(x_BxLxD, "batch", "length", "hidden")
        first_BxK = jnp.zeros_like(input_ids_BxL[:, :1]) if starts_BxK is None else starts_BxK
        if positions_BxP is not None and config.pooler:
            positions_BxP = jnp.concatenate([first_BxK, positions_BxP], axis=1)  # the pooler reads those too
        # From here on [B, L, D], or [B, P, D] where positions are asked for.
        states, hidden_states = run_layers(
            config,
            self.layers,
            x_BxLxD,
            Visibility(lengths_B, attention_mask_BxL, segment_ids_BxL),
            layers_keys_B,
            all_hidden_states or config.scalar_mix,
            None if config.scalar_mix else positions_BxP,
        )
        if config.norm_position == "pre":
            states = self.final_norm(states)
            if hidden_states is not None:
                hidden_states = hidden_states.at[-1].set(self.final_norm(hidden_states[-1]))
        if hidden_states is not None:
            hidden_states = jnp.concatenate([embedded_BxLxD[None], hidden_states])
        if config.scalar_mix:
            assert hidden_states is not None
            states = self.mix(hidden_states)
            states = states if positions_BxP is None else take_positions(states, positions_BxP)
        if not config.pooler:
            return EncoderOutput(states, None, hidden_states if all_hidden_states else None)
        if positions_BxP is None:
            first_BxKxD = take_positions(states, first_BxK)
        else:
            first_BxKxD, states = jnp.split(states, [first_BxK.shape[1]], axis=1)
        pooled_BxKxD = jnp.tanh(self.pooler(first_BxKxD))
        pooled = pooled_BxKxD[:, 0] if starts_BxK is None else pooled_BxKxD
        return EncoderOutput(states, pooled, hidden_states if all_hidden_states else None)
