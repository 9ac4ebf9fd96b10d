"""Updates that look at each matrix of an array in which layers are stacked: LAMB's trust ratio, and Muon."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from bert_jax.parallel.mesh import STACK_AXES, Axes, matrix_sides


def scale_by_layer_trust_ratio(is_scaled: Mapping[str, bool], axes: Mapping[str, Axes]) -> optax.GradientTransformation:
    """Scales each update to the size of its parameter: |w| / |update| (You et al. 2020, LAMB, algorithm 2).

    Norms are of each matrix in an array: of each layer, and of queries, keys and values apart. Updates stay as they are where
    a norm is zero, and for parameters that are not scaled: norms and biases in google-research/albert lamb_optimizer.py.
    """

    def scaled(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if not is_scaled[name]:
            return update
        summed = tuple(axis for axis, logical in enumerate(axes[name]) if logical not in STACK_AXES)
        size = jnp.sqrt(jnp.square(param).sum(summed, keepdims=True))
        step = jnp.sqrt(jnp.square(update).sum(summed, keepdims=True))
        return update * jnp.where((size > 0) & (step > 0), size / jnp.where(step > 0, step, 1.0), 1.0)

    def update(updates, state, params):
        return {name: scaled(name, update, params[name]) for name, update in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_muon(b1: float, b2: float, epsilon: float, axes: Mapping[str, Axes]) -> optax.GradientTransformation:
    """Returns Muon (github.com/KellerJordan/Muon) for each matrix of each layer, and Adam for the other parameters.

    Updates of matrices have the root mean square of Adam's, so that one learning rate and weight decay suit both (Liu et al.
    2025, "Muon is Scalable for LLM Training", section 2.2).
    """
    sides = {name: matrix_sides(of_name) for name, of_name in axes.items() if "layers" in of_name}
    numbers = {name: optax.contrib.MuonDimensionNumbers(*pair) for name, pair in sides.items() if pair}

    def dimension_numbers(updates):  # without those that Adam is for
        return {name: numbers.get(name, optax.MaskedNode()) for name in updates}

    def with_size_of_adam(update: jax.Array, of_array: optax.contrib.MuonDimensionNumbers) -> jax.Array:
        longer = max(math.prod(update.shape[axis] for axis in side) for side in of_array)
        return 0.2 * longer**0.5 * update

    muon = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=dimension_numbers),
        optax.stateless(lambda updates, _: jax.tree.map(with_size_of_adam, updates, dimension_numbers(updates))),
    )
    adam = optax.scale_by_adam(b1, b2, epsilon)
    return optax.partition(
        {"muon": muon, "adam": adam},
        lambda params: {name: "muon" if name in numbers else "adam" for name in params},
    )
