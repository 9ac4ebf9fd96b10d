"""What an implementation of attention is given: who sees whom, and the facts by which it is chosen.

Shapes: B batch, Q queries, K keys.
"""

import dataclasses

import jax
import jax.numpy as jnp

ONE_SIDE = "does not support one side (model.attention_direction)"  # why an implementation cannot compute a request


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Which keys each query sees, by values: a mask over queries and keys exists, if at all, within an implementation.

    Attributes:
      lengths_B: int32, tokens of each row, where padding is on the right; absent: there is none.
      attention_mask_BxK: 0 for keys that no query sees, for padding on either side; use lengths where you can, since fewer
        implementations take a mask.
      segment_ids_BxK: for rows of several examples, the number of each token's example from 1, and 0 for padding. A query sees
        the keys of its own segment; lengths and mask are not read.
      positions_BxQ: place in the row of each query; absent: the queries are all tokens in order (Q = K).
      window: a query sees keys at most so many places away; absent: at any distance. Static.
      direction: of the keys that a query sees besides its own: 'left', 'right' or 'both'. Static.
    """

    lengths_B: jax.Array | None = None
    attention_mask_BxK: jax.Array | None = None
    segment_ids_BxK: jax.Array | None = None
    positions_BxQ: jax.Array | None = None
    window: int | None = None
    direction: str = "both"

    def segment_ids(self, length: int) -> tuple[jax.Array, jax.Array] | None:
        """Returns the segment of each query, [B, Q] or [1, 1], and of each key [B, K]; a query sees the keys of its own.

        Where rows hold one example, its tokens are segment 1 and padding is segment 0. None if there is no padding either.
        """
        if self.segment_ids_BxK is not None:
            of_queries = self.segment_ids_BxK
            if self.positions_BxQ is not None:
                of_queries = jnp.take_along_axis(self.segment_ids_BxK, self.positions_BxQ, axis=1)
            return of_queries, self.segment_ids_BxK
        one_1x1 = jnp.ones((1, 1), jnp.int32)
        if self.lengths_B is not None:
            return one_1x1, (jnp.arange(length)[None] < self.lengths_B[:, None]).astype(jnp.int32)
        if self.attention_mask_BxK is not None:
            return one_1x1, (self.attention_mask_BxK > 0).astype(jnp.int32)
        return None


@dataclasses.dataclass(frozen=True)
class Request:
    """Static facts about an attention, by which its implementation is chosen."""

    platform: str  # of the mesh: 'cpu', 'gpu' or 'tpu'
    dtype: str
    num_queries: int
    length: int  # number of keys
    head_size: int
    window: int | None = None
    direction: str = "both"
    has_dropout: bool = False
    has_segments: bool = False
    has_mask: bool = False  # one that says more than lengths
    has_positions: bool = False  # the queries are some of the tokens
