"""Other learning rates for other depths, also within the arrays in which all layers are stacked."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.errors import UserError
from bert_jax.parallel.mesh import Axes

Arrays = Mapping[str, jax.Array]  # by path; the first axis of stacked layers is "layers"
Schedule = Sequence[tuple[float, re.Pattern[str]]]


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
    entries = unfreeze_at.split(";") if unfreeze_at else []
    schedule = [_parsed(entry) for entry in entries]

    def is_stacked(name: str) -> bool:
        return "layers" in axes[name]

    def init(params: Arrays) -> LayerwiseState:
        if layer_decay != 1.0 and not any(map(is_stacked, params)):
            raise UserError("optimizer.layer_decay: optimizer.trainable leaves out all layers; leave this out, too")
        names = [part for name, array in params.items() for part in _parts(name, array, is_stacked(name))]
        for entry, (_, regex) in zip(entries, schedule, strict=True):
            if not any(regex.search(name) for name in names):
                raise UserError(f"optimizer.unfreeze_at: {entry!r} fits no parameter; paths look like {min(names)}")
        return LayerwiseState(jnp.zeros((), jnp.int32))

    def update(updates: Arrays, state: LayerwiseState, params=None) -> tuple[Arrays, LayerwiseState]:
        num_layers = max([len(array) for name, array in updates.items() if is_stacked(name)], default=0)

        def scaled(name: str, array: jax.Array) -> jax.Array:
            parts = _parts(name, array, is_stacked(name))
            distances = _distances(name, num_layers, len(parts) if is_stacked(name) else 0)
            factors = np.array([layer_decay**distance for distance in distances], np.float32)
            first_steps = np.array([_frozen_share(schedule, part) * num_steps for part in parts], np.float32)
            scale = (jnp.asarray(factors) * (state.step >= jnp.asarray(first_steps))).astype(array.dtype)
            return array * (scale.reshape(-1, *[1] * (array.ndim - 1)) if is_stacked(name) else scale[0])

        return {name: scaled(name, array) for name, array in updates.items()}, LayerwiseState(state.step + 1)

    return optax.GradientTransformation(init, update)


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


def _parts(name: str, array: jax.Array, is_stacked: bool) -> list[str]:
    """Returns the path of an array in each layer, or its own if it is not stacked."""
    if not is_stacked:
        return [name]
    return [name.replace("layers/", f"layers/{number}/", 1) for number in range(len(array))]


def _parsed(entry: str) -> tuple[float, re.Pattern[str]]:
    share, _, regex = entry.partition(":")
    try:
        if not regex or not 0 < float(share) <= 1:
            raise ValueError("a share of the steps is above 0 and at most 1")
        return float(share), re.compile(regex)
    except (ValueError, re.error) as error:
        raise UserError(
            f"optimizer.unfreeze_at: {entry!r} is not SHARE:REGEX like '0.5:layers/[0-5]/' ({error}); fix it"
        ) from None


def _frozen_share(schedule: Schedule, name: str) -> float:
    return next((share for share, regex in schedule if regex.search(name)), 0.0)
