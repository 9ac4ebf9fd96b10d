"""Bidirectional multi-head self-attention: the products with weights, and rotary positions.

Shapes: B batch, L length (Q queries among them), D hidden_size, H heads, S head size, C of queries, keys and values.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bert_jax.model.attention.attend import attend
from bert_jax.model.attention.contract import Visibility
from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import initializer, take_positions
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
        visibility: Visibility,
        keys_B: jax.Array | None,
        positions_BxQ: jax.Array | None = None,
    ) -> jax.Array:
        """Attends.

        Args:
          x_BxLxD: hidden states.
          visibility: who sees whom if all tokens are queries.
          keys_B: dropout keys of the rows; without them nothing is dropped.
          positions_BxQ: of the queries; all positions when absent.

        Returns:
          [B, Q, D].
        """
        config = self.config
        if positions_BxQ is None:
            q_BxQxHxS, k_BxLxHxS, v_BxLxHxS = self._project(x_BxLxD, slice(0, 3))
        else:
            (q_BxQxHxS,) = self._project(take_positions(x_BxLxD, positions_BxQ), slice(0, 1))
            k_BxLxHxS, v_BxLxHxS = self._project(x_BxLxD, slice(1, 3))
        if config.positions == "rope":
            theta = config.rope_theta if visibility.window is None else config.local_rope_theta
            angles_LxHalf = rotary_table(x_BxLxD.shape[1], config.head_size, theta)
            of_queries = angles_LxHalf[None] if positions_BxQ is None else angles_LxHalf[positions_BxQ]
            q_BxQxHxS, k_BxLxHxS = rotate(q_BxQxHxS, of_queries), rotate(k_BxLxHxS, angles_LxHalf[None])
        attended_BxQxHxS = attend(
            q_BxQxHxS,
            k_BxLxHxS,
            v_BxLxHxS,
            dataclasses.replace(visibility, positions_BxQ=positions_BxQ),
            dropout_rate=config.attention_dropout,
            dropout_keys_B=keys_B,
            name=config.attention,
        )
        return checkpoint_name(self.out(checkpoint_name(attended_BxQxHxS, "hidden")), "hidden")

    def _project(self, x_BxLxD: jax.Array, parts: slice) -> list[jax.Array]:
        """Returns those `parts` of queries, keys and values, [B, L, H, S] each, from one product in the dtype of x."""
        kernel_DxCxHxS = self.qkv.kernel[...][:, parts].astype(x_BxLxD.dtype)
        projected = jnp.einsum("bld,dchs->blchs", x_BxLxD, kernel_DxCxHxS)
        if self.qkv.bias is not None:
            projected += self.qkv.bias[...][None, None, parts].astype(x_BxLxD.dtype)
        projected = checkpoint_name(constrain(projected, "batch", "length", None, "heads", None), "hidden")
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
