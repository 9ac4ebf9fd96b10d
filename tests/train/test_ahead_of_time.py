"""The step is lowered and compiled for platforms and devices that are not there."""

import functools
import re
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from bert_jax.parallel.mesh import MESH_AXES, ParallelConfig, batch_sharding, make_mesh, platform, with_shardings
from bert_jax.tasks import base as tasks
from bert_jax.train.step import Training

MODEL = {"model.vocab_size": 1024, "model.hidden_size": 128, "model.intermediate_size": 512, "model.num_layers": 3}

MESHES = {"data": {"data": 4}, "fsdp": {"data": 1, "fsdp": 4}, "tensor": {"data": 2, "tensor": 2}}


@pytest.fixture(scope="module")
def lowered(tiny_config, start_run):
    """`lowered(mesh, lowering_platforms)`: the step of a tiny run on a mesh of devices that are only described."""
    values = tiny_config(**MODEL, **{"model.dropout": 0.1})
    batch = next(start_run(values).batches())
    task = tasks.create(values, Path("no-folder"))

    def lower(mesh, **options):
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
    """`compiled_for_tpus(data=2, fsdp=2)`: the step compiled for four TPUs v5e."""
    from jax.experimental import topologies

    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)

    @functools.cache
    def compile(**sizes):
        return lowered(make_mesh(ParallelConfig(**sizes), devices)).compile()

    return compile


def collectives(compiled) -> set[str]:
    """Kinds of collective operations in a compiled program."""
    text = compiled.as_text()
    return set(re.findall(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)[.\w-]*\(", text))


def bytes_per_device(compiled) -> int:
    """Most memory that a program needs at a time; its outputs take the place of the donated state."""
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs


@pytest.mark.parametrize("name", MESHES)
def test_the_step_is_compiled_for_tpus(name, compiled_for_tpus):
    """Copies of a model add up their gradients and need nothing else of each other; split arrays are gathered."""
    compiled = compiled_for_tpus(**MESHES[name])
    assert "all-reduce" in collectives(compiled)
    assert ("all-gather" in collectives(compiled)) == (name == "fsdp"), collectives(compiled)
    if name != "data":
        whole = compiled_for_tpus(**MESHES["data"])
        state, whole_state = (program.memory_analysis().argument_size_in_bytes for program in (compiled, whole))
        assert state < 0.6 * whole_state, "parameters and moments are not split"
        assert bytes_per_device(compiled) < 0.9 * bytes_per_device(whole)
