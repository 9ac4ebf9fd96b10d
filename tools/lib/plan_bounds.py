"""Computes a lower bound on the time of a step from what it needs: a roofline of matmuls, memory and network."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from bert_jax.parallel.chips import Chip
from bert_jax.tasks.pretraining import Config
from tools.lib.hlo_costs import Collective
from tools.lib.plan_compile import Facts, flops_rate
from tools.lib.plan_topology import Topology


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds of a step, each if nothing else took time, and what follows from them."""

    matmuls: float
    memory: float
    network: float
    serial: float  # instructions one after the other, each bound by matmuls or memory, and then the network
    peak: float  # FLOP/s of a device
    memory_rate: float  # bytes/s of a device
    tokens: int  # of a step, on all devices
    formula_flops: float  # of a device

    @property
    def seconds(self) -> float:
        """The least that the step takes: everything at once, and all hidden behind the slowest."""
        return max(self.matmuls, self.memory, self.network)

    @property
    def bound_by(self) -> str:
        """Which of the three is the slowest."""
        return max(("matmuls", "memory", "network"), key=lambda name: getattr(self, name))

    def utilization(self, seconds: float) -> float:
        """Returns the share of the peak that the formula's operations are (MFU), in a step of `seconds`."""
        return self.formula_flops / seconds / self.peak if seconds and self.peak else 0.0

    def tokens_per_second(self, seconds: float) -> float:
        """Returns the tokens of all devices in a second, if a step takes `seconds`."""
        return self.tokens / seconds if seconds else 0.0


class Plan(NamedTuple):
    """A config on a topology, and what its compiled step costs."""

    config: Config  # of a single phase
    topology: Topology
    facts: Facts

    @property
    def bounds(self) -> Bounds | None:
        """None if the step is out of memory, for then there is no program."""
        return None if self.facts.out_of_memory else bounds(self.config, self.topology, self.facts)

    @property
    def fits(self) -> bool:
        chip = self.topology.chip
        return not self.facts.out_of_memory and (chip is None or self.facts.total_bytes <= chip.memory)


def bounds(config: Config, topology: Topology, facts: Facts) -> Bounds:
    """Returns the bounds of a compiled step; of a CPU, by what was measured on it."""
    chip = topology.chip
    if chip:
        peak, memory_rate = flops_rate(chip, config.model.dtype), chip.memory_rate
    else:  # virtual devices share the cores and their caches
        peak, memory_rate = (facts.measured[name] / topology.devices for name in ("flops", "memory_rate"))
    network = network_seconds(facts.collectives, chip) if chip else 0.0
    return Bounds(
        matmuls=facts.matmul_flops / peak,
        memory=facts.memory_bytes / memory_rate,
        network=network,
        serial=facts.serial_seconds + network if facts.serial_seconds else 0.0,
        peak=peak,
        memory_rate=memory_rate,
        tokens=config.train.batch_size * config.data.sequence_length,
        formula_flops=facts.formula_flops,
    )


def network_seconds(collectives: Iterable[Collective], chip: Chip) -> float:
    """Returns the least time of collective operations, one after the other, through all links of a device.

    Where a group spans several servers, what goes between them passes the slower network. Reductions and gathers share it
    among the group's devices of a server; what each device exchanges is its own.
    """
    total = 0.0
    for collective in collectives:
        seconds = collective.sent_bytes / chip.network_rate
        servers = servers_of(collective, chip)
        if len(servers) > 1:
            is_exchange = collective.kind in ("all-to-all", "collective-permute")
            sharing = 1 if is_exchange else collective.devices // len(servers)
            of_servers = collective._replace(group=tuple(servers)).sent_bytes / sharing
            seconds = max(seconds, of_servers / chip.between_servers)
        total += seconds
    return total


def servers_of(collective: Collective, chip: Chip) -> set[int]:
    """Returns the numbers of the servers among which a collective operation moves data; one number where all are connected."""
    return {device // chip.connected for device in collective.group} if chip.between_servers else {0}


def by_kind(collectives: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Returns how often each kind of collective operation runs in a step, and the bytes that a device sends for it."""
    result: dict[str, dict[str, float]] = {}
    for collective in collectives:
        entry = result.setdefault(collective.kind, {"count": 0, "sent_bytes": 0.0})
        entry["count"] += collective.times
        entry["sent_bytes"] += collective.sent_bytes
    return dict(sorted(result.items()))
