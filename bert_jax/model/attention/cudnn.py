"""cuDNN's fused attention, for GPUs: rows without padding, or with padding on the right.

It never gets a mask, which cuDNN would take as a bias [B, H, Q, K].

Shapes: B batch, Q queries, K keys, H heads, S head size.
"""

import jax
import jax.numpy as jnp

from bert_jax.model.attention.contract import ONE_SIDE, Request, Visibility

# Of cuDNN before GPUs of the Hopper generation (jax, _src/cudnn/fused_attention_stablehlo.py, check_is_flash_attention).
LARGEST_HEAD = 128


def unsupported(request: Request) -> str | None:
    """Returns why it cannot compute the request; None if it can."""
    if request.platform != "gpu":
        return f"needs a GPU, not a {request.platform.upper()}"
    if request.dtype not in ("bfloat16", "float16"):
        return f"needs bfloat16 or float16, not {request.dtype} (model.dtype)"
    if request.has_dropout:
        return "does not support dropout (model.attention_dropout)"
    if request.window is not None:
        return "does not support windows (model.local_window)"
    if request.has_segments:
        return "does not support rows of several examples"
    if request.has_mask:
        return "needs padding on the right, if any"
    if request.head_size % 8 or request.head_size > LARGEST_HEAD:
        return f"needs a head size that is a multiple of 8 up to {LARGEST_HEAD}, not {request.head_size}"
    return ONE_SIDE if request.direction != "both" else None


def attend(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    visibility: Visibility,
    dropout_rate: float,
    dropout_keys_B: jax.Array | None,
) -> jax.Array:
    """Attends as `attend.attend`; padded queries return zeros unless the queries are some of the tokens."""
    del dropout_rate, dropout_keys_B
    lengths_B = queries_B = visibility.lengths_B
    if lengths_B is not None:
        lengths_B = queries_B = jnp.maximum(lengths_B, 1)  # a softmax over nothing is not defined
        if visibility.positions_BxQ is not None:
            # Computed from the lengths, so that jax.vmap maps both (jax 0.10 fails otherwise).
            queries_B = jnp.where(lengths_B > 0, q_BxQxHxS.shape[1], 0)
    return jax.nn.dot_product_attention(
        q_BxQxHxS,
        k_BxKxHxS,
        v_BxKxHxS,
        query_seq_lengths=queries_B,
        key_value_seq_lengths=lengths_B,
        implementation="cudnn",
    )
