"""Attention in plain XLA, with all scores in memory: exact, differentiable, on every platform.

Shapes: B batch, Q queries, K keys, H heads, S head size.
"""

import jax
import jax.numpy as jnp

from bert_jax.model.layers import dropout


def attend(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    mask_Bx1xQxK: jax.Array | None,
    dropout_rate: float,
    key: jax.Array | None,
) -> jax.Array:
    """Attends as `attend.attend`, by a mask that is the result of `visible`."""
    scores_BxHxQxK = jnp.einsum(
        "bqhs,bkhs->bhqk", q_BxQxHxS * q_BxQxHxS.shape[-1] ** -0.5, k_BxKxHxS, preferred_element_type=jnp.float32
    )
    if mask_Bx1xQxK is not None:
        scores_BxHxQxK = jnp.where(mask_Bx1xQxK, scores_BxHxQxK, -1e9)
    weights_BxHxQxK = dropout(jax.nn.softmax(scores_BxHxQxK).astype(q_BxQxHxS.dtype), dropout_rate, key)
    return jnp.einsum("bhqk,bkhs->bqhs", weights_BxHxQxK, v_BxKxHxS)


def visible(
    length: int,
    attention_mask_BxK: jax.Array | None,
    segment_ids_BxK: jax.Array | None,
    positions_BxQ: jax.Array | None,
    window: int | None,
) -> jax.Array | None:
    """Returns a mask [B, 1, Q, K], true where a query sees a key; axes may be 1 to broadcast, and None is true everywhere."""
    masks = []
    if segment_ids_BxK is not None:
        own_BxQ = segment_ids_BxK
        if positions_BxQ is not None:
            own_BxQ = jnp.take_along_axis(segment_ids_BxK, positions_BxQ, axis=1)
        masks.append(own_BxQ[:, :, None] == segment_ids_BxK[:, None])
    elif attention_mask_BxK is not None:
        masks.append(attention_mask_BxK[:, None] > 0)
    if window is not None:
        places_K = jnp.arange(length)
        places_BxQ = places_K[None] if positions_BxQ is None else positions_BxQ
        masks.append(jnp.abs(places_BxQ[:, :, None] - places_K[None, None]) <= window)
    return jnp.logical_and(*masks)[:, None] if len(masks) == 2 else masks[0][:, None] if masks else None
