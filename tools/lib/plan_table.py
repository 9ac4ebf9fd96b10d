"""Writes a plan as text of 100 columns, and as JSON."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from bert_jax.errors import UserError
from bert_jax.parallel.chips import GIB
from tools.lib.plan_bounds import Bounds, Plan, by_kind, servers_of
from tools.lib.plan_search import Attempt
from tools.lib.plan_topology import Topology

COLUMNS = 100
JAX_SHARE = 0.75  # of the memory of a GPU, which jax takes by default


@dataclasses.dataclass(frozen=True)
class Price:
    """What is to be trained, and what an hour of a device costs; 0 where that was not asked for."""

    tokens: float = 0.0
    chip_hour_price: float = 0.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or not math.isfinite(value):
                raise UserError(f"--{name}={value:g}: must be a positive number, or left out")

    def of(self, plan: Plan, seconds: float) -> dict[str, float]:
        """Returns hours, chip-hours and money of a run whose steps take `seconds`."""
        assert plan.bounds
        hours = self.tokens / plan.bounds.tokens_per_second(seconds) / 3600
        chip_hours = hours * plan.topology.devices
        values = {"hours": hours, "chip_hours": chip_hours, "money": chip_hours * self.chip_hour_price}
        return {name: value for name, value in values.items() if value}


def to_json(plan: Plan, price: Price) -> dict[str, Any]:
    """Returns all that a plan says, in bytes and seconds of one device."""
    facts, bound = plan.facts, plan.bounds
    values = {
        "topology": plan.topology.name,
        "devices": plan.topology.devices,
        "chip": dataclasses.asdict(plan.topology.chip) if plan.topology.chip else None,
        "is_estimate": plan.topology.platform == "gpu",
        "step": options_of(plan),
        "fits": plan.fits,
        "facts": dataclasses.asdict(facts) | {"collectives": [entry._asdict() for entry in facts.collectives]},
        "collectives": by_kind(facts.collectives),
    }
    if bound:
        times = {"bound": bound.seconds} | ({"serial": bound.serial} if bound.serial else {})
        values["bounds"] = dataclasses.asdict(bound) | {"seconds": bound.seconds, "bound_by": bound.bound_by}
        values["training"] = {
            name: {
                "step_seconds": seconds,
                "utilization": bound.utilization(seconds),
                "tokens_per_second": bound.tokens_per_second(seconds),
                **(price.of(plan, seconds) if price.tokens else {}),
            }
            for name, seconds in times.items()
        }
    return values


def options_of(plan: Plan) -> dict[str, Any]:
    """Returns the options that a plan is about."""
    model, train = plan.config.model, plan.config.train
    return {
        "layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "dtype": model.dtype,
        "parameters": plan.facts.parameters,
        "batch_size": train.batch_size,
        "sequence_length": plan.config.data.sequence_length,
        "accumulation_steps": train.accumulation_steps,
        "remat": model.remat,
        "attention": model.attention,
        "mesh": plan.facts.mesh,
    }


def to_text(plan: Plan, price: Price, title: str) -> str:
    """Returns a plan as tables of at most 100 columns."""
    parts = [_head(plan, title), _memory(plan)]
    if bound := plan.bounds:
        parts += [_step(plan, bound), _collectives(plan), _training(plan, bound, price)]
        if plan.facts.measured:
            parts.append(_measured(plan, bound))
    return "\n\n".join(parts)


def _head(plan: Plan, title: str) -> str:
    options, topology = options_of(plan), plan.topology
    mesh = " x ".join(f"{axis} {size}" for axis, size in options["mesh"].items())
    kind = topology.chip.device_kind if topology.chip else "virtual CPU device"
    chosen = ", ".join(f"{kind} layers {name}" for kind, name in plan.facts.attention.items())
    lines = [
        f"{title} on {topology.name}: {topology.devices} x {kind}, mesh {mesh}",
        f"{counted(options['layers'], 'layer')} of {options['hidden_size']}, {options['parameters'] / 1e6:,.1f} M parameters, "
        f"{options['dtype']}, attention {options['attention']} ({chosen}), remat {options['remat']}",
        f"batch {options['batch_size']} x {options['sequence_length']}, "
        f"{counted(options['accumulation_steps'], 'microbatch', 'microbatches')}, "
        f"compiled in {plan.facts.compile_seconds:.0f} s",
    ]
    if topology.platform == "gpu":
        lines.append(
            "An estimate: compiled for as many virtual CPUs, by a compiler that fuses less than the one for GPUs,\n"
            "plans memory in its own way, and sums over devices in float32. Operations are by formula."
        )
        if "cudnn" in plan.facts.attention.values():
            lines.append(
                "Attention is compiled as 'chunked' in place of cudnn; the memory of both is linear in the length."
            )
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    facts, chip = plan.facts, plan.topology.chip
    rows = [
        ("parameters", facts.parameter_bytes, ""),
        ("optimizer state", facts.optimizer_bytes, ""),
        ("batch", facts.batch_bytes, ""),
    ]
    if not facts.out_of_memory:
        rows.append(("temporaries", facts.temporary_bytes, ""))
    lines = [_row(name, _gib(size), note) for name, size, note in rows]
    verdict = ""
    if chip:
        verdict = f"of {_gib(chip.memory)}: {'fits' if plan.fits else 'OUT OF MEMORY'}"
        if plan.fits and chip.is_gpu and facts.total_bytes > JAX_SHARE * chip.memory:
            verdict += " if XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 is set"
    lines.append(_row("total", _gib(facts.total_bytes), verdict))
    lines.append(_row("activations", _gib(facts.activation_bytes), "of a microbatch at most: as traced, before fusion"))
    if not plan.fits:
        split = " or raise parallel.fsdp" if plan.topology.devices > 1 else ""
        lines.append(f"To make it fit: raise train.accumulation_steps or set model.remat{split}")
    return "\n".join([_row("Memory of a device", "GiB", ""), *lines])


def _step(plan: Plan, bound: Bounds) -> str:
    facts, chip = plan.facts, plan.topology.chip
    sent = sum(collective.sent_bytes for collective in facts.collectives)
    rate = f"{chip.network_rate / 1e9:,.0f} GB/s" if chip else "not bound: one memory"
    rows = [
        ("matmuls", f"{_number(facts.matmul_flops / 1e12)} TFLOP", f"{bound.peak / 1e12:,.2f} TFLOP/s", bound.matmuls),
        (
            "memory",
            f"{_number(facts.memory_bytes / 1e9)} GB",
            f"{bound.memory_rate / 1e9:,.0f} GB/s",
            bound.memory,
        ),
        ("network", f"{_number(sent / 1e9)} GB sent", rate, bound.network),
    ]
    lines = [f"{'Step of a device':22}{'amount':>16}{'rate':>24}{'ms at least':>14}"]
    lines += [f"{name:22}{amount:>16}{rate:>24}{_number(1e3 * seconds):>14}" for name, amount, rate, seconds in rows]
    lines.append(f"{'bound':22}{'':40}{_number(1e3 * bound.seconds):>14}  by {bound.bound_by}")
    if bound.serial:
        lines.append(f"{'serial estimate':22}{'':40}{_number(1e3 * bound.serial):>14}  nothing overlaps")
    lines.append(f"By formula, without recomputation: {_number(facts.formula_flops / 1e12)} TFLOP.")
    if chip and any(len(servers_of(collective, chip)) > 1 for collective in facts.collectives):
        lines.append(f"Between servers, a device sends {chip.between_servers / 1e9:,.0f} GB/s.")
    return "\n".join(lines)


def _collectives(plan: Plan) -> str:
    kinds = by_kind(plan.facts.collectives)
    if not kinds:
        return "No collective operations."
    lines = [f"{'Collectives':22}{'times':>16}{'GB sent by a device':>24}"]
    return "\n".join(
        lines
        + [f"{kind:22}{entry['count']:>16,}{_number(entry['sent_bytes'] / 1e9):>24}" for kind, entry in kinds.items()]
    )


def _training(plan: Plan, bound: Bounds, price: Price) -> str:
    columns = [bound.seconds] + ([bound.serial] if bound.serial else [])
    rows = [
        ("MFU", [f"{bound.utilization(seconds):.3f}" for seconds in columns]),
        ("tokens/s", [f"{bound.tokens_per_second(seconds):,.0f}" for seconds in columns]),
    ]
    if price.tokens:
        costs = [price.of(plan, seconds) for seconds in columns]
        rows += [(name.replace("_", "-"), [_number(cost[name]) for cost in costs]) for name in costs[0]]
    heads = ["at the bound", "serial estimate"][: len(columns)]
    what = f"Training {price.tokens / 1e9:,g} G tokens" if price.tokens else "Training"
    lines = [f"{what:30}" + "".join(f"{head:>16}" for head in heads)]
    return "\n".join(lines + [f"{name:30}" + "".join(f"{value:>16}" for value in values) for name, values in rows])


def _measured(plan: Plan, bound: Bounds) -> str:
    measured = plan.facts.measured
    seconds = measured["step_seconds"]
    return (
        f"{'Measured here':22}{_number(1e3 * seconds):>16} ms a step. Predicted / measured: serial estimate "
        f"{measured['predicted_share']:.2f}\n{'':22}{'':16} (median of turns), bound {bound.seconds / seconds:.2f}."
    )


def counted(number: int, one: str, several: str = "") -> str:
    """Returns a number with its noun, whose plural has an s by default."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def _row(name: str, value: str, note: str) -> str:
    return f"{name:22}{value:>16}  {note}".rstrip()


def _gib(size: float) -> str:
    return _number(size / GIB) if size else "?"  # the compiler may not say what a step needs that does not fit


def search_text(attempts: Sequence[Attempt], topology: Topology) -> str:
    """Returns a table of what a search tried, the fastest first, of at most 100 columns."""
    heads = ("data x fsdp x tensor", "micro", "remat", "attention", "GiB", "ms", "MFU", "tokens/s")
    rows = [heads]
    for attempt in attempts:
        config, plan = attempt.config, attempt.plan
        mesh = f"{config.parallel.data} x {config.parallel.fsdp} x {config.parallel.tensor}"
        options = (
            mesh,
            f"{config.train.accumulation_steps}",
            config.model.remat,
            config.model.attention,
        )
        if plan is None:
            rows.append((*options, "-", "-", "-", f"refused: {attempt.problem}"))
        elif not plan.fits or plan.bounds is None:
            rows.append((*options, _gib(plan.facts.total_bytes), "-", "-", "out of memory"))
        else:
            bound, seconds = plan.bounds, attempt.seconds
            speed = f"{bound.tokens_per_second(seconds):,.0f}"
            rows.append(
                (
                    *options,
                    _gib(plan.facts.total_bytes),
                    _number(1e3 * seconds),
                    f"{bound.utilization(seconds):.3f}",
                    speed,
                )
            )
    widths = [*(max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]), 0]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [line if len(line) <= COLUMNS else f"{line[: COLUMNS - 3]}..." for line in lines]  # of a refusal
    order = "measured" if topology.platform == "cpu" else "by the serial estimate of a step"
    return "\n".join([f"Search on {topology.name}, {order}:", *lines])


def _number(value: float) -> str:
    """Returns a number with at least three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    decimals = 2 - math.floor(math.log10(value)) if value > 1e-9 else 0
    return f"{value:.{decimals}f}"
