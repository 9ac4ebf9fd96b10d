"""Placement of a model's arrays on a mesh: errors or warnings for sizes that do not divide, and a list of the largest."""

import logging
import math
from collections.abc import Callable
from functools import partial

from flax import traverse_util
from jax.sharding import Mesh

from bert_jax.errors import UserError
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import LOGICAL_AXES, partition_spec

logger = logging.getLogger(__name__)
SHOWN = 10  # arrays in `largest_arrays`
HARDWARE_MULTIPLE = 128  # of rows of a padded vocabulary

# Options that are sizes of a logical axis in every layer, and what must hold for a value in addition to divisibility.
IN_LAYERS: dict[str, tuple[str, Callable[[EncoderConfig, int], bool]]] = {
    "num_heads": ("heads", lambda config, size: config.hidden_size % size == 0),
    "intermediate_size": ("mlp", lambda config, size: True),
    "hidden_size": ("embed", lambda config, size: size % (2 * config.num_heads) == 0),  # rotary heads are even
}
OUTSIDE_LAYERS = {"vocab_size": "vocab", "embedding_size": "embed"}


def check_placement(model: Model, mesh: Mesh) -> None:
    """Warns of tables that are not split because their mesh axis does not divide them.

    Raises:
      UserError: the arrays of every layer would not be split.
    """
    config = model.config
    for option, (axis, fits) in IN_LAYERS.items():
        parts, size = _parts(axis, mesh), getattr(config, option)
        if size % parts:
            mesh_option = f"parallel.{LOGICAL_AXES[axis][0]}"
            smaller = max(n for n in range(1, parts) if mesh.size % n == 0 and _divides_layers(config, axis, n))
            near = _nearest(size, parts, partial(fits, config))
            sizes = f", or model.{option}={' or '.join(map(str, near))}" if near else ""
            raise UserError(
                f"model.{option}={size} does not divide over {mesh_option}={parts}, so no layer would be split; "
                f"set {mesh_option}={smaller}{sizes}"
            )
    for option, axis in OUTSIDE_LAYERS.items():
        parts, size = _parts(axis, mesh), getattr(config, option)
        if size % parts:
            multiple = math.lcm(parts, HARDWARE_MULTIPLE if option == "vocab_size" else 1)
            logger.warning(
                "model.%s=%d does not divide over parallel.%s=%d: these tables are not split; to split them, pretrain with "
                "--config.model.%s=%d",
                *(option, size, LOGICAL_AXES[axis][0], parts, option, -(-size // multiple) * multiple),
            )


def largest_arrays(model: Model, mesh: Mesh) -> list[str]:
    """Returns lines about the largest parameters: path, shape, and the mesh axis that each dimension is split over ('-': none).

    Moments and averages are placed like their parameters.
    """
    if mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
        return [f"every array is replicated on {mesh.size} devices"] if mesh.size > 1 else []
    arrays, axes = (traverse_util.flatten_dict(tree, sep="/") for tree in (model.abstract, model.axes))
    largest = sorted(sorted(arrays.items()), key=lambda entry: -entry[1].size)[:SHOWN]
    rows = []
    for path, array in largest:
        spec = partition_spec(axes[path], array.shape, dict(mesh.shape))
        over = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
        split = ["+".join(name for name in entry if mesh.shape[name] > 1) or "-" for entry in over]
        rows.append((path, f"({', '.join(map(str, array.shape))})", f"({', '.join(split)})"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return [f"the {len(rows)} largest of {len(arrays)} arrays of parameters, and what they are split over:", *table]


def _parts(axis: str, mesh: Mesh) -> int:
    return math.prod(mesh.shape[name] for name in LOGICAL_AXES[axis])


def _divides_layers(config: EncoderConfig, mesh_axes_of: str, parts: int) -> bool:
    """Returns whether `parts` divides every layer size that is split over the same mesh axes."""
    same = [option for option, (axis, _) in IN_LAYERS.items() if LOGICAL_AXES[axis] == LOGICAL_AXES[mesh_axes_of]]
    return all(getattr(config, option) % parts == 0 for option in same)


def _nearest(size: int, parts: int, fits: Callable[[int], bool]) -> list[int]:
    """Returns the nearest multiples of `parts` below and above `size` that fit, up to twice the size."""
    lower = size // parts * parts
    below = next(filter(fits, range(lower, 0, -parts)), None)
    above = next(filter(fits, range(lower + parts, 2 * size + parts, parts)), None)
    return [number for number in (below, above) if number]
