"""JAX's Pallas kernel "splash attention", for TPUs: blocks that a window hides are not computed.

Shapes: B batch, Q queries, K keys, H heads, S head size.
"""

import functools

import jax
import jax.numpy as jnp

from bert_jax.model.attention.contract import ONE_SIDE, Request, Visibility
from bert_jax.parallel.mesh import spec_here

LANES = 128  # of a TPU's vector registers: lengths are padded to a multiple of it
BLOCK_SIZES = (128, 256, 512)
_PADDING = -1  # segment of the keys that fill up the last block


def unsupported(request: Request) -> str | None:
    """Returns why it cannot compute the request; None if it can."""
    if request.platform != "tpu":
        return f"needs a TPU, not a {request.platform.upper()}"
    if request.dtype == "float16":
        return "needs float32 or bfloat16, not float16 (model.dtype)"
    if request.has_dropout:
        return "does not support dropout (model.attention_dropout)"
    if request.window is not None and request.has_positions:
        return "does not support windows where the queries are some of the tokens"
    return ONE_SIDE if request.direction != "both" else None


def attend(
    q_BxQxHxS: jax.Array,
    k_BxKxHxS: jax.Array,
    v_BxKxHxS: jax.Array,
    visibility: Visibility,
    dropout_rate: float,
    dropout_keys_B: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """Attends as `attend.attend`; with `interpret` on any platform, slowly."""
    del dropout_rate, dropout_keys_B
    (batch, num_queries), length = q_BxQxHxS.shape[:2], k_BxKxHxS.shape[1]
    of_queries, of_keys = visibility.segment_ids(length) or (
        jnp.ones((1, 1), jnp.int32),
        jnp.ones((1, length), jnp.int32),
    )
    of_queries = jnp.broadcast_to(of_queries, (batch, num_queries))
    of_keys = jnp.broadcast_to(of_keys, (batch, length))
    arrays = [
        _filled(jnp.swapaxes(x, 1, 2), 2, 0)  # [B, H, L, S]
        for x in (q_BxQxHxS * q_BxQxHxS.shape[-1] ** -0.5, k_BxKxHxS, v_BxKxHxS)
    ]
    segment_ids = [_filled(of_queries, 1, 0), _filled(of_keys, 1, _PADDING)]
    run = functools.partial(_run_kernel, visibility.window, interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:  # XLA cannot split a kernel over devices
        specs = [spec_here(("batch", "heads", None, None), arrays[0].shape)] * 3
        specs += [spec_here(("batch", None), segment_ids[0].shape)] * 2
        run = jax.shard_map(run, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)
    return jnp.swapaxes(run(*arrays, *segment_ids), 1, 2)[:, :num_queries].astype(q_BxQxHxS.dtype)


def _filled(x: jax.Array, axis: int, fill: int) -> jax.Array:
    """Returns an array that is filled up along an axis to a multiple of LANES."""
    ends = [(0, 0)] * x.ndim
    ends[axis] = (0, -x.shape[axis] % LANES)
    return jnp.pad(x, ends, constant_values=fill)


def _run_kernel(window: int | None, interpret: bool, q_BxHxQxS, k_BxHxKxS, v_BxHxKxS, of_queries, of_keys) -> jax.Array:
    """Returns [B, H, Q, S] on one device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels  # takes 0.3 s, which only TPUs need

    _, heads, num_queries, _ = q_BxHxQxS.shape
    length = k_BxHxKxS.shape[2]
    shape = num_queries, length
    q, kv = _block_size(num_queries), _block_size(length)
    mask = kernels.FullMask(shape) if window is None else kernels.LocalMask(shape, (window, window), 0)
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segment_ids = kernels.SegmentIds(of_queries, of_keys)
    return jax.vmap(lambda q, k, v, segment_ids: kernel(q, k, v, segment_ids=segment_ids))(
        q_BxHxQxS, k_BxHxKxS, v_BxHxKxS, segment_ids
    )


def _block_size(length: int) -> int:
    """Returns the largest size of a block that divides a length, a multiple of LANES."""
    return max(size for size in BLOCK_SIZES if length % size == 0)
