"""Compiles a training step for a topology, without the hardware, in a process of its own, and says what it costs.

`python -m tools.lib.plan_compile` reads a job from its standard input, and prints `Facts` as the last line of its output. One
process for each step returns the memory of the compiler, and jax takes the number of virtual CPU devices only when it starts.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.config import from_dict, to_dict
from bert_jax.errors import UserError
from bert_jax.model.attention.attend import chosen_for
from bert_jax.objectives.losses import Losses
from bert_jax.parallel import hosts
from bert_jax.parallel.chips import Chip
from bert_jax.parallel.mesh import batch_shards, make_mesh, with_shardings
from bert_jax.tasks.pretraining import Config
from bert_jax.train.flops import flops_per_token, local_keys
from bert_jax.train.placement import check_placement
from bert_jax.train.step import Training
from tools.lib import plan_measure
from tools.lib.hlo import Program
from tools.lib.hlo_costs import Collective, collectives, costs
from tools.lib.plan_topology import Topology
from tools.lib.step_of_config import abstract_batch, losses_of, random_batch

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a compiled step needs; sizes are bytes of one device, and everything is for one step."""

    mesh: dict[str, int]
    attention: dict[str, str]  # implementation for 'global' and 'local' layers, as chosen for the planned platform
    parameters: int  # of the model, all devices together
    formula_flops: float  # of one device: by train/flops.py, without recomputation
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    activation_bytes: int  # saved for the backward pass of a microbatch, as jax traces it: an upper bound
    compile_seconds: float
    total_bytes: int  # also where it is out of memory; 0 if the compiler does not say
    out_of_memory: str  # the compiler's message; '' if it fits
    temporary_bytes: int = 0
    matmul_flops: float = 0.0  # of one device: of the compiled matmuls, with recomputation
    memory_bytes: float = 0.0
    serial_seconds: float = 0.0  # of the instructions one after the other, each bound by matmuls or by memory
    collectives: tuple[Collective, ...] = ()
    measured: dict[str, float] = dataclasses.field(default_factory=dict)  # of a CPU: see plan_measure.py


def compile_step(config: Config, topology: Topology, with_measurement: bool = False) -> Facts:
    """Compiles the step of a config with a single phase in a child process.

    Raises:
      UserError: whatever of the config does not fit the devices, or the compiler failed.
    """
    job = {"config": to_dict(config), "topology": topology.name, "with_measurement": with_measurement}
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_TRACEBACK_FILTERING": "off",  # so that the last line is the error
        "TPU_SKIP_MDS_QUERY": "1",  # it would ask the network whether this is a machine with TPUs
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling needs no TPU, so others may do it at the same time
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    finished = subprocess.run(
        [sys.executable, "-m", "tools.lib.plan_compile"],
        input=json.dumps(job),
        env=environment,
        capture_output=True,
        text=True,
    )
    answer = finished.stdout.rstrip().rpartition("\n")[2]
    if finished.returncode or not answer.startswith("{"):
        last = (finished.stderr.strip() or "no message").splitlines()[-1]
        if finished.returncode == -signal.SIGKILL:
            last = "killed, probably for lack of this machine's memory; free some, or plan fewer layers"
        raise UserError(f"compiling for {topology.name} ended with exit code {finished.returncode}: {last}")
    values = json.loads(answer)
    if "error" in values:
        raise UserError(values["error"])
    collectives = [
        Collective(**entry | {"group": tuple(entry["group"]), "loops": tuple(entry["loops"])})
        for entry in values.pop("collectives")
    ]
    return Facts(**values, collectives=tuple(collectives))


# ----------------------------------------------------------------------------------------------------------------------
# In the child process
# ----------------------------------------------------------------------------------------------------------------------


def main() -> None:
    job = json.loads(sys.stdin.read())
    topology = Topology.parse(job["topology"])
    hosts.start("")  # as the commands do
    if topology.platform != "tpu":
        jax.config.update("jax_num_cpu_devices", topology.devices)
    try:
        config = from_dict(Config(), job["config"])
        answer = dataclasses.asdict(facts(config, topology, job["with_measurement"]))
        answer["collectives"] = [entry._asdict() for entry in answer["collectives"]]
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def devices_of(topology: Topology) -> list[jax.Device]:
    """Returns devices to compile for; virtual CPUs for GPUs.

    Raises:
      UserError: libtpu does not know the topology.
    """
    if topology.platform != "tpu":
        return jax.devices()
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if topology.devices == 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology={topology.name}: libtpu says {error}") from None


def facts(config: Config, topology: Topology, with_measurement: bool) -> Facts:
    """Returns what the step of a config needs on a topology."""
    mesh = make_mesh(config.parallel, devices_of(topology))
    attention = chosen_for(config.model, config.data.sequence_length, topology.platform)
    if topology.platform == "gpu":  # virtual CPUs have no cuDNN; the memory of 'chunked' is linear in the length, too
        stand_in = "plain" if set(attention.values()) == {"plain"} else "chunked"
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=stand_in))
    losses = losses_of(config)
    with jax.set_mesh(mesh):
        check_placement(losses.model, mesh)
        training = Training.of(losses, config, mesh)
        state = with_shardings(jax.eval_shape(training.make_state), training.placed)
        batch = abstract_batch(config, losses, mesh)
        fields = {
            "mesh": dict(mesh.shape),
            "attention": attention,
            "parameters": sum(array.size for array in jax.tree.leaves(state["params"])),
            "formula_flops": formula_flops(config) / mesh.size,
            "parameter_bytes": bytes_on_device(state["params"]) + bytes_on_device(state.get("ema")),
            "optimizer_bytes": bytes_on_device(state["opt_state"]),
            "batch_bytes": bytes_on_device(batch),
            "activation_bytes": activation_bytes(config, losses, mesh, state["params"], batch),
        }
        start = time.monotonic()
        lowered = training.jitted_step.trace(state, {}, batch).lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            message = " ".join(str(error).split())
            if "RESOURCE_EXHAUSTED" not in message:
                raise
            if "vmem" in message:
                raise UserError(
                    "a kernel needs more than the vector memory of the chip; set --config.model.attention=chunked: "
                    f"{message[:500]}"
                ) from None
            fields |= {"compile_seconds": time.monotonic() - start, "out_of_memory": message[:2000]}
            state_bytes = fields["parameter_bytes"] + fields["optimizer_bytes"] + fields["batch_bytes"]
            return Facts(**fields, total_bytes=needed_bytes(message, state_bytes))
        fields["compile_seconds"] = time.monotonic() - start
        hidden_flops = splash_flops(config, attention) / mesh.size
        fields |= compiled_fields(compiled, topology.chip, config.model.dtype, hidden_flops)
        if with_measurement:
            each = costs(Program.parse(compiled.as_text()))
            batch_here = random_batch(config, losses, mesh)
            measured = plan_measure.measure(training, compiled, batch_here, config.model.dtype, each)
            fields |= {"measured": measured, "serial_seconds": measured["predicted_seconds"]}
        return Facts(**fields, out_of_memory="")


def compiled_fields(compiled: Any, chip: Chip | None, dtype: str, hidden_flops: float) -> dict[str, Any]:
    """Returns the fields of `Facts` that the compiled program tells; `serial_seconds` is 0 without a chip.

    Args:
      compiled: the step.
      chip: what it is compiled for; None for a CPU.
      dtype: of its matmuls.
      hidden_flops: of matmuls in kernels, which the program does not show.
    """
    memory, program = compiled.memory_analysis(), Program.parse(compiled.as_text())
    each = costs(program)
    serial = 0.0
    if chip:
        rate = flops_rate(chip, dtype)
        serial = sum(cost.times * max(cost.flops / rate, cost.bytes / chip.memory_rate) for cost in each)
        serial += hidden_flops / rate
    held = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes  # most take the place of the donated state
    return {
        "temporary_bytes": held,
        "total_bytes": memory.argument_size_in_bytes + held + outputs,
        "matmul_flops": sum(cost.times * cost.flops for cost in each) + hidden_flops,
        "memory_bytes": sum(cost.times * cost.bytes for cost in each),
        "serial_seconds": serial,
        "collectives": tuple(collectives(program)),
    }


def formula_flops(config: Config) -> float:
    """Returns the floating-point operations of a step on all devices, by formula."""
    share = config.options["mlm"].mlm_probability if "mlm" in config.objectives else 0.0
    length = config.data.sequence_length
    return config.train.batch_size * length * flops_per_token(config.model, length, share)


def splash_flops(config: Config, attention: dict[str, str]) -> float:
    """Returns the floating-point operations of a step on all devices that are in kernels of splash attention."""
    model, length, keys = config.model, config.data.sequence_length, 0.0
    for layer in range(
        model.num_layers - (model.repeats == 1)
    ):  # the last one may have few queries; see model/stack.py
        window = model.window(layer)
        if attention["global" if window is None else "local"] == "splash":
            keys += length if window is None else local_keys(length, window)
    return config.train.batch_size * length * 12 * model.hidden_size * keys  # as in train/flops.py


def flops_rate(chip: Chip, dtype: str) -> float:
    """Returns the FLOP/s of matmuls in a dtype: GPUs multiply float32 as TF32, at half the rate; TPUs as bfloat16."""
    return chip.flops / (2 if dtype == "float32" and chip.is_gpu else 1)


def bytes_on_device(arrays: Any) -> int:
    """Returns the bytes of a tree of abstract arrays that one device holds."""
    return sum(
        int(np.prod(array.sharding.shard_shape(array.shape))) * array.dtype.itemsize
        for array in jax.tree.leaves(arrays)
    )


def activation_bytes(config: Config, losses: Losses, mesh: Mesh, params: Any, batch: dict[str, Any]) -> int:
    """Returns the bytes of a microbatch's activations that one device keeps for the backward pass, as jax traces it.

    What grows with the rows: the difference between the residuals of two microbatches. Tensor parallelism, which splits some of
    them further, is not taken into account, nor is what the compiler computes again.
    """
    shards = batch_shards(mesh)

    def residuals(rows: int) -> int:
        def saved(params, batch):
            normalizers = losses.normalizers(batch)

            def loss(params):
                return losses.compute(params, {}, batch, normalizers, jax.random.split(jax.random.key(0), rows))[0]

            return jax.vjp(loss, params)[1]

        part = {name: jax.ShapeDtypeStruct((rows, *x.shape[2:]), x.dtype) for name, x in batch.items()}
        leaves = jax.tree.leaves(jax.eval_shape(saved, params, part))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    rows = config.train.batch_size // config.train.accumulation_steps
    return (residuals(2 * shards) - residuals(shards)) // shards * rows // shards


def needed_bytes(message: str, state_bytes: int) -> int:
    """Returns what a program needs by the compiler's message that it does not fit; 0 if it does not say.

    A message may be about temporaries only, to which `state_bytes` are added.
    """
    used = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    temporaries = re.search(r"memory required[^(]*\(([\d.]+)([KMGT])\)", message)
    if not (amount := used or temporaries):
        return 0
    size = int(float(amount[1]) * (1 << 10 * (1 + "KMGT".index(amount[2]))))
    return size if used else size + state_bytes


if __name__ == "__main__":
    main()
