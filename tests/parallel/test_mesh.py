"""The mesh and the table of logical axes, and where parameters and the optimizer's moments come to lie."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from bert_jax.errors import UserError
from bert_jax.parallel.mesh import (
    LOGICAL_AXES,
    MESH_AXES,
    ParallelConfig,
    batch_shards,
    constrain,
    make_mesh,
    partition_spec,
)

SHAPE = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    "sizes, expected",
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 1, -1), (1, 1, 8)), ((2, 2, 2), (2, 2, 2))],
)
def test_mesh_sizes(sizes, expected):
    mesh = make_mesh(ParallelConfig(*sizes))
    assert tuple(mesh.shape.values()) == expected and mesh.axis_names == MESH_AXES
    assert batch_shards(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((4, 4, 1), r"parallel.data=4, parallel.fsdp=4, parallel.tensor=1 needs 16 devices but there are 8"),
        ((2, 2, 1), "does not use all 8 devices"),
        ((-1, 3, 1), "3 does not divide the 8 devices"),
        ((-1, -1, 1), "one of them may be -1"),
        ((0, 1, 1), "each size must be at least 1"),
        ((-2, 1, 1), "each size must be at least 1"),
    ],
)
def test_meshes_that_cannot_be(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(ParallelConfig(*sizes))


def test_the_table_names_mesh_axes_only():
    for name, axes in LOGICAL_AXES.items():
        assert set(axes) <= set(MESH_AXES), f"logical axis {name!r} is split over {axes}, of which the mesh lacks some"


def test_unknown_logical_axes_are_refused():
    with pytest.raises(ValueError, match=r"unknown logical axes \['width'\]; the table has"):
        partition_spec(("width",), (8,), SHAPE)


@pytest.mark.parametrize("axes", [("heads", "mlp"), ("embed", "embed"), ("batch", "embed"), ("vocab", None, "heads")])
def test_two_axes_over_one_mesh_axis_are_refused(axes):
    with pytest.raises(ValueError, match="two of them are split over mesh axis"):
        partition_spec(axes, (8,) * len(axes), SHAPE)


def test_what_the_mesh_does_not_divide_stays_whole():
    assert partition_spec(("vocab", "embed"), (7, 8), SHAPE) == PartitionSpec(None, ("fsdp",))
    assert partition_spec(("batch", "length", "hidden"), (6, 8, 8), SHAPE) == PartitionSpec(None, None, None)
    assert partition_spec(("batch", "length", "hidden"), (4, 8, 8), SHAPE) == PartitionSpec(
        ("data", "fsdp"), None, None
    )


def test_constrain_needs_no_mesh():
    x = jnp.ones((8, 4))
    assert constrain(x, "batch", "hidden") is x
    with jax.set_mesh(make_mesh(ParallelConfig(data=8))):
        split = jax.jit(lambda x: constrain(x, "batch", "hidden"))(x)
    assert split.addressable_shards[0].data.shape == (1, 4)


# How a mesh of 2 x 2 x 2 splits each parameter of BERT with both heads: parts along each axis, the stacked layers first.
PARTS = {
    "encoder/embeddings/norm/bias": (1,),
    "encoder/embeddings/norm/scale": (1,),
    "encoder/embeddings/positions/embedding": (1, 2),
    "encoder/embeddings/token_types/embedding": (1, 2),
    "encoder/embeddings/tokens/embedding": (2, 2),
    "encoder/layers/attention/out/bias": (1, 2),
    "encoder/layers/attention/out/kernel": (1, 2, 1, 2),
    "encoder/layers/attention/qkv/bias": (1, 1, 2, 1),
    "encoder/layers/attention/qkv/kernel": (1, 2, 1, 2, 1),
    "encoder/layers/attention_norm/bias": (1, 1),
    "encoder/layers/attention_norm/scale": (1, 1),
    "encoder/layers/mlp/down/bias": (1, 2),
    "encoder/layers/mlp/down/kernel": (1, 2, 2),
    "encoder/layers/mlp/up/bias": (1, 2),
    "encoder/layers/mlp/up/kernel": (1, 2, 2),
    "encoder/layers/mlp_norm/bias": (1, 1),
    "encoder/layers/mlp_norm/scale": (1, 1),
    "encoder/pooler/bias": (1,),
    "encoder/pooler/kernel": (2, 1),
    "heads/mlm/bias": (2,),
    "heads/mlm/transform/dense/bias": (1,),
    "heads/mlm/transform/dense/kernel": (2, 1),
    "heads/mlm/transform/norm/bias": (1,),
    "heads/mlm/transform/norm/scale": (1,),
    "heads/nsp/dense/bias": (1,),
    "heads/nsp/dense/kernel": (2, 1),
}


def parts(array: jax.Array) -> tuple[int, ...]:
    shard = array.addressable_shards[0].data.shape
    return tuple(whole // part for whole, part in zip(array.shape, shard, strict=True))


def flat(tree) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree.leaves_with_path(tree)}


def test_state_lies_where_the_table_says_before_and_after_a_step(tiny_config, start_run):
    values = tiny_config(**{"parallel.data": 2, "parallel.fsdp": 2, "parallel.tensor": 2, "train.ema_decay": 0.9})
    run = start_run(values, fresh=True)
    with jax.set_mesh(run.mesh):
        after, _ = run.step(run.state, next(run.batches()))
    for when, state in (("after initialisation", run.state), ("after a step", after)):
        assert {path: parts(array) for path, array in flat(state["params"]).items()} == PARTS, when
        assert {path: parts(array) for path, array in flat(state["ema"]).items()} == PARTS, f"ema {when}"
        (moments,) = [part for part in state["opt_state"] if hasattr(part, "mu")]
        for name in ("mu", "nu"):
            assert {path: parts(array) for path, array in getattr(moments, name).items()} == PARTS, f"{name} {when}"
        for path, array in flat(state).items():
            assert len(array.sharding.device_set) == 8, f"{path} is not on all devices {when}"
