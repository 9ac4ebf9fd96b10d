"""The reader of compiled programs, on programs whose costs are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from tools.lib.hlo import Program
from tools.lib.hlo_costs import _pairs, collectives, costs, first_group

LAYERS, ROWS, WIDTH = 6, 256, 512
MATRIX = WIDTH * WIDTH


def program(function, *shapes, mesh=None, specs=None):
    """The compiled program of a function of float32 arrays, on one device or on a mesh."""
    mesh = mesh or make_mesh(ParallelConfig(), jax.devices()[:1])
    specs = specs or [PartitionSpec()] * len(shapes)
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        return Program.parse(jax.jit(function).trace(*arrays).lower().compile().as_text())


def product_flops(read):
    return sum(cost.times * cost.flops for cost in costs(read))


def memory_bytes(read):
    return sum(cost.times * cost.bytes for cost in costs(read))


def layers(weights, x):
    return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]


def step(weights, x):
    """A step of gradient descent; its gradient takes three products for each one of the forward pass."""
    return weights - jax.grad(lambda weights: (layers(weights, x) ** 2).sum())(weights)


def split_step(devices):
    """The step with weights split over four devices and rows over eight."""
    mesh = make_mesh(ParallelConfig(data=2, fsdp=4), devices)
    specs = PartitionSpec(None, "fsdp"), PartitionSpec(("data", "fsdp"))
    return program(step, (LAYERS, WIDTH, WIDTH), (ROWS, WIDTH), mesh=mesh, specs=specs)


def check_split_step(read, item):
    """Weights are gathered in both loops, and gradients reduced over the copies and the parts of the weights.

    Returns the reductions, as kind, bytes and devices; `item` is the size of a number in bytes.
    """
    assert product_flops(read) == 3 * 2 * LAYERS * (ROWS // 8) * WIDTH * WIDTH
    gathered, reduced = [], []
    for collective in collectives(read):
        assert len(collective.loops) == 1 and "while" in collective.loops[0]
        assert collective.times == LAYERS
        (gathered if collective.kind == "all-gather" else reduced).append(collective)
    assert [(collective.bytes, collective.devices) for collective in gathered] == [(item * MATRIX, 4)] * 2
    assert gathered[0].sent_bytes == LAYERS * item * MATRIX * 3 / 4
    assert "transpose" not in gathered[0].loops[0] and "transpose" in gathered[1].loops[0]
    return {(collective.kind, collective.bytes, collective.devices) for collective in reduced}


def test_what_a_loop_repeats_counts_as_often_as_it_runs():
    reduced = check_split_step(split_step(jax.devices()), 4)
    assert reduced == {("all-reduce", 4 * MATRIX, 4), ("all-reduce", MATRIX, 2)}, "no reduce-scatter on CPUs"


def test_a_program_for_tpus(libtpu):
    """Products are convolutions there, what is overlapped appears several times, and sums are scattered."""
    from jax.experimental import topologies

    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices)
    reduced = check_split_step(
        split_step(devices), 2
    )  # in bfloat16, as products read it by default; sums are in float32
    assert reduced == {("reduce-scatter", 4 * MATRIX, 4), ("all-reduce", MATRIX, 2)}

    weights = LAYERS, WIDTH, WIDTH
    mesh, specs = (
        make_mesh(ParallelConfig(data=1, fsdp=8), devices),
        (PartitionSpec(None, "fsdp"), PartitionSpec("fsdp")),
    )
    split = program(layers, weights, (64 * ROWS, WIDTH), mesh=mesh, specs=specs)
    assert product_flops(split) == 2 * LAYERS * 8 * ROWS * WIDTH * WIDTH, "in parts, while the weights go round"

    mesh = make_mesh(ParallelConfig(), devices[:1])
    shapes = (16, 12, 128, 64), (16, 12, 64, 128)  # batches and heads: two axes of the batch
    assert product_flops(program(jnp.matmul, *shapes, mesh=mesh)) == 2 * 16 * 12 * 128 * 64 * 128
    read = program(lambda x: jnp.exp(x).sum(), (1 << 26,), mesh=mesh)
    assert memory_bytes(read) == pytest.approx(4 << 26, rel=0.01), "too much for the memory on the chip"


def test_memory_of_loops_and_slices():
    """A fusion reads the slice of what is stacked, and writes the part that it replaces."""
    rows, columns = 64, 4096

    def stack(x):
        return jax.lax.scan(lambda total, row: (total + row, jnp.sin(total * row)), jnp.zeros(columns), x)[1]

    moved, whole = memory_bytes(program(stack, (rows, columns))), 4 * rows * columns
    assert 4 * whole < moved < 10 * whole, "the total and a row are read, the total and a row written, a few copies"
    product = program(jnp.matmul, (512, 256), (256, 1024))
    assert memory_bytes(product) == 4 * (512 * 256 + 256 * 1024 + 512 * 1024)


def test_loops_by_their_counter():
    """Programs for TPUs do not say how often their loops run, and some count in steps of two."""
    read = program(layers, (LAYERS, WIDTH, WIDTH), (ROWS, WIDTH))
    loop = next(step.instruction for step in read.executions if step.instruction.opcode == "while")
    assert read.trip_count(loop, read.entry) == LAYERS, "XLA says it"
    for step, times in ((1, 16), (2, 8), (3, 6)):
        counted = Program.parse(COUNTED.replace("constant(2)", f"constant({step})"))
        assert [execution.times for execution in counted.executions if execution.instruction.opcode == "add"] == [
            3 * times,
            3,
        ]
    with pytest.raises(ValueError, match="does not say how often it runs"):
        _ = Program.parse(COUNTED.replace("add(%counter, %step)", "multiply(%counter, %step)")).executions


# A loop to 16 by two inside a loop to 3 by one; the limit and the step of the inner one are carried through the outer one.
COUNTED = """HloModule counted, num_partitions=4

%inner_body (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p = (s32[], s32[]) parameter(0)
  %counter = s32[] get-tuple-element(%p), index=0
  %step = s32[]{:T(128)} get-tuple-element(%p), index=1
  %next = s32[] add(%counter, %step)
  ROOT %result = (s32[], s32[]) tuple(%next, %step)
}

%inner_condition (p.1: (s32[], s32[])) -> pred[] {
  %p.1 = (s32[], s32[]) parameter(0)
  %counter.1 = s32[] get-tuple-element(%p.1), index=0
  %limit = s32[] constant(16)
  ROOT %less = pred[] compare(%counter.1, %limit), direction=LT
}

%body (q: (s32[], s32[])) -> (s32[], s32[]) {
  %q = (s32[], s32[]) parameter(0)
  %counter.2 = s32[] get-tuple-element(%q), index=0
  %carried = s32[] get-tuple-element(%q), index=1
  %one = s32[] constant(1)
  %zero = s32[] constant(0)
  %copied = s32[] copy(%carried)
  %start = (s32[], s32[]) tuple(%zero, %copied)
  %inner = (s32[], s32[]) while(%start), condition=%inner_condition, body=%inner_body
  %next.2 = s32[] add(%counter.2, %one)
  %copied.2 = s32[] copy(%next.2)
  %copied.3 = s32[] copy(%carried)
  ROOT %result.2 = (s32[], s32[]) tuple(%copied.2, %copied.3)
}

%condition (q.1: (s32[], s32[])) -> pred[] {
  %q.1 = (s32[], s32[]) parameter(0)
  %counter.3 = s32[] get-tuple-element(%q.1), index=0
  %limit.1 = s32[] constant(3)
  ROOT %less.1 = pred[] compare(%counter.3, %limit.1), direction=LT
}

ENTRY %main () -> (s32[], s32[]) {
  %zero.1 = s32[] constant(0)
  %two = s32[] constant(2)
  %start.1 = (s32[], s32[]) tuple(%zero.1, %two)
  ROOT %outer = (s32[], s32[]) while(%start.1), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
    "attributes, group",
    [
        ("replica_groups={{0,2,4},{1,3,5}}, use_global_device_ids=true", (0, 2, 4)),
        ("replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", (0, 2, 4, 6)),
        ("replica_groups=[2,8]<=[16]", tuple(range(8))),
        (
            "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={1}",
            (0, 1, 2, 3),
        ),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}, dimensions={1}", (0, 4, 8, 12)),
        ("replica_groups={}, to_apply=%add", tuple(range(16))),
    ],
)
def test_groups(attributes, group):
    assert first_group(attributes, 16) == group


@pytest.mark.parametrize("outputs, kernel", [(9, 4), (4, 9)])
@pytest.mark.parametrize("stride, low, left_step, right_step", [(1, 1, 1, 1), (2, 3, 1, 2), (1, 2, 3, 1), (5, 0, 2, 3)])
def test_places_of_a_window_that_hold_an_element(outputs, kernel, stride, low, left_step, right_step):
    places = [output * stride - low + tap * right_step for output in range(outputs) for tap in range(kernel)]
    filled = sum(place % left_step == 0 and 0 <= place < 6 * left_step for place in places)
    assert _pairs(6, kernel, outputs, stride, low, left_step, right_step) == filled
