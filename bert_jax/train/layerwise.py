"""Other rates for some parameters, also within the arrays in which all layers are stacked: by depth, or by their paths."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.errors import UserError
from bert_jax.parallel.mesh import Axes
from bert_jax.train.paths import Arrays, Table, is_stacked, layer_paths


class LayerwiseState(NamedTuple):
    step: jax.Array


def scale_layerwise(
    layer_decay: float, unfreeze_at: str, num_steps: int, axes: Mapping[str, Axes]
) -> optax.GradientTransformation:
    """Scales the updates of each layer by `layer_decay` to the power of its distance from the heads, and holds some back.

    Layers that share weights (ALBERT) are as many as are stored.

    Args:
      layer_decay: 1 for none.
      unfreeze_at: 'SHARE:REGEX;SHARE:REGEX': a parameter whose path a regex is found in is not changed for this share of
        the steps; the first that fits counts. Layers are numbered in these paths: 'encoder/layers/3/mlp/up/kernel'. Moments
        and the norm of the gradient take in what is held back.
      num_steps: of the run.
      axes: logical axes by path.

    Raises:
      UserError: an invalid share or regex, or, in `init`, a regex that fits no parameter, or no layers whose rates could fall.
    """
    table = Table.parse("unfreeze_at", unfreeze_at, _share, "SHARE:REGEX like '0.5:layers/[0-5]/'")

    def init(params: Arrays) -> LayerwiseState:
        if layer_decay != 1.0 and not any(is_stacked(name, axes) for name in params):
            raise UserError("optimizer.layer_decay: optimizer.trainable leaves out all layers; leave this out, too")
        table.check(params, axes)
        return LayerwiseState(jnp.zeros((), jnp.int32))

    def update(updates: Arrays, state: LayerwiseState, params=None) -> tuple[Arrays, LayerwiseState]:
        num_layers = max([len(array) for name, array in updates.items() if is_stacked(name, axes)], default=0)

        def scaled(name: str, array: jax.Array) -> jax.Array:
            paths = layer_paths(name, array, axes)
            distances = _distances(name, num_layers, len(paths) if is_stacked(name, axes) else 0)
            factors = np.array([layer_decay**distance for distance in distances], np.float32)
            first_steps = np.array([table.value_of(path, 0.0) * num_steps for path in paths], np.float32)
            scale = (jnp.asarray(factors) * (state.step >= jnp.asarray(first_steps))).astype(array.dtype)
            return array * _for_layers(scale, array, is_stacked(name, axes))

        return {name: scaled(name, array) for name, array in updates.items()}, LayerwiseState(state.step + 1)

    return optax.GradientTransformation(init, update)


class Multipliers:
    """Multiplies learning rates and weight decay of the parameters that a table names, without a state of its own."""

    def __init__(self, text: str, axes: Mapping[str, Axes]):
        """Reads the option 'LR:REGEX;LR,DECAY:REGEX'. Raises UserError for an invalid number or regex."""
        self._table = Table.parse("multipliers", text, _factors, "LR:REGEX or LR,DECAY:REGEX like '0.1,0:embeddings/'")
        self._axes = axes

    def of_rate(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """Wraps an optimizer to multiply its updates; its `init` raises UserError if a regex fits no parameter."""

        def init(params: Arrays) -> optax.OptState:
            self._table.check(params, self._axes)
            return optimizer.init(params)

        def update(updates, state, params=None):
            updates, state = optimizer.update(updates, state, params)
            return self._multiplied(updates, 0), state

        return optax.GradientTransformation(init, update)

    def of_decay(self, decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """Wraps a weight decay to multiply what it adds, in proportion to the parameters, to each update."""
        return optax.GradientTransformation(
            decay.init, lambda updates, state, params: decay.update(updates, state, self._multiplied(params, 1))
        )

    def _multiplied(self, arrays: Arrays, which: int) -> dict[str, jax.Array]:
        def multiplied(name: str, array: jax.Array) -> jax.Array:
            factors = [self._table.value_of(path, (1.0, 1.0))[which] for path in layer_paths(name, array, self._axes)]
            if all(factor == 1.0 for factor in factors):
                return array
            return array * _for_layers(np.array(factors, array.dtype), array, is_stacked(name, self._axes))

        return {name: multiplied(name, array) for name, array in arrays.items()}


def _for_layers(factors: Any, array: jax.Array, stacked: bool) -> Any:
    """Returns one factor for each layer of an array, or the only one of an array that is not stacked, to multiply it by."""
    return factors.reshape(-1, *[1] * (array.ndim - 1)) if stacked else factors[0]


def _distances(name: str, num_layers: int, stacked: int) -> list[int]:
    """Returns distances from the heads: 0 for them, pooler and final norm; 2 for the last layer, one more for each below.

    The embeddings are below the first layer (Clark et al. 2020; google-research/electra model/optimization.py,
    _get_layer_lrs).

    Args:
      name: path of an array.
      num_layers: of the encoder.
      stacked: how many layers the array holds; 0 for one outside the layers.
    """
    if stacked:
        return [stacked + 1 - number for number in range(stacked)]
    return [num_layers + 2 if name.startswith("encoder/embeddings/") else 0]


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise ValueError("a share of the steps is above 0 and at most 1")
    return float(text)


def _factors(text: str) -> tuple[float, float]:
    """Reads 'LR' or 'LR,DECAY': factors of the learning rate and of the weight decay."""
    factors: Sequence[float] = [float(factor) for factor in text.split(",")]
    if len(factors) > 2 or not all(0 <= factor < math.inf for factor in factors):
        raise ValueError("a factor is at least 0 and finite, and there are one or two")
    return factors[0], factors[1] if len(factors) == 2 else 1.0
