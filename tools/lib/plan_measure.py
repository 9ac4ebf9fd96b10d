"""Measures steps on the CPU of this machine and, in turns with them, the rates that bound them."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from bert_jax.train.flops import measured_matmul_flops
from bert_jax.train.step import Training
from tools.lib.hlo_costs import Cost

TURNS, SECONDS = 5, 1.0  # the steps of a turn take at least so long
SIZES = tuple(
    1 << power for power in (16, 20, 22, 24, 27)
)  # bytes that are read and written again: from caches to memory
CHAIN = 64  # operations on each number, so that arithmetic and not the memory bounds them
SHORT = 1 << 17  # numbers of such an array, which caches hold


@dataclasses.dataclass(frozen=True)
class Rates:
    """What this machine does in a second, on all its cores."""

    flops: float  # of a matrix product
    memory: dict[int, float]  # bytes, by the bytes that an instruction reads and writes
    arithmetic: float  # additions, comparisons, shifts, ... of numbers
    transcendentals: float  # exponential functions

    def seconds(self, cost: Cost) -> float:
        """Returns the least time of an instruction: that of its matmuls, its other arithmetic or its memory."""
        rate = next((rate for size, rate in self.memory.items() if cost.bytes <= size), min(self.memory.values()))
        others = cost.arithmetic / self.arithmetic + cost.transcendentals / self.transcendentals
        return max(cost.flops / self.flops, cost.bytes / rate, others)


def measure(training: Training, compiled: Any, batch: Any, dtype: str, costs: Sequence[Cost]) -> dict[str, float]:
    """Returns medians of turns: seconds of a step, seconds that are predicted of it, and the rates that predict them."""
    state = training.make_state()
    devices = jax.sharding.get_abstract_mesh().size  # virtual ones, which share the cores
    turns: list[dict[str, float]] = []
    probes = {size: _probe(lambda x: x + 1, size // 8) for size in SIZES}
    chain = _probe(_chain, SHORT)
    exponential = _probe(lambda x: jnp.exp(-x), SHORT)
    for _ in range(TURNS + 1):
        start, steps, seconds = time.perf_counter(), 0, 0.0
        while seconds < SECONDS:
            state, metrics = compiled(state, {}, batch)
            jax.block_until_ready(metrics)
            steps, seconds = steps + 1, time.perf_counter() - start
        flops = measured_matmul_flops(dtype, jax.local_devices()[0], repeats=3)
        memory = {size: size / probe() for size, probe in probes.items()}
        rates = Rates(flops, memory, CHAIN * SHORT / chain(), SHORT / exponential())
        turns.append(
            {
                "step_seconds": seconds / steps,
                "predicted_seconds": devices * sum(cost.times * rates.seconds(cost) for cost in costs),
                "flops": flops,
                "memory_rate": max(memory.values()),  # of the fastest cache
                "arithmetic_rate": rates.arithmetic,
                "transcendental_rate": rates.transcendentals,
            }
        )
    turns = turns[1:]  # the first one warms up
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    ratios = [turn["predicted_seconds"] / turn["step_seconds"] for turn in turns]
    return medians | {"predicted_share": statistics.median(ratios)}


def _chain(x: jax.Array) -> jax.Array:
    for _ in range(CHAIN // 2):
        x = jnp.maximum(x, 1.0) + x
    return x * 1e-9


def _probe(function: Callable[[jax.Array], jax.Array], numbers: int) -> Callable[[], float]:
    """Returns a turn of a function of float32 numbers, in place, which measures the seconds of one call on one device."""
    call, device = jax.jit(function, donate_argnums=0), jax.local_devices()[0]
    mesh = make_mesh(ParallelConfig(), [device])
    with jax.set_mesh(mesh):
        array = jax.block_until_ready(call(jax.device_put(np.ones(numbers, np.float32), device)))
    calls = max(1, (1 << 24) // numbers)

    def turn() -> float:
        nonlocal array
        with jax.set_mesh(mesh):
            start = time.perf_counter()
            for _ in range(calls):
                array = call(array)
            jax.block_until_ready(array)
            return (time.perf_counter() - start) / calls

    return turn
