"""The contract of attention, and the one place that chooses an implementation of it.

Shapes: B batch, Q queries, K keys, H heads, S head size. Queries and keys are tokens of the same rows.
"""

import jax

from bert_jax.model.attention import plain


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
    return plain.attend(
        q_BxQxHxS,
        k_BxKxHxS,
        v_BxKxHxS,
        mask_Bx1xQxK=plain.visible(k_BxKxHxS.shape[1], attention_mask_BxK, segment_ids_BxK, positions_BxQ, window),
        dropout_rate=dropout_rate,
        key=key,
    )
