"""The step is lowered and compiled for platforms and devices that are not there."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from bert_jax.parallel.mesh import MESH_AXES, ParallelConfig, batch_sharding, make_mesh, platform, with_shardings
from bert_jax.tasks import base as tasks
from bert_jax.train.step import Training
from tools.lib.hlo import Program
from tools.lib.hlo_costs import Collective, collectives

MODEL = {"model.vocab_size": 1024, "model.hidden_size": 128, "model.intermediate_size": 512, "model.num_layers": 3}

MESHES = {"data": {"data": 16}, "fsdp": {"data": 2, "fsdp": 8}, "tensor": {"data": 8, "tensor": 2}}  # of 16 devices
MICROBATCHES = 2


@pytest.fixture(scope="module")
def lowered(tiny_config, start_run):
    """`lowered(mesh, microbatches, lowering_platforms)`: the step of a tiny run on devices that are only described."""

    @functools.cache
    def task_and_batch(microbatches: int):
        # Two rows for each device and microbatch, where a mesh has eight.
        sizes = {"train.batch_size": 16 * microbatches, "train.accumulation_steps": microbatches}
        values = tiny_config(**MODEL, **sizes, **{"model.dropout": 0.1})
        return tasks.create(values, Path("no-folder")), next(start_run(values).batches())

    def lower(mesh, microbatches=1, **options):
        task, batch = task_and_batch(microbatches)
        with jax.sharding.use_abstract_mesh(mesh) if isinstance(mesh, AbstractMesh) else jax.set_mesh(mesh):
            training = Training.of(task.losses, task.config, mesh)
            state = with_shardings(jax.eval_shape(training.make_state), training.placed)
            sharding = batch_sharding(mesh)
            abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in batch.items()}
            return training.jitted_step.trace(state, {}, abstract).lower(**options)

    return lower


def test_the_step_is_lowered_for_the_platform_of_the_mesh(lowered):
    """Only for CPUs the layers are not in a loop, whatever devices this process has; and arrays are split over the mesh."""
    loops = {}
    for name, lowering in (("cpu", "cpu"), ("tpu", "tpu"), ("gpu", "cuda")):
        mesh = AbstractMesh((2, 2, 1), MESH_AXES, abstract_device=AbstractDevice(name, 1, name))
        with jax.sharding.use_abstract_mesh(mesh):
            assert platform() == name
        assert '"fsdp"' in lowered(mesh, lowering_platforms=(lowering,)).as_text(), f"no array is split on {name}"
        loops[name] = lowered(mesh, lowering_platforms=("tpu",)).as_text().count("stablehlo.while")
    assert loops["cpu"] == loops["tpu"] - 2 == loops["gpu"] - 2, (
        f"{loops}; the forward and the backward pass have one each"
    )
    assert platform() == "cpu"


@pytest.fixture(scope="module")
def compiled_for_tpus(libtpu, lowered):
    """`compiled_for_tpus(data=2, fsdp=8)`: the step compiled for 16 TPUs v5e."""
    from jax.experimental import topologies

    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices)

    @functools.cache
    def compile(microbatches=1, **sizes):
        return lowered(make_mesh(ParallelConfig(**sizes), devices), microbatches).compile()

    return compile


def collectives_of(compiled) -> list[Collective]:
    """Collective operations of a compiled program but those of a few numbers, such as sums of losses and of biases."""
    return [operation for operation in collectives(Program.parse(compiled.as_text())) if operation.bytes > 10_000]


def parameters_of(compiled) -> int:
    """Bytes of the parameters, in float32: the inputs hold them and two moments."""
    return sum(leaf.size * 4 for leaf in jax.tree.leaves(compiled.in_avals[0][0]["params"]))


def check_sums_of_copies(compiled) -> None:
    """Each gradient is summed over the copies once, after all microbatches; parts of parameters are summed in parts."""
    sums = [operation for operation in collectives_of(compiled) if operation.kind == "all-reduce"]
    assert sums and not any(operation.loops for operation in sums), sums
    np.testing.assert_allclose(sum(operation.bytes for operation in sums), parameters_of(compiled), rtol=0.02)


def test_gradients_are_summed_once_a_step(lowered):
    compiled = lowered(make_mesh(ParallelConfig(), jax.devices()), MICROBATCHES).compile()
    check_sums_of_copies(compiled)
    assert {operation.kind for operation in collectives_of(compiled)} == {"all-reduce"}


def test_gradients_are_summed_once_a_step_on_tpus(compiled_for_tpus):
    check_sums_of_copies(compiled_for_tpus(MICROBATCHES, **MESHES["data"]))


def check_sums_of_a_single_microbatch(compiled) -> None:
    """The table of tokens, with which the head predicts, has two gradients, each summed once; all others have one."""
    sums = [operation for operation in collectives_of(compiled) if operation.kind == "all-reduce"]
    table = compiled.in_avals[0][0]["params"]["encoder"]["embeddings"]["tokens"]["embedding"]
    most = parameters_of(compiled) + 4 * table.size
    assert 0 < sum(operation.times * operation.bytes for operation in sums) < 1.02 * most


def test_gradients_of_a_single_microbatch_are_summed_once(lowered):
    check_sums_of_a_single_microbatch(lowered(make_mesh(ParallelConfig(), jax.devices())).compile())


def test_gradients_of_a_single_microbatch_are_summed_once_on_tpus(compiled_for_tpus):
    check_sums_of_a_single_microbatch(compiled_for_tpus(**MESHES["data"]))


def test_microbatches_accumulate_in_place(lowered):
    """Twice as many, of the same size, need no more memory."""
    mesh = make_mesh(ParallelConfig(), jax.devices())
    two, four = (lowered(mesh, number).compile().memory_analysis().temp_size_in_bytes for number in (2, 4))
    assert four < 1.05 * two


def test_parameters_are_gathered_and_gradients_summed_layer_by_layer_on_tpus(compiled_for_tpus):
    """Under fsdp no array of all layers is whole on a device; and what copies of the model sum is split."""
    for microbatches in (1, MICROBATCHES):
        compiled = compiled_for_tpus(microbatches, **MESHES["fsdp"])
        operations = collectives_of(compiled)
        gathered = [operation for operation in operations if operation.kind == "all-gather"]
        layers = [operation for operation in gathered if len(operation.loops) == (1 if microbatches == 1 else 2)]
        assert layers and max(operation.bytes for operation in layers) <= 4 * 128 * 512, "more than a matrix of a layer"
        assert max(operation.bytes for operation in gathered) <= 4 * 1024 * 128, "more than the table of tokens"
        # Within a loop over microbatches libtpu (0.0.42) sums whole gradients, of a layer at a time.
        assert microbatches > 1 or any(
            operation.kind == "reduce-scatter" and operation.loops for operation in operations
        )
        copies = [operation for operation in operations if operation.kind == "all-reduce" and not operation.loops]
        assert sum(operation.bytes for operation in copies) < 0.6 * parameters_of(compiled), (
            "the copies sum whole gradients"
        )


def bytes_per_device(compiled) -> int:
    """Most memory that a program needs at a time; its outputs take the place of the donated state."""
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs


@pytest.mark.parametrize("name", MESHES)
def test_the_step_is_compiled_for_tpus(name, compiled_for_tpus):
    """Copies of a model add up their gradients and need nothing else of each other; split arrays are gathered."""
    compiled = compiled_for_tpus(**MESHES[name])
    kinds = {operation.kind for operation in collectives(Program.parse(compiled.as_text()))}
    assert "all-reduce" in kinds
    assert ("all-gather" in kinds) == (name == "fsdp"), kinds
    if name != "data":
        whole = compiled_for_tpus(**MESHES["data"])
        state, whole_state = (program.memory_analysis().argument_size_in_bytes for program in (compiled, whole))
        assert state < 0.6 * whole_state, "parameters and moments are not split"
        assert bytes_per_device(compiled) < 0.9 * bytes_per_device(whole)
