"""The stack of encoder layers: stored stacked, run by `jax.lax.scan`.

Shapes: B batch, L length, P positions asked for, D hidden_size, N layers, G groups of layer weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.attention.contract import Visibility
from bert_jax.model.attention.layer import SelfAttention
from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import FeedForward, dropout, norm, split, take_positions
from bert_jax.parallel.mesh import constrain, platform

# Named results that are kept for the backward pass: `hidden`, those as wide as the hidden states (queries, keys, values and
# outputs), and `mlp_inner`, the wider ones inside the feed-forward layers.
_KEPT = {"full": (), "mlp": ("hidden",), "dots": ("hidden", "mlp_inner")}
REMAT_POLICIES = {name: jax.checkpoint_policies.save_only_these_names(*kept) for name, kept in _KEPT.items()}


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
        visibility: Visibility,
        keys_B: jax.Array | None,
        is_first: jax.Array | bool,
        positions_BxP: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the states [B, L, D] after the layer, or [B, P, D] at the positions named; see `SelfAttention`."""
        weights_keys_B, attention_keys_B, mlp_keys_B = split(keys_B, 3)
        pre = self.config.norm_position == "pre"
        rate = self.config.dropout

        inner = self.attention_norm(x_BxLxD) if pre else x_BxLxD
        if pre and not self.config.first_attention_norm and is_first is not False:
            # The scan has one body for all layers, so the first one has a norm, too, which it does not use.
            inner = jnp.where(is_first, x_BxLxD, inner)
        attended = self.attention(inner, visibility, weights_keys_B, positions_BxP)
        if positions_BxP is not None:
            x_BxLxD = take_positions(x_BxLxD, positions_BxP)
        x_BxLxD += dropout(attended, rate, attention_keys_B)
        x_BxLxD = x_BxLxD if pre else self.attention_norm(x_BxLxD)

        inner = self.mlp_norm(x_BxLxD) if pre else x_BxLxD
        x_BxLxD += dropout(self.mlp(inner), rate, mlp_keys_B)
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
    visibility: Visibility,
    keys_B: jax.Array | None,
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
    keys = None if keys_B is None else split(keys_B, config.num_layers)

    def layer(index: int, x, inputs, is_first: jax.Array | bool, positions_BxP=None):
        def run(x, weights, keys_B):
            of_layer = dataclasses.replace(
                visibility, window=config.window(index), direction=config.attention_direction
            )
            return nnx.merge(graphdef, weights)(x, of_layer, keys_B, is_first, positions_BxP)

        return (run if config.remat == "none" else jax.checkpoint(run, policy=REMAT_POLICIES[config.remat]))(x, *inputs)

    def block(x, inputs):
        number, *layers_of_block = inputs
        states = []
        for index, layer_inputs in enumerate(layers_of_block):  # in the block: its windows repeat in each
            x = layer(index, x, layer_inputs, index == 0 and number == 0)
            states.append(x)
        return x, jnp.stack(states) if all_hidden_states else None

    size = config.layers_per_group if config.repeats > 1 else config.global_attention_every
    last_alone = positions_BxP is not None and not all_hidden_states and config.repeats == 1
    num_blocks = (config.num_layers - last_alone) // size
    unroll = config.scan_unroll // size or (not config.scan_unroll and keys_B is not None and platform() == "cpu")
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
    per_block = jax.tree.map(lambda stacked: stacked.reshape(groups, repeats, *stacked.shape[1:]), per_block)
    return jax.lax.scan(group, x_BxLxD, (by_place(weights, size, groups), *per_block), unroll=unroll)


def by_place(stacked, size: int, num_blocks: int) -> list:
    """Returns, for each place in a block of `size` layers, a tree of stacked arrays for the layers there [num_blocks, ...].

    They are slices, since XLA copies all weights where they are reshaped, and in each layer again.
    """
    stop = num_blocks * size
    return [jax.tree.map(lambda array, place=place: array[place:stop:size], stacked) for place in range(size)]
