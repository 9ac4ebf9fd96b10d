"""The device mesh and THE table of logical axes: which mesh axes each named axis of an array is split over.

Data parallelism, ZeRO/FSDP and tensor parallelism are rows of this table, not code paths.
"""

import dataclasses
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

LOGICAL_AXES: dict[str | None, tuple[str, ...]] = {
    # Activations
    "batch": ("data", "fsdp"),
    "length": (),
    "hidden": (),
    # Parameters (and activations inside a layer: heads, mlp)
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "norm": (),
    "head_size": (),
    "layers": (),
    "qkv": (),
    None: (),
}
STACK_AXES = ("layers", "qkv")  # along these an array holds several matrices or vectors

Axes = tuple[str | None, ...]  # the logical axes of an array

# Mesh axes that a surrounding `jax.vmap` splits; see `sum_over_copies`.
_mapped_axes: ContextVar[frozenset[str]] = ContextVar("mapped_axes", default=frozenset())


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """Sizes of the mesh axes, in devices; -1 (one of them at most) takes the devices that are left."""

    data: int = -1  # copies of the model
    fsdp: int = 1  # devices over which each copy's parameters and optimizer state are split; they split the batch too
    tensor: int = 1  # devices over which heads, feed-forward and vocabulary are split


def make_mesh(config: ParallelConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over `devices` (all by default), in their order.

    Raises:
      UserError: the sizes need more devices than there are, leave some unused, or are not positive.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    asked = ", ".join(f"parallel.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {asked}: each size must be at least 1, and one of them may be -1 (the rest)")
    known = int(np.prod([size for size in sizes if size != -1]))
    if known > len(devices):
        raise UserError(f"mesh {asked} needs {known} devices but there are {len(devices)}; use smaller sizes or -1")
    if len(devices) % known:
        raise UserError(f"mesh {asked}: {known} does not divide the {len(devices)} devices; use sizes that do")
    if -1 not in sizes and known != len(devices):
        raise UserError(f"mesh {asked} does not use all {len(devices)} devices; sizes must multiply to that, or use -1")
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def platform() -> str:
    """Returns 'cpu', 'gpu' or 'tpu': that of the mesh set by `jax.set_mesh`; without one, of jax's default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def partition_spec(axes: Axes, shape: tuple[int, ...], mesh_shape: dict[str, int]) -> PartitionSpec:
    """Returns how an array with these logical axes is split over the axes in `mesh_shape`, which may be some of the mesh's.

    An axis whose size the mesh does not divide stays whole.

    Raises:
      ValueError: an unknown name, or two axes of the array split over the same mesh axis.
    """
    unknown = [axis for axis in axes if axis not in LOGICAL_AXES]
    if unknown:
        raise ValueError(f"unknown logical axes {unknown}; the table has {[axis for axis in LOGICAL_AXES if axis]}")
    entries: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        mesh_axes = tuple(name for name in LOGICAL_AXES[axis] if name in mesh_shape)
        if used & set(mesh_axes):
            raise ValueError(f"logical axes {axes}: two of them are split over mesh axis {used & set(mesh_axes)}")
        used |= set(mesh_axes)
        divides = size % int(np.prod([mesh_shape[name] for name in mesh_axes])) == 0
        entries.append(mesh_axes if mesh_axes and divides else None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation to the table, under the mesh set by `jax.set_mesh`; the identity without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec_here(axes, x.shape))


def spec_here(axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how an activation is split under the mesh set by `jax.set_mesh`, apart from axes that `jax.vmap` splits."""
    mesh = jax.sharding.get_abstract_mesh()
    return partition_spec(axes, shape, {name: n for name, n in mesh.shape.items() if name not in _mapped_axes.get()})


def shards(axis: str, size: int) -> int:
    """Returns the number of devices over which the mesh that is set splits a logical axis of a size; 1 if it stays whole."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {} if mesh.empty else dict(mesh.shape)
    number = math.prod(sizes.get(name, 1) for name in LOGICAL_AXES[axis] if name not in _mapped_axes.get())
    return 1 if size % number else number


def sum_over_copies(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns function(batch, *others), a tree of sums over the rows of a batch [A, B, ...], added up once over the copies.

    Each copy of the model, along the mesh axis `data`, runs the function on its own rows. Otherwise the compiler would add up
    the gradients of all copies in each microbatch of a loop.
    """
    mesh = jax.sharding.get_abstract_mesh()
    copies = 1 if mesh.empty else mesh.shape["data"]

    def on_copies(batch, *others):
        def by_copy(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0], copies, -1, *x.shape[2:])

        mapped = jax.vmap(function, in_axes=(1, *(None for _ in others)), spmd_axis_name="data")
        token = _mapped_axes.set(frozenset({"data"}))
        try:
            sums = mapped(jax.tree.map(by_copy, batch), *others)
        finally:
            _mapped_axes.reset(token)
        return jax.tree.map(lambda x: x.sum(0), sums)

    return function if copies == 1 else on_copies


def matrix_sides(axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the axes of a matrix, or of each of a stack, that are its inputs and its outputs; None for vectors.

    Heads and their sizes are one side together: [layers, embed, qkv, heads, head_size] has (1,) and (3, 4).
    """
    sides: list[tuple[int, ...]] = []
    for axis, logical in enumerate(axes):
        if logical == "head_size":
            sides[-1] += (axis,)
        elif logical not in STACK_AXES:
            sides.append((axis,))
    return (sides[0], sides[1]) if len(sides) == 2 else None


def shardings(abstract, axes, mesh: Mesh):
    """Returns the NamedShardings of a tree of abstract arrays whose logical axes are the tree `axes` of tuples."""
    return jax.tree.map(
        lambda array, names: NamedSharding(mesh, partition_spec(names, array.shape, dict(mesh.shape))), abstract, axes
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches [microbatches, rows, ...]: the rows are split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, LOGICAL_AXES["batch"]))


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of devices over which the rows of a microbatch are split."""
    return int(np.prod([mesh.shape[axis] for axis in LOGICAL_AXES["batch"]]))


def mesh_of(arrays: Any) -> Mesh:
    """Returns the mesh that a tree of arrays is on; for arrays of a single device, a mesh of that device."""
    sharding = jax.tree.leaves(arrays)[0].sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else make_mesh(ParallelConfig(), [*sharding.device_set])


def with_shardings(abstract: Any, placed: Any) -> Any:
    """Returns abstract arrays with their shardings."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, placed)
