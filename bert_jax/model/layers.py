"""The small parts: dense layers, norms, dropout, the feed-forward block. Each parameter carries its logical axis names.

Shapes: B batch, L length, P some of the positions, M = B x L, D hidden_size, F intermediate_size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bert_jax.model.config import EncoderConfig


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """Computes the exact GELU, x times the normal distribution function (Hendrycks & Gimpel 2016)."""
    return x * 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    cdf = 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))
    pdf = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
    return x * cdf, (cdf + x * pdf) * tangent  # the backward pass keeps one array; differentiating erf keeps three


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def initializer(config: EncoderConfig):
    """Returns a truncated normal, cut at two standard deviations (google-research/bert modeling.py, create_initializer)."""
    return nnx.initializers.truncated_normal(config.initializer_range)


def dense(
    config: EncoderConfig,
    inputs: int,
    outputs: int,
    axes: tuple[str | None, str | None],
    rngs: nnx.Rngs,
    use_bias: bool | None = None,
) -> nnx.Linear:
    """Returns a dense layer [..., inputs] -> [..., outputs] with logical `axes` of the kernel; biased by `config.use_bias`."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=config.use_bias if use_bias is None else use_bias,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=initializer(config),
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
        rngs=rngs,
    )


def embedding(config: EncoderConfig, rows: int, row_axis: str | None, rngs: nnx.Rngs) -> nnx.Embed:
    """Returns a table [rows, table_width]."""
    return nnx.Embed(
        rows,
        config.table_width,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        embedding_init=initializer(config),
        embedding_metadata={"axes": (row_axis, "embed")},
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """Normalizes as its base class, with less memory for the backward pass."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return recomputed(partial(super().__call__, mask=mask))(x)


class RMSNorm(nnx.RMSNorm):
    """Normalizes as its base class, with less memory for the backward pass."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return recomputed(partial(super().__call__, mask=mask))(x)


def recomputed(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns the function, recomputed in the backward pass from its input; a norm would keep three float32 arrays.

    Where the compiler sees both passes at once, it may keep its results instead.
    """
    return jax.checkpoint(function, prevent_cse=False)


def norm(config: EncoderConfig, features: int, rngs: nnx.Rngs) -> LayerNorm | RMSNorm:
    """Returns a LayerNorm or RMSNorm over the last axis, with float32 statistics whatever the compute dtype."""
    shared: dict[str, Any] = {
        "epsilon": config.norm_epsilon,
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.dtype(config.param_dtype),
        "use_fast_variance": False,  # E[x^2] - E[x]^2 cancels badly at the family's epsilon of 1e-12
        "scale_metadata": {"axes": ("norm",)},
        "rngs": rngs,
    }
    if config.norm == "rmsnorm":
        return RMSNorm(features, **shared)
    return LayerNorm(features, use_bias=config.use_bias, bias_metadata={"axes": ("norm",)}, **shared)


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of the elements of x [B, ...] and scales the rest up; the identity without keys (evaluation).

    Each row has a key of its own, so what is dropped in it depends neither on the other rows nor on the devices they are on.
    """
    if keys_B is None or rate == 0.0:
        return x
    keep = random_halves(keys_B, x.shape) >= round(rate * 2**16)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def random_halves(keys_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns random 16-bit numbers [B, ...], two out of each 32-bit word that is drawn: that is most of dropout's cost."""
    _, *middle, last = shape
    words = jax.vmap(lambda key: jax.random.bits(key, (*middle, (last + 1) // 2)))(keys_B)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*shape[:-1], -1)[..., :last]


def split(keys_B: jax.Array | None, num: int) -> Any:
    """Returns independent keys [num, B], or as many times None where there are none (evaluation)."""
    return [None] * num if keys_B is None else jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys_B)


def fold_in(keys_B: jax.Array | None, number: jax.Array | int) -> jax.Array | None:
    """Returns the keys [B] of a numbered part of something, or None where there are none (evaluation)."""
    return None if keys_B is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)


def take_positions(x_BxLxD: jax.Array, positions_BxP: jax.Array) -> jax.Array:
    """Returns the states [B, P, D] at some positions of each row."""
    return jnp.take_along_axis(x_BxLxD, positions_BxP[:, :, None], axis=1)


class FeedForward(nnx.Module):
    """x -> activation(x W) [* (x V)] -> U. Input and output [B, L, D]."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.up = dense(config, config.hidden_size, config.intermediate_size, ("embed", "mlp"), rngs)
        if config.gated_mlp:
            self.gate = dense(config, config.hidden_size, config.intermediate_size, ("embed", "mlp"), rngs)
        self.down = dense(config, config.intermediate_size, config.hidden_size, ("mlp", "embed"), rngs)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        # On CPU, XLA runs the products of matrices faster than those of the same numbers with a batch axis.
        x_MxD = x_BxLxD.reshape(-1, x_BxLxD.shape[-1])
        inner_MxF = ACTIVATIONS[self.config.activation](checkpoint_name(self.up(x_MxD), "mlp_inner"))
        if self.config.gated_mlp:
            inner_MxF = inner_MxF * checkpoint_name(self.gate(x_MxD), "mlp_inner")
        return checkpoint_name(self.down(inner_MxF), "hidden").reshape(x_BxLxD.shape)
