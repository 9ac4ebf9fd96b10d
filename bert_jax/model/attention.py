"""Bidirectional multi-head self-attention with padding masks, rotary positions and local windows.

Shapes: B batch, L length (Q queries, K keys), D hidden_size, H heads, S head size, C of queries, keys and values.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import dropout, initializer, take_positions
from bert_jax.parallel.mesh import constrain


class SelfAttention(nnx.Module):
    """Attention over [B, L, D]; queries, keys and values come from one fused product."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        shared: dict[str, Any] = {
            "use_bias": config.use_bias,
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
            "kernel_init": initializer(config),
            "rngs": rngs,
        }
        heads = (config.num_heads, config.head_size)
        self.qkv = nnx.LinearGeneral(
            config.hidden_size,
            (3, *heads),
            kernel_metadata={"axes": ("embed", "qkv", "heads", "head_size")},
            bias_metadata={"axes": ("qkv", "heads", "head_size")},
            **shared,
        )
        self.out = nnx.LinearGeneral(
            heads,
            config.hidden_size,
            axis=(-2, -1),
            kernel_metadata={"axes": ("heads", "head_size", "embed")},
            bias_metadata={"axes": ("embed",)},
            **shared,
        )

    def __call__(
        self,
        x_BxLxD: jax.Array,
        mask_Bx1xQxK: jax.Array,
        angles_LxHalf: jax.Array | None,
        key: jax.Array | None,
        positions_BxQ: jax.Array | None = None,
    ) -> jax.Array:
        """Attends.

        Args:
          x_BxLxD: hidden states.
          mask_Bx1xQxK: true where a query may see a key; axes may be 1 to broadcast.
          angles_LxHalf: the output of `rotary_table`, or None where positions are in the embeddings.
          key: dropout key, or None for none.
          positions_BxQ: of the queries; all positions when absent.

        Returns:
          [B, Q, D].
        """
        if positions_BxQ is None:
            q_BxQxHxS, k_BxKxHxS, v_BxKxHxS = self._project(x_BxLxD, slice(0, 3))
        else:
            (q_BxQxHxS,) = self._project(take_positions(x_BxLxD, positions_BxQ), slice(0, 1))
            k_BxKxHxS, v_BxKxHxS = self._project(x_BxLxD, slice(1, 3))
            if mask_Bx1xQxK.shape[2] > 1:
                mask_Bx1xQxK = jnp.take_along_axis(mask_Bx1xQxK, positions_BxQ[:, None, :, None], axis=2)
        if angles_LxHalf is not None:
            of_queries = angles_LxHalf[None] if positions_BxQ is None else angles_LxHalf[positions_BxQ]
            q_BxQxHxS, k_BxKxHxS = rotate(q_BxQxHxS, of_queries), rotate(k_BxKxHxS, angles_LxHalf[None])
        scores_BxHxQxK = jnp.einsum(
            "bqhs,bkhs->bhqk",
            q_BxQxHxS * self.config.head_size**-0.5,
            k_BxKxHxS,
            preferred_element_type=jnp.float32,
        )
        weights_BxHxQxK = jax.nn.softmax(jnp.where(mask_Bx1xQxK, scores_BxHxQxK, -1e9)).astype(x_BxLxD.dtype)
        weights_BxHxQxK = dropout(weights_BxHxQxK, self.config.attention_dropout, key)
        return self.out(jnp.einsum("bhqk,bkhs->bqhs", weights_BxHxQxK, v_BxKxHxS))

    def _project(self, x_BxLxD: jax.Array, parts: slice) -> list[jax.Array]:
        """Those `parts` of queries, keys and values, [B, L, H, S] each, from one product."""
        kernel_DxCxHxS = self.qkv.kernel[...][:, parts].astype(x_BxLxD.dtype)
        projected = jnp.einsum("bld,dchs->blchs", x_BxLxD, kernel_DxCxHxS)
        if self.qkv.bias is not None:
            projected += self.qkv.bias[...][None, None, parts].astype(x_BxLxD.dtype)
        projected = constrain(projected, "batch", "length", None, "heads", None)
        return [projected[:, :, i] for i in range(projected.shape[2])]


def rotary_table(length: int, head_size: int, theta: float) -> jax.Array:
    """Angles [L, S/2] of rotary positions (Su et al. 2021, RoFormer, section 3.2.2)."""
    frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    return jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None, :]


def rotate(x_BxLxHxS: jax.Array, angles_BxLxHalf: jax.Array) -> jax.Array:
    """Turns each pair (i, i + S/2) of a head by its position's angle, in float32."""
    cos, sin = jnp.cos(angles_BxLxHalf)[:, :, None], jnp.sin(angles_BxLxHalf)[:, :, None]
    first, second = jnp.split(x_BxLxHxS.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxS.dtype)


def local_mask(length: int, window: int) -> jax.Array:
    """[1, 1, L, L], true where query and key are at most `window` positions apart."""
    position = jnp.arange(length)
    return (jnp.abs(position[:, None] - position[None, :]) <= window)[None, None]
