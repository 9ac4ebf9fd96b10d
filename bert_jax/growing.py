"""Parameters of an encoder from those of another one with other sizes: chosen layers, a deeper or a wider encoder.

Shapes: N layers that are stored, M layers of the new encoder.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import Axes

# How layers that the stored encoder does not have, and wider arrays, are filled.
GROWTHS = {
    "": "the encoders have the same sizes, but for layers that are left out",
    # Layer i is layer i modulo N (Gong et al. 2019, section 3.2).
    "stack": "deeper: all layers again, in their order",
    # The added layers follow the others, and what they add to the residual stream is zero: the function stays the same.
    "identity": "deeper, with norms before the layers: the new layers compute nothing until they are trained",
    # Warner et al. 2024, appendix on training settings: each axis is filled with copies of the smaller one, which lies in its
    # middle; layer i is layer floor(i * N / M).
    "tile": "wider or deeper: every axis is filled with copies of the smaller one",
}
ADDS_TO_RESIDUAL = ("attention/out/", "mlp/down/")  # the products after which a layer adds to the residual stream
ENCODER = "encoder/"  # begins the paths of the encoder, whose layers can be chosen; a head may have layers, too


def check_growth(growth: str, layers: Sequence[int], stored: EncoderConfig, model: EncoderConfig) -> None:
    """Raises UserError if an encoder cannot be made of a stored one in this way (`init_growth` and `init_layers`)."""
    if growth not in GROWTHS:
        raise UserError(f"init_growth={growth!r} is not one of {', '.join(map(repr, GROWTHS))}")
    if not growth and not layers:
        return
    if stored.num_layer_groups or model.num_layer_groups:
        raise UserError("init_growth and init_layers are for layers with weights of their own; this model shares them")
    if growth and layers:
        raise UserError(f"init_layers chooses the layers; leave init_growth={growth!r} out")
    if layers and len(layers) != model.num_layers:
        raise UserError(
            f"init_layers names {len(layers)} layers for model.num_layers={model.num_layers}; name one for each layer"
        )
    if outside := [layer for layer in layers if not 0 <= layer < stored.num_layers]:
        raise UserError(f"init_layers: there is no layer {outside[0]}; choose from 0 to {stored.num_layers - 1}")
    if growth == "identity" and model.norm_position != "pre":
        raise UserError(
            "init_growth='identity' needs model.norm_position='pre'; with norms after the layers use 'stack'"
        )
    if growth and model.num_layers < stored.num_layers:
        sizes = f"{model.num_layers} layers here, {stored.num_layers} there"
        raise UserError(f"init_growth={growth!r} makes an encoder deeper or wider ({sizes}); use init_layers")


def source_layers(growth: str, layers: Sequence[int], num_stored: int, num_layers: int) -> list[int]:
    """Returns the stored layer that each layer of an encoder starts from, [M]."""
    if layers:
        return list(layers)
    if growth == "tile":
        return [layer * num_stored // num_layers for layer in range(num_layers)]
    return [layer % num_stored for layer in range(num_layers)]


def axis_fits(path: str, logical: str | None, stored: int, wanted: int, growth: str, layers: Sequence[int]) -> bool:
    """Checks whether an axis of an array can be made of a stored one.

    Stored tables may have fewer rows for tokens: the others stand for no token. Their other rows are positions or types.
    """
    if logical == "layers":
        return stored >= wanted or bool(growth or (layers and path.startswith(ENCODER)))
    if logical == "vocab":
        return stored <= wanted
    return stored == wanted or (
        growth == "tile" and stored < wanted and not (path.endswith("/embedding") and not logical)
    )


def grown(
    arrays: Mapping[str, jax.Array],
    fresh: Mapping[str, jax.Array],
    axes: Mapping[str, Axes],
    growth: str,
    layers: Sequence[int] = (),
) -> dict[str, jax.Array]:
    """Returns arrays with the shapes and shardings of fresh ones, by path, made of stored ones (see `GROWTHS`)."""

    def made_of(path: str, array: jax.Array) -> jax.Array:
        num_stored = len(array)
        chosen = layers if path.startswith(ENCODER) else ()
        for axis, (logical, size) in enumerate(zip(axes[path], fresh[path].shape, strict=True)):
            if logical == "layers" and (chosen or num_stored != size):
                array = jnp.take(array, np.array(source_layers(growth, chosen, num_stored, size)), axis=axis)
            elif array.shape[axis] < size and logical != "vocab":
                array = jnp.take(array, centered(array.shape[axis], size), axis=axis)
        if growth == "identity" and any(name in path for name in ADDS_TO_RESIDUAL):
            array = array.at[num_stored:].set(0)
        if array.shape != fresh[path].shape:  # fewer rows for tokens; the others get the logits of an average token
            padding = (len(fresh[path]) - len(array), *array.shape[1:])
            array = jnp.concatenate([array, jnp.broadcast_to(array.mean(axis=0, keepdims=True), padding)])
        return jax.device_put(array, fresh[path].sharding)

    return {path: made_of(path, array) for path, array in arrays.items()}


def centered(size: int, larger: int) -> np.ndarray:
    """Returns the stored index of each place of a larger axis: all of them once in the middle, the rest wraps around."""
    return (np.arange(larger) - (larger - size) // 2) % size
