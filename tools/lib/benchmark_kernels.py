"""The suites `matmul`, what this device can do at best, and `attention`, every implementation of it, on one device."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bert_jax.errors import UserError
from bert_jax.model.attention.attend import IMPLEMENTATIONS
from bert_jax.model.attention.contract import Request, Visibility
from bert_jax.model.attention.layer import SelfAttention
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from bert_jax.train.flops import local_keys, measured_matmul_flops, peak_flops
from tools.lib.benchmark_rows import Row, rate, ratios
from tools.lib.benchmark_settings import Settings
from tools.lib.benchmark_sides import Side, repeated, take_turns, temporary_memory

SECONDS = 10.0  # of the turns of one comparison
HOST_SHARE = 1 / 8  # of the memory of a machine without accelerator, for one layer
# Rows, inner size, columns of products.
PRODUCTS = {
    "cpu": {"square": (2048, 2048, 2048), "feed-forward": (1024, 768, 3072), "vocabulary": (512, 768, 30_592)},
    "accelerator": {"square": (8192,) * 3, "feed-forward": (32_768, 768, 3072), "vocabulary": (8192, 768, 30_592)},
    "quick": {"square": (64, 64, 64)},
}
COPIED = {"cpu": 1 << 26, "accelerator": 1 << 28, "quick": 1 << 10}  # float32 numbers
LENGTHS, QUICK_LENGTHS = (128, 512, 2048, 8192), (256,)  # quick: two blocks of `chunked`
TOKENS = {"cpu": 4096, "accelerator": 32_768, "quick": 256}
WINDOW, SEGMENTS = 64, 4  # positions on each side (ModernBERT); of a row
# Largest difference from `plain`, of outputs and gradients, in units of the largest value.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


def one_device(settings: Settings) -> tuple[Mesh, str]:
    """Returns a mesh of the first device, and the key of its platform in the tables above."""
    table = "quick" if settings.quick else "cpu" if settings.on_cpu else "accelerator"
    return make_mesh(ParallelConfig(), jax.local_devices()[:1]), table


# ----------------------------------------------------------------------------------------------------------------------
# matmul
# ----------------------------------------------------------------------------------------------------------------------


def matmul(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures matrix products and memory bandwidth: the ceilings of all other suites."""
    mesh, table = one_device(settings)
    return {"turns": settings.turns}, _matmul_rows(settings.turns, mesh, table)


def _matmul_rows(turns: int, mesh: Mesh, table: str) -> Iterator[Row]:
    device = mesh.devices.flat[0]
    calls = 1 if device.platform == "cpu" else 8
    product, sides, amounts = jax.jit(jnp.matmul), dict[str, Side](), dict[str, float]()
    notes = dict[str, str]()
    with jax.set_mesh(mesh):
        for dtype in ("float32", "bfloat16"):
            for name, (rows, inner, columns) in PRODUCTS[table].items():
                left, right = (_normal(shape, dtype) for shape in ((rows, inner), (inner, columns)))
                title = f"{dtype}, {name}"
                is_tf32 = dtype == "float32" and device.platform == "gpu"
                notes[title] = f"{rows:,} x {inner:,} x {columns:,}{', TF32' if is_tf32 else ''}"
                sides[title] = repeated(product, left, right, calls=calls)
                amounts[title] = 2.0 * rows * inner * columns
        copied = jnp.zeros(COPIED[table], jnp.float32)
        sides["memory"] = repeated(jax.jit(lambda x: x + 1), copied, calls=calls)
        measured = take_turns(sides, turns, SECONDS)
    unit, scale = ("GFLOP/s", 1e9) if device.platform == "cpu" else ("TFLOP/s", 1e12)
    for title, seconds in measured.items():
        if title == "memory":
            yield rate("memory, bytes read and written", "GB/s", 2 * copied.nbytes / 1e9, seconds)
        else:
            peak = peak_flops(device) if title.startswith("bfloat16") else None
            share = amounts[title] / float(np.median(seconds)) / peak if peak else None
            yield rate(title, unit, amounts[title] / scale, seconds, share=share, note=notes[title])


# ----------------------------------------------------------------------------------------------------------------------
# attention
# ----------------------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """Who sees whom in a layer."""

    window: int | None = None
    segments: int = 1
    dropout: float = 0.0
    padded: bool = False  # rows hold from half to all of the positions

    def keys(self, length: int) -> float:
        """Returns the number of keys that a query sees, on average."""
        own = length / self.segments * (0.75 if self.padded else 1)
        return own if self.window is None else local_keys(length, self.window)


KINDS = {
    "global": Kind(),
    "global, dropout": Kind(dropout=0.1),
    "padded": Kind(padded=True),
    "local": Kind(window=WINDOW),
    "segments": Kind(segments=SEGMENTS),
}
# Three segments: the second one lies in both blocks of `chunked`; each of four would lie in a single one.
QUICK_KINDS = {"segments": Kind(segments=3)}


def attention(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures a self-attention layer, forward and backward, with every implementation, and compares its results."""
    mesh, table = one_device(settings)
    encoder = settings.encoder
    lengths = (
        (settings.sequence_length,) if settings.sequence_length else (QUICK_LENGTHS if settings.quick else LENGTHS)
    )
    about = {"width": encoder.hidden_size, "heads": encoder.num_heads, "dtype": encoder.dtype, "tokens": TOKENS[table]}
    return about | {"turns": settings.turns}, _attention_rows(settings, encoder, mesh, lengths, TOKENS[table])


def _attention_rows(
    settings: Settings, encoder: EncoderConfig, mesh: Mesh, lengths: tuple[int, ...], tokens: int
) -> Iterator[Row]:
    kinds = QUICK_KINDS if settings.quick else KINDS
    request = Request(
        platform=mesh.devices.flat[0].platform,
        dtype=encoder.dtype,
        num_queries=lengths[-1],
        length=lengths[-1],
        head_size=encoder.head_size,
    )
    reasons = {name: module.unsupported(request) for name, module in IMPLEMENTATIONS.items()}
    yield from (Row(name, note=reason) for name, reason in reasons.items() if reason)
    for length, (title, kind) in itertools.product(lengths, kinds.items()):
        layers, unmeasured, batch_size = dict[str, Layer](), list[Row](), max(1, tokens // length)
        for name in [name for name, reason in reasons.items() if not reason]:
            row = Row(f"{length:5} {title}: {name}")
            config = dataclasses.replace(encoder, attention_dropout=kind.dropout, attention=name)
            try:
                with jax.set_mesh(mesh):
                    layer = _layer(config, kind, batch_size, length)
            except (UserError, ValueError, NotImplementedError, RuntimeError) as error:
                reason = str(error).strip().partition("\n")[0][:200] or repr(error)
                is_failure = not isinstance(error, UserError) and "RESOURCE_EXHAUSTED" not in str(error)
                unmeasured.append(dataclasses.replace(row, note=reason, failed=is_failure))
                continue
            if layer.side:
                layers[name] = layer
            else:
                unmeasured.append(dataclasses.replace(row, memory=layer.memory, note="takes too much of this memory"))
        sides = {name: layer.side for name, layer in layers.items() if layer.side}
        sides["product"] = partial(measured_matmul_flops, encoder.dtype, mesh.devices.flat[0], 1)
        with jax.set_mesh(mesh):
            measured = take_turns(sides, settings.turns, SECONDS)
        product = float(np.median(measured.pop("product")))
        # Products with weights and of queries with keys and with values; backward twice the forward.
        of_token = 3 * (8 * encoder.hidden_size**2 + 4 * encoder.hidden_size * kind.keys(length))
        for name, seconds in measured.items():
            share = batch_size * length * of_token / float(np.median(seconds)) / product
            row = Row(f"{length:5} {title}: {name}", "ms", [1e3 * value for value in seconds], share=share)
            row = dataclasses.replace(row, memory=layers[name].memory)
            if name != "plain" and "plain" in layers:
                row = dataclasses.replace(row, base="plain", ratios=ratios(measured["plain"], seconds))
                row = _compared(row, layers[name].results, layers["plain"].results, encoder.dtype, kind)
            yield row
        yield from unmeasured


class Layer(NamedTuple):
    """A compiled self-attention layer with its gradients."""

    memory: int  # bytes in addition to arguments
    side: Side | None = None  # absent: it would take too much of the host's memory
    results: Sequence[np.ndarray] = ()  # outputs and gradients


def _layer(config: EncoderConfig, kind: Kind, batch_size: int, length: int) -> Layer:
    """Compiles and runs a layer. Raises UserError if its implementation cannot do this."""
    graphdef, params = nnx.split(SelfAttention(config, nnx.Rngs(0)))
    x_BxLxD = _normal((batch_size, length, config.hidden_size), config.dtype)
    weights_BxLxD = _normal((batch_size, length, config.hidden_size), "float32", seed=1)
    lengths_B = np.linspace(length // 2 if kind.padded else length, length, batch_size, dtype=np.int32)
    is_token_BxLx1 = jnp.asarray((np.arange(length) < lengths_B[:, None])[..., None])
    weights_BxLxD *= is_token_BxLx1
    keys_B = jax.random.split(jax.random.key(0), batch_size) if kind.dropout else None
    ids_L = 1 + np.arange(length) * kind.segments // length
    segment_ids_BxL = jnp.asarray(np.tile(ids_L, (batch_size, 1)), jnp.int32) if kind.segments > 1 else None

    @jax.jit
    def run(params, x_BxLxD, weights_BxLxD, lengths_B, segment_ids_BxL):
        def weighted_sum(params, x_BxLxD):
            visibility = Visibility(lengths_B=lengths_B, segment_ids_BxK=segment_ids_BxL, window=kind.window)
            output = nnx.merge(graphdef, params)(x_BxLxD, visibility, keys_B)
            return (output.astype(jnp.float32) * weights_BxLxD).sum(), output

        gradients, output = jax.grad(weighted_sum, argnums=(0, 1), has_aux=True)(params, x_BxLxD)
        return output * is_token_BxLx1.astype(output.dtype), gradients  # what padded queries return is undefined

    padding = jnp.asarray(lengths_B) if kind.padded else None
    arguments = (params, x_BxLxD, weights_BxLxD, padding, segment_ids_BxL)
    program = run.lower(*arguments).compile()
    memory = temporary_memory(program)
    is_cpu = jax.local_devices()[0].platform == "cpu"
    if is_cpu and memory > HOST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return Layer(memory)
    results = [np.asarray(array, np.float32) for array in jax.tree.leaves(program(*arguments))]
    return Layer(memory, repeated(program, *arguments, calls=1 if is_cpu else 8), results)


def _compared(row: Row, results: Sequence[np.ndarray], expected: Sequence[np.ndarray], dtype: str, kind: Kind) -> Row:
    """Returns the row with the largest difference from `plain`, which fails if it is too large."""
    if kind.dropout:  # every implementation has random numbers of its own
        return row
    pairs = zip(results, expected, strict=True)
    difference = max(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)
    note = f"differs from plain by {difference:.1e} of the largest value"
    return dataclasses.replace(row, note=note, failed=not difference <= TOLERANCES[dtype])


def _normal(shape: tuple[int, ...], dtype: str, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)
