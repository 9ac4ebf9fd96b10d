"""Attention by blocks of queries, with XLA only: memory grows with the length and not with its square, on every platform.

A block of queries sees all keys at once, so its softmax needs no second pass; the backward pass computes its scores again.
Where a layer attends within a window and all tokens are queries, a block sees only its neighbours, so that operations grow with
the length, too.

Shapes: B batch, Q queries, K keys, H heads, S head size, N blocks, T tokens of a block.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bert_jax.model.attention.contract import ONE_SIDE, Request, Visibility
from bert_jax.model.attention.plain import visible, weighted_mean
from bert_jax.model.layers import fold_in

BLOCK = 128  # queries of a block: as wide as a TPU's matrix unit
LOCAL_BLOCK = 64  # at least; a block is as long as the window, so that its neighbours hold all that it sees
_PADDING = -1  # segment of keys that no query sees


def unsupported(request: Request) -> str | None:
    """Returns why it cannot compute the request; None if it can."""
    return ONE_SIDE if request.direction != "both" else None


def attend(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    visibility: Visibility,
    dropout_rate: float,
    dropout_keys_B: jax.Array | None,
    block: int = BLOCK,
    local_block: int = LOCAL_BLOCK,
) -> jax.Array:
    """Attends as `attend.attend`, in blocks of `block` queries (`local_block` at least, if only their neighbours are seen)."""
    inputs = q_BxQxHxS, k_BxKxHxS, v_BxKxHxS, visibility, dropout_rate, dropout_keys_B
    if visibility.window is not None and visibility.positions_BxQ is None:
        size = max(visibility.window, local_block)
        if 3 * size < k_BxKxHxS.shape[1]:
            return _among_neighbours(*inputs, visibility.window, size)
    return _among_all(*inputs, block)


def _among_all(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    visibility: Visibility,
    dropout_rate: float,
    dropout_keys_B: jax.Array | None,
    block: int,
) -> jax.Array:
    """Attends with a loop over blocks of queries, each of which sees all keys."""
    batch, num_queries = q_BxQxHxS.shape[:2]
    length = k_BxKxHxS.shape[1]
    places_BxQ = visibility.positions_BxQ
    if places_BxQ is None:
        places_BxQ = jnp.broadcast_to(jnp.arange(num_queries), (batch, num_queries))

    @jax.checkpoint
    def run(q_BxQxHxS, k_BxKxHxS, v_BxKxHxS):
        # The loop adds up the gradients of keys and values over the blocks: in float32, as they are in float32 here.
        k_float, v_float = k_BxKxHxS.astype(jnp.float32), v_BxKxHxS.astype(jnp.float32)

        @jax.checkpoint
        def attend_block(q_BxTxHxS, places_BxT, number):
            of_block = dataclasses.replace(visibility, positions_BxQ=places_BxT)
            k, v = k_float.astype(q_BxTxHxS.dtype), v_float.astype(q_BxTxHxS.dtype)
            return weighted_mean(
                q_BxTxHxS, k, v, visible(length, of_block), dropout_rate, fold_in(dropout_keys_B, number)
            )

        blocks = _blocks(q_BxQxHxS, block), _blocks(places_BxQ, block), jnp.arange(-(-num_queries // block))
        _, attended = jax.lax.scan(lambda _, inputs: (None, attend_block(*inputs)), None, blocks)
        return jnp.moveaxis(attended, 0, 1).reshape(batch, -1, *q_BxQxHxS.shape[2:])[:, :num_queries]

    return run(q_BxQxHxS, k_BxKxHxS, v_BxKxHxS)


def _blocks(x_BxQ: jax.Array, block: int) -> jax.Array:
    """Returns blocks [N, B, T, ...] of an array [B, Q, ...]; the last one is filled up with zeros."""
    return jnp.moveaxis(_rows_of_blocks(x_BxQ, block, 0, 0), 1, 0)


def _among_neighbours(
    q_BxLxHxS: jax.Array,
    k_BxLxHxS: jax.Array,
    v_BxLxHxS: jax.Array,
    visibility: Visibility,
    dropout_rate: float,
    dropout_keys_B: jax.Array | None,
    window: int,
    size: int,
) -> jax.Array:
    """Attends with all blocks at once, each of which sees itself and the ones before and after it."""
    batch, length = q_BxLxHxS.shape[:2]
    ones_1xL = jnp.ones((1, length), jnp.int32)
    of_queries, of_keys = visibility.segment_ids(length) or (ones_1xL, ones_1xL)
    of_queries = jnp.broadcast_to(of_queries, (of_queries.shape[0], length))

    @jax.checkpoint
    def run(q, k, v):
        queries_BxNxT, keys_BxNx3T = _rows_of_blocks(of_queries, size, 0, 0), _neighbours(of_keys, size, _PADDING)
        distances_Tx3T = jnp.arange(-size, 2 * size)[None] - jnp.arange(size)[:, None]
        mask_BxNxTx3T = queries_BxNxT[..., None] == keys_BxNx3T[:, :, None]
        mask_BxNxTx3T &= (jnp.abs(distances_Tx3T) <= window)[None, None]
        attended_BxNxTxHxS = weighted_mean(
            _rows_of_blocks(q, size, 0, 0),
            _neighbours(k, size, 0),
            _neighbours(v, size, 0),
            mask_BxNxTx3T,
            dropout_rate,
            dropout_keys_B,
        )
        return attended_BxNxTxHxS.reshape(batch, -1, *q.shape[2:])[:, :length]

    return run(q_BxLxHxS, k_BxLxHxS, v_BxLxHxS)


def _rows_of_blocks(x_BxL: jax.Array, size: int, more: int, fill: int) -> jax.Array:
    """Returns blocks [B, N, T, ...] of an array [B, L, ...], with `more` blocks of `fill` at both ends."""
    batch, length = x_BxL.shape[:2]
    ends = (more * size, more * size + -length % size)
    padded = jnp.pad(x_BxL, ((0, 0), ends, *((0, 0),) * (x_BxL.ndim - 2)), constant_values=fill)
    return padded.reshape(batch, -1, size, *x_BxL.shape[2:])


def _neighbours(x_BxL: jax.Array, size: int, fill: int) -> jax.Array:
    """Returns, for each block of an array [B, L, ...], it and the blocks before and after it: [B, N, 3 T, ...]."""
    blocks = _rows_of_blocks(x_BxL, size, 1, fill)
    return jnp.concatenate([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], axis=2)
