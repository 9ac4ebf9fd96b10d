"""Searches for the mesh, microbatches, recomputation and attention with which a config trains fastest and fits."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator

from bert_jax.errors import UserError
from bert_jax.model.attention.attend import chosen_for
from bert_jax.model.config import CHOICES
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.tasks.pretraining import Config
from tools.lib.plan_bounds import Plan
from tools.lib.plan_compile import compile_step, formula_flops
from tools.lib.plan_topology import Topology

# Values that choose the same implementations are tried once. On GPUs cuDNN's is compiled as 'chunked' (plan_compile.py).
ATTENTIONS = {
    "tpu": ("auto", "plain", "chunked", "splash"),
    "gpu": ("auto", "plain"),
    "cpu": ("auto", "plain", "chunked"),
}
logger = logging.getLogger("bert_jax.plan")
MOST_TENSOR_PARALLEL = 8  # more devices to a head or two: the network would bound every encoder of this codebase


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A candidate, and the plan of it or why there is none."""

    config: Config
    plan: Plan | None
    problem: str = ""  # of a config that is refused

    @property
    def seconds(self) -> float:
        """Seconds of a step, measured or else estimated; infinite if it does not fit."""
        if self.plan is None or not self.plan.fits or self.plan.bounds is None:
            return float("inf")
        measured = self.plan.facts.measured.get("step_seconds")
        return measured or self.plan.bounds.serial or self.plan.bounds.seconds


def search(config: Config, topology: Topology, max_compiles: int) -> list[Attempt]:
    """Compiles the candidates that are the fastest by a rough formula; returns all that were tried, the fastest first.

    Skips candidates that by the formula need at least as much memory as one with the same mesh and attention that did not fit.
    """
    attempts: list[Attempt] = []
    compiles = 0
    for candidate in sorted(candidates(config, topology), key=lambda other: rough_seconds(other, topology)):
        if compiles == max_compiles:
            break
        if any(
            needs_more(candidate, attempt, topology) for attempt in attempts if attempt.plan and not attempt.plan.fits
        ):
            continue
        compiles += 1
        logger.info("%d of %d: %s", compiles, max_compiles, " ".join(flags_of(candidate)))
        try:
            facts = compile_step(candidate, topology, with_measurement=topology.platform == "cpu")
        except UserError as error:
            attempts.append(Attempt(candidate, None, str(error)))
            continue
        attempts.append(Attempt(candidate, Plan(candidate, topology, facts)))
    if not attempts:
        raise UserError(
            f"train.batch_size={config.train.batch_size} divides over no mesh of {topology.devices} devices; make it a "
            f"multiple of {topology.devices}"
        )
    if all(attempt.plan is None for attempt in attempts):
        raise UserError(attempts[0].problem)
    return sorted(attempts, key=lambda attempt: attempt.seconds)


def candidates(config: Config, topology: Topology) -> Iterator[Config]:
    """Yields a config with every mesh of the topology, number of microbatches, remat policy and attention that may work."""
    model, batch_size, devices = config.model, config.train.batch_size, topology.devices
    attentions = attentions_for(config, topology)
    for tensor, fsdp in itertools.product(_divisors(devices), _divisors(devices)):
        splits_layers = (
            model.num_heads % tensor == 0 and model.intermediate_size % tensor == 0 and tensor <= MOST_TENSOR_PARALLEL
        )
        if devices % (tensor * fsdp) or not splits_layers or model.hidden_size % fsdp:
            continue
        parallel, rows = ParallelConfig(devices // tensor // fsdp, fsdp, tensor), batch_size // (devices // tensor)
        for number in _divisors(rows):
            if batch_size % (number * (devices // tensor)):
                continue
            train = dataclasses.replace(config.train, accumulation_steps=number)
            for remat, attention in itertools.product(CHOICES["remat"], attentions):
                changed = dataclasses.replace(model, remat=remat, attention=attention)
                yield dataclasses.replace(config, model=changed, train=train, parallel=parallel)


def attentions_for(config: Config, topology: Topology) -> list[str]:
    """Returns the values of `model.attention` that a config can be trained with, each of which chooses something else."""
    names: dict[tuple[tuple[str, str], ...], str] = {}
    for name in ATTENTIONS[topology.platform]:
        model = dataclasses.replace(config.model, attention=name)
        try:
            chosen = chosen_for(model, config.data.sequence_length, topology.platform)
        except UserError:
            continue
        names.setdefault(tuple(chosen.items()), name)
    return list(names.values())


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def flags_of(config: Config) -> list[str]:
    """Returns the flags that make a config this candidate."""
    parallel, model = config.parallel, config.model
    values = {f"parallel.{axis}": getattr(parallel, axis) for axis in ("data", "fsdp", "tensor")}
    values |= {"train.accumulation_steps": config.train.accumulation_steps, "model.remat": model.remat}
    values |= {"model.attention": model.attention}
    return [f"--config.{name}={value}" for name, value in values.items()]


# ----------------------------------------------------------------------------------------------------------------------
# Rough formulas, for the order in which candidates are compiled
# ----------------------------------------------------------------------------------------------------------------------


def weights(config: Config) -> int:
    """Returns the number of parameters, those of norms and biases aside."""
    model = config.model
    layer = 4 * model.hidden_size**2 + (3 if model.gated_mlp else 2) * model.hidden_size * model.intermediate_size
    layers = model.groups * model.layers_per_group
    positions = model.max_positions if model.positions == "learned" else 0
    return layers * layer + model.table_width * (model.vocab_size + positions)


def rough_activation_bytes(config: Config, devices: int) -> float:
    """Returns the bytes of a microbatch's activations on a device.

    Source: Korthikanti et al. 2022, "Reducing activation recomputation", equation 2 and section 4.2, for 16 bits: 34 times the
    width, and 5 times the length for each head where scores are kept; 2 times the width with full recomputation. The policies
    in between keep some results of matmuls (model/stack.py).
    """
    model, length = config.model, config.data.sequence_length
    tokens = config.train.batch_size * length / config.train.accumulation_steps / devices
    kept = 34.0 * model.hidden_size
    if model.attention == "plain":
        kept += 5 * model.num_heads * length
    kept = {"none": kept, "dots": kept / 2, "mlp": kept / 3, "full": 2.0 * model.hidden_size}[model.remat]
    return tokens * model.num_layers * kept * (2 if model.dtype == "float32" else 1)


def rough_bytes(config: Config, topology: Topology) -> float:
    """Returns the bytes of parameters, gradients, two moments and activations on a device, in float32 but the last."""
    parallel = config.parallel
    return 16 * weights(config) / parallel.fsdp / parallel.tensor + rough_activation_bytes(config, topology.devices)


def rough_seconds(config: Config, topology: Topology) -> tuple[bool, float]:
    """Returns whether the memory is probably too small, and a guess at the seconds of a step; for sorting."""
    chip, parallel, model = topology.chip, config.parallel, config.model
    peak, memory_rate, network_rate = (chip.flops, chip.memory_rate, chip.network_rate) if chip else (1e11, 1e10, 1e10)
    recomputed = {"none": 1.0, "dots": 1.1, "mlp": 1.2, "full": 4 / 3}[model.remat]  # operations, of those without
    matmuls = recomputed * formula_flops(config) / topology.devices / peak
    number, size = config.train.accumulation_steps, weights(config)
    kept = dataclasses.replace(
        config, model=dataclasses.replace(model, remat="none")
    )  # what is computed again moves, too
    moved: float = (28 / parallel.fsdp + 4 * number) * size / parallel.tensor
    moved += 3 * recomputed * number * rough_activation_bytes(kept, topology.devices)
    sent: float = 8 * size / parallel.tensor if topology.devices > parallel.tensor else 0.0
    if parallel.fsdp > 1:  # gathered in the forward and the backward pass of each microbatch
        sent += 4 * number * size / parallel.tensor
    if parallel.tensor > 1:  # two sums of the states for a layer, in both passes
        tokens = config.train.batch_size * config.data.sequence_length * parallel.tensor / topology.devices
        sent += 4 * model.num_layers * 2 * 2 * tokens * model.hidden_size
    too_large = chip is not None and rough_bytes(config, topology) > 1.5 * chip.memory
    return too_large, matmuls + moved / memory_rate + sent / network_rate


def needs_more(candidate: Config, attempt: Attempt, topology: Topology) -> bool:
    """Returns whether a candidate needs at least as much memory as one with the same mesh and attention that did not fit."""
    other = attempt.config
    same = candidate.parallel == other.parallel and candidate.model.attention == other.model.attention
    return same and rough_bytes(candidate, topology) >= rough_bytes(other, topology)
