"""Bidirectional multi-head self-attention with padding masks, rotary positions and local windows.

Shapes: B batch, L length (Q queries, K keys), D hidden_size, H heads, S head size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import dropout, initializer
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
            kernel_metadata={"axes": ("embed", None, "heads", None)},
            bias_metadata={"axes": (None, "heads", None)},
            **shared,
        )
        self.out = nnx.LinearGeneral(
            heads,
            config.hidden_size,
            axis=(-2, -1),
            kernel_metadata={"axes": ("heads", None, "embed")},
            bias_metadata={"axes": ("embed",)},
            **shared,
        )

    def __call__(
        self, x_BxLxD: jax.Array, mask_Bx1xQxK: jax.Array, rotation: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """Attends.

        Args:
          x_BxLxD: hidden states.
          mask_Bx1xQxK: true where a query may see a key; axes may be 1 to broadcast.
          rotation: the output of `rotary_table` [L, 2, S/2], or None where positions are in the embeddings.
          key: dropout key, or None for none.

        Returns:
          [B, L, D].
        """
        qkv = constrain(self.qkv(x_BxLxD), "batch", "length", None, "heads", None)
        q_BxLxHxS, k_BxLxHxS, v_BxLxHxS = (qkv[:, :, i] for i in range(3))
        if rotation is not None:
            q_BxLxHxS, k_BxLxHxS = rotate(q_BxLxHxS, rotation), rotate(k_BxLxHxS, rotation)
        scores_BxHxQxK = jnp.einsum("bqhs,bkhs->bhqk", q_BxLxHxS * self.config.head_size**-0.5, k_BxLxHxS)
        scores_BxHxQxK = jnp.where(mask_Bx1xQxK, scores_BxHxQxK.astype(jnp.float32), -1e9)
        weights_BxHxQxK = jax.nn.softmax(scores_BxHxQxK).astype(x_BxLxD.dtype)
        weights_BxHxQxK = dropout(weights_BxHxQxK, self.config.attention_dropout, key)
        return self.out(jnp.einsum("bhqk,bkhs->bqhs", weights_BxHxQxK, v_BxLxHxS))


def rotary_table(length: int, head_size: int, theta: float) -> jax.Array:
    """Cosines and sines [L, 2, S/2] of rotary positions (Su et al. 2021, RoFormer, section 3.2.2)."""
    frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None, :]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def rotate(x_BxLxHxS: jax.Array, rotation: jax.Array) -> jax.Array:
    """Turns each pair (i, i + S/2) of a head by its position's angle, in float32."""
    cos, sin = rotation[None, :, None, 0], rotation[None, :, None, 1]
    first, second = jnp.split(x_BxLxHxS.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxS.dtype)


def local_mask(length: int, window: int) -> jax.Array:
    """[1, 1, L, L], true where query and key are at most `window` positions apart."""
    position = jnp.arange(length)
    return (jnp.abs(position[:, None] - position[None, :]) <= window)[None, None]
