"""The contract of attention, and the one place that chooses an implementation of it.

Shapes: B batch, Q queries, K keys, H heads, S head size. Queries and keys are tokens of the same rows.
"""

import jax
import jax.numpy as jnp

from bert_jax.model.layers import dropout


def attend(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    *,
    attention_mask_BxK: jax.Array | None = None,
    segment_ids_BxK: jax.Array | None = None,
    positions_BxQ: jax.Array | None = None,
    window: int | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns, for each query, the mean of the values weighted by a softmax over the scores of the keys it sees.

    Who sees whom is given by values; a mask over queries and keys exists, if at all, within an implementation. What padded
    queries return is finite but undefined: implementations differ.

    Args:
      q_BxQxHxS: queries, not yet scaled by S^-1/2.
      k_BxKxHxS: keys.
      v_BxKxHxS: values.
      attention_mask_BxK: 0 for keys that no query sees (padding, on either side); absent: there are none.
      segment_ids_BxK: for rows of several examples, the number of each token's example from 1, and 0 for padding. A query sees
        the keys of its own segment, and the attention mask is not read.
      positions_BxQ: place in the row of each query; absent: the queries are all tokens in order (Q = K).
      window: a query sees keys at most so many places away; absent: at any distance. Static.
      dropout_rate: of the weights.
      key: dropout key; without one nothing is dropped.

    Returns:
      [B, Q, H, S] in the dtype of the queries; the softmax is float32.
    """
    return plain_attention(
        q_BxQxHxS,
        k_BxKxHxS,
        v_BxKxHxS,
        mask_Bx1xQxK=visible(k_BxKxHxS.shape[1], attention_mask_BxK, segment_ids_BxK, positions_BxQ, window),
        dropout_rate=dropout_rate,
        key=key,
    )


def plain_attention(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    mask_Bx1xQxK: jax.Array | None,
    dropout_rate: float,
    key: jax.Array | None,
) -> jax.Array:
    """Attends as `attend`, by the result of `visible`, with all scores in memory: exact, differentiable, on every platform."""
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
