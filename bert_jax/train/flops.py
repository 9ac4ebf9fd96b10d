"""Floating-point operations of training, and how many a device can do: what the share of peak is made of."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.chips import chip_of
from bert_jax.parallel.mesh import ParallelConfig, make_mesh

MATMUL_SHAPES = {"cpu": (1024, 768, 3072), "gpu": (8192, 8192, 8192), "tpu": (8192, 8192, 8192)}


def flops_per_token(
    config: EncoderConfig, sequence_length: int, predicted_share: float, read_share: float | None = None
) -> float:
    """Returns the floating-point operations per trained token of MLM pretraining, backward pass included.

    6 for each weight of a product (forward 2, backward 4), 12 D for each key a query sees in a layer; the head, and all but the
    keys and values of the last layer, count for the predicted positions only. Recomputation, norms, softmax and the optimizer
    do not count (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B).

    Args:
      config: the encoder.
      sequence_length: tokens of a row, full.
      predicted_share: positions predicted / positions.
      read_share: positions whose last hidden states are read / positions; None for those that are predicted.
    """
    hidden, table = config.hidden_size, config.table_width
    last_share = predicted_share if read_share is None else read_share
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
        share = last_share if is_last else 1.0
        total += everywhere + share * (for_queries + 12 * hidden * keys)
    return total


def local_keys(length: int, window: int) -> float:
    """Keys that a query sees, on average over a row, when it sees at most `window` on each side."""
    window = min(window, length - 1)
    return 2 * window + 1 - window * (window + 1) / length


def peak_flops(device: jax.Device) -> float | None:
    """Returns the dense bfloat16 FLOP/s of a device as its maker states them; None if it is not in the table (every CPU)."""
    chip = chip_of(device)
    return chip.flops if chip else None


def measured_matmul_flops(dtype: str, device: jax.Device, repeats: int = 9) -> float:
    """Measures the FLOP/s of a matrix product on a device: the median of `repeats`, each of 0.1 seconds or less."""
    rows, inner, columns = MATMUL_SHAPES[device.platform]
    # Queued together, so that the dispatch of one hides behind the product before it; on CPUs they would compete.
    calls = 1 if device.platform == "cpu" else 8
    seconds = []
    with jax.set_mesh(make_mesh(ParallelConfig(), [device])):
        # Random, as real ones are: the power that a GPU takes, and so its clock, depends on its operands.
        numbers = np.random.default_rng(0)
        left, right = (
            jax.device_put(numbers.standard_normal(shape, np.float32).astype(dtype), device)
            for shape in ((rows, inner), (inner, columns))
        )
        product = jax.jit(jnp.matmul)
        for _ in range(repeats + 1):
            start = time.perf_counter()
            jax.block_until_ready([product(left, right) for _ in range(calls)])
            seconds.append((time.perf_counter() - start) / calls)
    return 2 * rows * inner * columns / statistics.median(seconds[1:])  # the first one compiles
