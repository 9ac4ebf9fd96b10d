"""Floating-point operations of training, and how many a device can do: what the share of peak is made of."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import ParallelConfig, make_mesh

# Dense bfloat16 FLOP/s of one jax device, by the beginning of its `device_kind`. The first that fits counts.
PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,  # cloud.google.com/tpu/docs/v4
    "TPU v5 lite": 197e12,  # v5e: cloud.google.com/tpu/docs/v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p: cloud.google.com/tpu/docs/v5p
    "TPU v6": 918e12,  # v6e: cloud.google.com/tpu/docs/v6e
    "NVIDIA A100": 312e12,  # NVIDIA A100 data sheet, without sparsity, as all below
    "NVIDIA H100 PCIe": 756e12,  # NVIDIA H100 data sheet (2023)
    "NVIDIA H100": 989e12,  # the same, SXM
    "NVIDIA H200": 989e12,  # NVIDIA H200 data sheet, SXM
    "NVIDIA B200": 2250e12,  # NVIDIA DGX B200 data sheet
}
MATMUL_SHAPES = {"cpu": (1024, 768, 3072), "gpu": (8192, 8192, 8192), "tpu": (8192, 8192, 8192)}


def flops_per_token(config: EncoderConfig, sequence_length: int, predicted_share: float) -> float:
    """Returns the floating-point operations per trained token of MLM pretraining, backward pass included.

    6 for each weight of a product (forward 2, backward 4), 12 D for each key a query sees in a layer; the head, and all but the
    keys and values of the last layer, count for the predicted positions only. Recomputation, norms, softmax and the optimizer
    do not count (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B).

    Args:
      config: the encoder.
      sequence_length: tokens of a row, full.
      predicted_share: positions predicted / positions.
    """
    hidden, table = config.hidden_size, config.table_width
    mlp_products = 3 if config.gated_mlp else 2
    everywhere = 6 * 2 * hidden**2  # of a layer: keys and values
    for_queries = 6 * (2 * hidden**2 + mlp_products * hidden * config.intermediate_size)
    embeddings = 6 * hidden * table if config.embedding_size else 0
    head = 6 * (hidden * table + table * config.vocab_size) * predicted_share
    total = embeddings + head
    for layer in range(config.num_layers):
        window = config.window(layer)
        keys = sequence_length if window is None else local_keys(sequence_length, window)
        is_last = layer == config.num_layers - 1 and config.repeats == 1  # as in model/stack.py, `run_layers`
        share = predicted_share if is_last else 1.0
        total += everywhere + share * (for_queries + 12 * hidden * keys)
    return total


def local_keys(length: int, window: int) -> float:
    """Keys that a query sees, on average over a row, when it sees at most `window` on each side."""
    window = min(window, length - 1)
    return 2 * window + 1 - window * (window + 1) / length


def peak_flops(device: jax.Device) -> float | None:
    """Returns the dense bfloat16 FLOP/s of a device as its maker states them; None if it is not in the table (every CPU)."""
    return next((peak for kind, peak in PEAK_BF16_FLOPS.items() if device.device_kind.startswith(kind)), None)


def measured_matmul_flops(dtype: str, device: jax.Device, repeats: int = 9) -> float:
    """Measures the FLOP/s of a matrix product on a device: the median of `repeats`, each of 0.1 seconds or less."""
    rows, inner, columns = MATMUL_SHAPES[device.platform]
    # Queued together, so that the dispatch of one hides behind the product before it; on CPUs they would compete.
    calls = 1 if device.platform == "cpu" else 8
    seconds = []
    with jax.set_mesh(make_mesh(ParallelConfig(), [device])):
        left, right = (jax.device_put(np.ones(shape, dtype), device) for shape in ((rows, inner), (inner, columns)))
        product = jax.jit(jnp.matmul)
        for _ in range(repeats + 1):
            start = time.perf_counter()
            jax.block_until_ready([product(left, right) for _ in range(calls)])
            seconds.append((time.perf_counter() - start) / calls)
    return 2 * rows * inner * columns / statistics.median(seconds[1:])  # the first one compiles
