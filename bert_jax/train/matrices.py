"""Updates that look at each matrix of an array in which layers are stacked: LAMB, Muon, Adafactor and StableAdamW.

Queries, keys and values, which one array holds, are matrices of their own.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bert_jax.parallel.mesh import STACK_AXES, Axes, matrix_sides


def scale_by_layer_trust_ratio(is_scaled: Mapping[str, bool], axes: Mapping[str, Axes]) -> optax.GradientTransformation:
    """Scales each update to the size of its parameter: |w| / |update| (You et al. 2020, LAMB, algorithm 2).

    Norms are of each matrix in an array. Updates stay as they are where a norm is zero, and for parameters that are not scaled:
    norms and biases in google-research/albert lamb_optimizer.py.
    """

    def scaled(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if not is_scaled[name]:
            return update
        summed = _axes_of_one(axes[name])
        size = jnp.sqrt(jnp.square(param).sum(summed, keepdims=True))
        step = jnp.sqrt(jnp.square(update).sum(summed, keepdims=True))
        return update * jnp.where((size > 0) & (step > 0), size / jnp.where(step > 0, step, 1.0), 1.0)

    def update(updates, state, params):
        return {name: scaled(name, update, params[name]) for name, update in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_muon(
    b1: float, b2: float, epsilon: float, momentum: float, axes: Mapping[str, Axes]
) -> optax.GradientTransformation:
    """Returns Muon (github.com/KellerJordan/Muon) for each matrix of each layer, and Adam for the other parameters.

    Queries, keys and values are orthogonalised apart, which is better than together (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon, "Empirical considerations"); so are the gates of gated layers, which are arrays of
    their own. Updates of matrices have the root mean square of Adam's, so that one learning rate and weight decay suit both
    (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
    """
    sides = {name: matrix_sides(of_name) for name, of_name in axes.items() if "layers" in of_name}
    numbers = {name: optax.contrib.MuonDimensionNumbers(*pair) for name, pair in sides.items() if pair}

    def dimension_numbers(updates):  # without those that Adam is for
        return {name: numbers.get(name, optax.MaskedNode()) for name in updates}

    def with_size_of_adam(update: jax.Array, of_array: optax.contrib.MuonDimensionNumbers) -> jax.Array:
        longer = max(math.prod(update.shape[axis] for axis in side) for side in of_array)
        return 0.2 * longer**0.5 * update

    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=dimension_numbers),
        optax.stateless(lambda updates, _: jax.tree.map(with_size_of_adam, updates, dimension_numbers(updates))),
    )
    adam = optax.scale_by_adam(b1, b2, epsilon)
    return optax.partition(
        {"muon": muon, "adam": adam},
        lambda params: {name: "muon" if name in numbers else "adam" for name in params},
    )


class AdafactorState(NamedTuple):
    step: jax.Array
    rows: dict[str, jax.Array]  # of matrices, means over their outputs
    columns: dict[str, jax.Array]  # of matrices, means over their inputs
    nu: dict[str, jax.Array]  # second moments of the other parameters


def scale_by_adafactor(axes: Mapping[str, Axes]) -> optax.GradientTransformation:
    """Returns Adafactor without momentum (Shazeer and Stern 2018, algorithms 4 and 5), with the constants of algorithm 6.

    The second moments of a matrix are the product of their means over its inputs and over its outputs. The step is relative
    to the run's learning rate, not to the size of the parameter. All matrices are factored, as in tensor2tensor adafactor.py;
    optax.adafactor would take the two largest axes of an array, whatever they are.
    """
    sides = {name: matrix_sides(of_name) for name, of_name in axes.items()}
    matrices = {name: pair for name, pair in sides.items() if pair}
    epsilon, decay_rate, threshold = 1e-30, 0.8, 1.0

    def means(arrays: Mapping[str, jax.Array], side: int) -> dict[str, jax.Array]:
        return {name: x.mean(matrices[name][side], keepdims=True) for name, x in arrays.items() if name in matrices}

    def init(params: Mapping[str, jax.Array]) -> AdafactorState:
        zeros = {name: jnp.zeros_like(array) for name, array in params.items()}
        nu = {name: array for name, array in zeros.items() if name not in matrices}
        return AdafactorState(jnp.zeros((), jnp.int32), means(zeros, 1), means(zeros, 0), nu)

    def update(updates: Mapping[str, jax.Array], state: AdafactorState, params=None):
        step = optax.safe_increment(state.step)
        b2 = 1.0 - step.astype(jnp.float32) ** -decay_rate
        squares = {name: jnp.square(g) + epsilon for name, g in updates.items()}
        rows, columns, nu = (
            {name: b2 * old[name] + (1.0 - b2) * new[name] for name in old}
            for old, new in ((state.rows, means(squares, 1)), (state.columns, means(squares, 0)), (state.nu, squares))
        )

        def scaled(name: str, g: jax.Array) -> jax.Array:
            if name in matrices:
                mean = rows[name].mean(matrices[name][0], keepdims=True)  # of the whole matrix
                direction = g * jax.lax.rsqrt(rows[name]) * jax.lax.rsqrt(columns[name]) * jnp.sqrt(mean)
            else:
                direction = g * jax.lax.rsqrt(nu[name])
            return direction / jnp.maximum(1.0, _root_mean_square(direction, axes[name]) / threshold)

        return {name: scaled(name, g) for name, g in updates.items()}, AdafactorState(step, rows, columns, nu)

    return optax.GradientTransformation(init, update)


def scale_by_stable_adamw(
    b1: float, b2: float, epsilon: float, decay: optax.GradientTransformation, axes: Mapping[str, Axes]
) -> optax.GradientTransformation:
    """Returns AdamW with Adafactor's update clipping (Wortsman et al. 2023, 2304.13013, algorithm 2).

    The learning rate of a matrix or vector, and with it its weight decay, is divided by the root mean square of
    g / max(sqrt(v), epsilon) where this is above 1.

    Args:
      b1, b2, epsilon: Adam's.
      decay: adds the weight decay to an update.
      axes: logical axes by path.
    """
    adamw = optax.chain(optax.scale_by_adam(b1, b2, epsilon), decay)

    def update(updates: Mapping[str, jax.Array], state, params=None):
        directions, state = adamw.update(updates, state, params)
        nu = optax.tree.bias_correction(state[0].nu, b2, state[0].count)

        def clipped(name: str, direction: jax.Array) -> jax.Array:
            relative = updates[name] / jnp.maximum(jnp.sqrt(nu[name]), epsilon)
            return direction / jnp.maximum(1.0, _root_mean_square(relative, axes[name]))

        return {name: clipped(name, direction) for name, direction in directions.items()}, state

    return optax.GradientTransformation(adamw.init, update)


def _axes_of_one(axes: Axes) -> tuple[int, ...]:
    """Returns the axes of each matrix or vector in an array, without those along which several are stacked."""
    return tuple(axis for axis, logical in enumerate(axes) if logical not in STACK_AXES)


def _root_mean_square(array: jax.Array, axes: Axes) -> jax.Array:
    """Returns the root mean square of each matrix or vector in an array; the axes that it is taken over have size 1."""
    return jnp.sqrt(jnp.square(array).mean(_axes_of_one(axes), keepdims=True))
