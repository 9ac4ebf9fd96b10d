"""Measures steps on this machine's CPU, and in the same process what bounds them: a matrix product, and the memory."""

import statistics
import time
from typing import Any

import jax
import numpy as np

from bert_jax.train.flops import measured_matmul_flops
from bert_jax.train.step import Training

TURNS, SECONDS = 5, 1.0  # each of which takes at least so long
STREAM = 1 << 25  # numbers of float32 in an array: far more than caches hold


def measure(training: Training, compiled: Any, batch: Any, dtype: str) -> dict[str, float]:
    """Returns medians of turns: seconds of a step, and of all devices FLOP/s of products and bytes/s of the memory."""
    state = training.make_state()
    device = jax.local_devices()[0]
    array = jax.device_put(np.ones(STREAM, np.float32), device)
    add = jax.jit(lambda x: x + 1)
    measured: dict[str, list[float]] = {"step_seconds": [], "flops": [], "memory_rate": []}
    jax.block_until_ready(add(array))
    for turn in range(TURNS + 1):
        start = time.perf_counter()
        steps, seconds = 0, 0.0
        while seconds < SECONDS:
            state, metrics = compiled(state, {}, batch)
            jax.block_until_ready(metrics)
            steps, seconds = steps + 1, time.perf_counter() - start
        flops = measured_matmul_flops(dtype, device, repeats=3)
        start = time.perf_counter()
        for _ in range(3):
            jax.block_until_ready(add(array))
        rate = 3 * 2 * array.nbytes / (time.perf_counter() - start)
        if turn:  # the first one warms up
            for name, value in (("step_seconds", seconds / steps), ("flops", flops), ("memory_rate", rate)):
                measured[name].append(value)
    return {name: statistics.median(values) for name, values in measured.items()}
