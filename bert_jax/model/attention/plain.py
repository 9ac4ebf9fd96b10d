"""Attention with all scores in memory: the reference, exact, differentiable, on every platform.

Shapes: B batch, Q queries, K keys, H heads, S head size.
"""

import jax
import jax.numpy as jnp

from bert_jax.model.attention.contract import Request, Visibility
from bert_jax.model.layers import dropout


def unsupported(request: Request) -> str | None:
    """Returns None, since everything is supported."""
    del request
    return None


def attend(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    visibility: Visibility,
    dropout_rate: float,
    dropout_keys_B: jax.Array | None,
) -> jax.Array:
    """Attends as `attend.attend`."""
    mask_BxQxK = visible(k_BxKxHxS.shape[1], visibility)
    return weighted_mean(q_BxQxHxS, k_BxKxHxS, v_BxKxHxS, mask_BxQxK, dropout_rate, dropout_keys_B)


def weighted_mean(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    dropout_rate: float,
    dropout_keys_B: jax.Array | None,
) -> jax.Array:
    """Returns, for each query, the mean of the values weighted by a softmax in float32 over the scores of the keys it sees.

    Args:
      q: [B, ..., Q, H, S]
      k: [B, ..., K, H, S]
      v: [B, ..., K, H, S]
      mask: [B, ..., Q, K], true where a query sees a key; axes may be 1 to broadcast.
      dropout_rate: of the weights.
      dropout_keys_B: dropout keys of the rows.
    """
    scores = jnp.einsum("...qhs,...khs->...hqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[..., None, :, :], scores, -1e9)
    weights = jax.nn.softmax(scores).astype(q.dtype)
    if dropout_keys_B is not None and dropout_rate > 0:
        # Fused with the products, dropout overflows the stack of the compiler for TPUs (libtpu 0.0.42, chunked, 32 x 512).
        weights = jax.lax.optimization_barrier(dropout(weights, dropout_rate, dropout_keys_B))
    return jnp.einsum("...hqk,...khs->...qhs", weights, v)


def visible(length: int, visibility: Visibility) -> jax.Array | None:
    """Returns a mask [B, Q, K], true where a query sees a key; axes may be 1 to broadcast, and None is true everywhere."""
    mask = None
    if segment_ids := visibility.segment_ids(length):
        of_queries, of_keys = segment_ids
        mask = of_queries[:, :, None] == of_keys[:, None, :]
    if visibility.window is not None or visibility.direction != "both":
        places_K = jnp.arange(length)
        places_BxQ = places_K[None] if visibility.positions_BxQ is None else visibility.positions_BxQ
        to_right_BxQxK = places_K[None, None] - places_BxQ[:, :, None]
        farthest = length if visibility.window is None else visibility.window
        is_near = to_right_BxQxK <= (farthest if visibility.direction != "left" else 0)
        is_near &= to_right_BxQxK >= (-farthest if visibility.direction != "right" else 0)
        mask = is_near if mask is None else mask & is_near
    return mask
