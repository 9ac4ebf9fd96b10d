"""Token ids to hidden states: embeddings, the stack of layers (stored stacked, run by `jax.lax.scan`), the pooler.

Shapes: B batch, L length, P positions asked for, K examples in a row, D hidden_size, N layers, G groups of layer weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.attention.layer import SelfAttention
from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import FeedForward, dense, dropout, embedding, norm, split, take_positions
from bert_jax.parallel.mesh import constrain, platform

REMAT_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class EncoderOutput(NamedTuple):
    last_hidden_state: jax.Array  # [B, L, D], or [B, P, D] when positions were asked for
    pooled: jax.Array | None  # [B, D], or [B, K, D] for rows of several examples
    hidden_states: jax.Array | None  # [N + 1, B, L, D], embeddings first, the last normed; only when asked for


class Embeddings(nnx.Module):
    """Sum of token, position and token-type rows, normalised; projected where `embedding_size` gives them their own width."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
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
        key: jax.Array | None,
    ) -> jax.Array:
        x = self.tokens(input_ids_BxL)
        if self.config.positions == "learned":
            rows = position_rows(self.config.position_offset, input_ids_BxL, position_ids_BxL)
            table = self.positions.embedding[...]
            in_order = table[: input_ids_BxL.shape[1]][None]
            x += (in_order if rows is None else table[rows]).astype(x.dtype)
        if self.config.num_token_types:
            x += self.token_types(jnp.zeros_like(input_ids_BxL) if token_type_ids_BxL is None else token_type_ids_BxL)
        x = dropout(self.norm(x), self.config.dropout, key)
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


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each with a residual connection and a norm after ('post') or before it ('pre')."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention = SelfAttention(config, rngs)
        self.attention_norm = norm(config, config.hidden_size, rngs)
        self.mlp = FeedForward(config, rngs)
        self.mlp_norm = norm(config, config.hidden_size, rngs)

    def __call__(
        self,
        x_BxLxD: jax.Array,
        attention_mask_BxL: jax.Array | None,
        segment_ids_BxL: jax.Array | None,
        window: int | None,
        key: jax.Array | None,
        is_first: jax.Array | bool,
        positions_BxP: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the states [B, L, D] after the layer, or [B, P, D] at the positions named; see `SelfAttention`."""
        weights_key, attention_key, mlp_key = split(key, 3)
        pre = self.config.norm_position == "pre"
        rate = self.config.dropout

        inner = self.attention_norm(x_BxLxD) if pre else x_BxLxD
        if pre and not self.config.first_attention_norm and is_first is not False:
            inner = jnp.where(
                is_first, x_BxLxD, inner
            )  # one body of the scan for all layers, so its unused norm is there
        attended = self.attention(inner, attention_mask_BxL, segment_ids_BxL, window, weights_key, positions_BxP)
        if positions_BxP is not None:
            x_BxLxD = take_positions(x_BxLxD, positions_BxP)
        x_BxLxD += dropout(attended, rate, attention_key)
        x_BxLxD = x_BxLxD if pre else self.attention_norm(x_BxLxD)

        inner = self.mlp_norm(x_BxLxD) if pre else x_BxLxD
        x_BxLxD += dropout(self.mlp(inner), rate, mlp_key)
        x_BxLxD = x_BxLxD if pre else self.mlp_norm(x_BxLxD)
        return constrain(x_BxLxD, "batch", "length", "hidden")


def stacked_layers(config: EncoderConfig, rngs: nnx.Rngs) -> EncoderLayer:
    """Returns the weights of all layers in one module, stacked along a first axis of groups x layers_per_group."""

    @nnx.split_rngs(splits=config.groups * config.layers_per_group)
    @nnx.vmap(in_axes=(None, 0), out_axes=0)
    def make(config, rngs):
        return EncoderLayer(config, rngs)

    return make(config, rngs)


def run_layers(
    config: EncoderConfig,
    layers: EncoderLayer,
    x_BxLxD: jax.Array,
    attention_mask_BxL: jax.Array | None,
    segment_ids_BxL: jax.Array | None,
    key: jax.Array | None,
    all_hidden_states: bool,
    positions_BxP: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs the stack; returns the last hidden states and, when asked for, those after every layer [N, B, L, D].

    The body of the scan over layers is a block of them, so that what a layer attends to is known when it is traced: the
    pattern of `global_attention_every` layers (BERT: one), or a group that runs several times. Layers after the last whole
    pattern run one by one.

    Where only some positions of the last hidden states are asked for, the last layer is computed for them alone, keys and
    values apart: for 15% of the positions of BERT-base that is 6% of the operations. Not so when its weights serve other
    layers too, or all hidden states are wanted; then the positions are taken from the whole.
    """
    graphdef, weights = nnx.split(layers)
    keys = None if key is None else jax.random.split(key, config.num_layers)

    def layer(number: int, x, inputs, is_first: jax.Array | bool, positions_BxP=None):
        def run(x, weights, key):
            module, window = nnx.merge(graphdef, weights), config.window(number)
            return module(x, attention_mask_BxL, segment_ids_BxL, window, key, is_first, positions_BxP)

        return (run if config.remat == "none" else jax.checkpoint(run, policy=REMAT_POLICIES[config.remat]))(x, *inputs)

    def block(x, inputs):
        number, *layers_of_block = inputs
        states = []
        for place, layer_inputs in enumerate(layers_of_block):
            x = layer(place, x, layer_inputs, place == 0 and number == 0)
            states.append(x)
        return x, jnp.stack(states) if all_hidden_states else None

    size = config.layers_per_group if config.repeats > 1 else config.global_attention_every
    last_alone = positions_BxP is not None and not all_hidden_states and config.repeats == 1
    num_blocks = (config.num_layers - last_alone) // size
    unroll = config.scan_unroll // size or (not config.scan_unroll and key is not None and platform() == "cpu")
    if config.repeats > 1:
        x_BxLxD, hidden_states = run_groups(config, block, x_BxLxD, weights, keys, unroll)
    else:
        layers_of_blocks = by_place((weights, keys), size, num_blocks)
        x_BxLxD, hidden_states = jax.lax.scan(
            block, x_BxLxD, (jnp.arange(num_blocks), *layers_of_blocks), unroll=unroll
        )
    if hidden_states is not None:
        hidden_states = hidden_states.reshape(-1, *x_BxLxD.shape)
    for number in range(num_blocks * size, config.num_layers):
        inputs = jax.tree.map(lambda stacked, number=number: stacked[number], (weights, keys))
        positions = positions_BxP if last_alone and number == config.num_layers - 1 else None
        x_BxLxD = layer(number, x_BxLxD, inputs, number == 0, positions)
        if hidden_states is not None:
            hidden_states = jnp.concatenate([hidden_states, x_BxLxD[None]])
    if positions_BxP is not None and not last_alone:
        x_BxLxD = take_positions(x_BxLxD, positions_BxP)
    return x_BxLxD, hidden_states


def run_groups(
    config: EncoderConfig, block, x_BxLxD: jax.Array, weights, keys, unroll: int | bool
) -> tuple[jax.Array, jax.Array | None]:
    """Runs layers that share weights: G groups, each `repeats` times over (ALBERT: one group, N times)."""
    groups, repeats, size = config.groups, config.repeats, config.layers_per_group

    def group(x, inputs):
        weights, *per_block = inputs

        def run(x, inputs):
            number, *keys = inputs
            return block(x, (number, *zip(weights, keys, strict=True)))

        return jax.lax.scan(run, x, tuple(per_block))

    numbers = jnp.arange(groups * repeats)
    per_block = [numbers, *by_place(keys, size, groups * repeats)]
    per_block = jax.tree.map(lambda stacked: stacked.reshape(groups, repeats), per_block)
    return jax.lax.scan(group, x_BxLxD, (by_place(weights, size, groups), *per_block), unroll=unroll)


def by_place(stacked, size: int, num_blocks: int) -> list:
    """Returns, for each place in a block of `size` layers, a tree of stacked arrays for the layers there [num_blocks, ...].

    They are slices, since XLA copies all weights where they are reshaped, and in each layer again.
    """
    stop = num_blocks * size
    return [jax.tree.map(lambda array, place=place: array[place:stop:size], stacked) for place in range(size)]


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
    """A BERT-family encoder."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, rngs)
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
        key: jax.Array | None = None,
        all_hidden_states: bool = False,
        positions_BxP: jax.Array | None = None,
        position_ids_BxL: jax.Array | None = None,
        segment_ids_BxL: jax.Array | None = None,
        starts_BxK: jax.Array | None = None,
    ) -> EncoderOutput:
        """Encodes a batch of sequences, or of rows that hold several examples each, none of which sees another.

        Args:
          input_ids_BxL: token ids.
          attention_mask_BxL: 1 for tokens, 0 for padding, on either side; all ones when absent.
          token_type_ids_BxL: segment of each token; all zero when absent. Unused by encoders without token types.
          key: dropout key; without one nothing is dropped.
          all_hidden_states: return the states after the embeddings and every layer too.
          positions_BxP: the positions whose last hidden states are wanted; all when absent.
          position_ids_BxL: for rows of several examples, the position of each token within its example. Such rows may be
            longer than `max_positions`, which then limits the position ids; the caller must keep them below it, since their
            values are not checked here.
          segment_ids_BxL: for such rows, the number of each token's example, from 1, and 0 for padding.
          starts_BxK: for such rows, where the examples begin: what the pooler reads.

        Raises:
          ValueError: sequences longer than `max_positions`, without position ids.
        """
        config = self.config
        if input_ids_BxL.shape[1] > config.max_positions and position_ids_BxL is None:
            raise ValueError(
                f"sequence length {input_ids_BxL.shape[1]} exceeds model.max_positions={config.max_positions}"
            )
        embeddings_key, layers_key = split(key, 2)
        x_BxLxD = self.embeddings(input_ids_BxL, token_type_ids_BxL, position_ids_BxL, embeddings_key)
        x_BxLxD = embedded_BxLxD = constrain(x_BxLxD, "batch", "length", "hidden")
        first_BxK = jnp.zeros_like(input_ids_BxL[:, :1]) if starts_BxK is None else starts_BxK
        if positions_BxP is not None and config.pooler:
            positions_BxP = jnp.concatenate([first_BxK, positions_BxP], axis=1)  # the pooler reads those too
        x_BxLxD, hidden_states = run_layers(
            config,
            self.layers,
            x_BxLxD,
            attention_mask_BxL,
            segment_ids_BxL,
            layers_key,
            all_hidden_states or config.scalar_mix,
            None if config.scalar_mix else positions_BxP,
        )
        if config.norm_position == "pre":
            x_BxLxD = self.final_norm(x_BxLxD)
            if hidden_states is not None:
                hidden_states = hidden_states.at[-1].set(self.final_norm(hidden_states[-1]))
        if hidden_states is not None:
            hidden_states = jnp.concatenate([embedded_BxLxD[None], hidden_states])
        if config.scalar_mix:
            assert hidden_states is not None
            x_BxLxD = self.mix(hidden_states)
            x_BxLxD = x_BxLxD if positions_BxP is None else take_positions(x_BxLxD, positions_BxP)
        pooled = None
        if config.pooler:
            if positions_BxP is None:
                first_BxKxD = take_positions(x_BxLxD, first_BxK)
            else:
                first_BxKxD, x_BxLxD = jnp.split(x_BxLxD, [first_BxK.shape[1]], axis=1)
            pooled_BxKxD = jnp.tanh(self.pooler(first_BxKxD))
            pooled = pooled_BxKxD[:, 0] if starts_BxK is None else pooled_BxKxD
        return EncoderOutput(x_BxLxD, pooled, hidden_states if all_hidden_states else None)
