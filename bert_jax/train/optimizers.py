"""Optimizers by name, with what all of them share: clipping, decoupled weight decay of matrices, the schedule.

Parameters are flat dicts {path: array}; what the axes of an array mean is asked of its logical axes (see parallel/mesh.py).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from bert_jax.errors import UserError
from bert_jax.model.build import Params
from bert_jax.parallel.mesh import STACK_AXES, Axes
from bert_jax.train.layerwise import scale_layerwise
from bert_jax.train.schedules import DECAYS, schedule


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The defaults are BERT's (Devlin et al. 2019, appendix A.2; google-research/bert optimization.py)."""

    name: str = "bert_adam"  # one of RULES: adamw, bert_adam, lamb, muon
    learning_rate: float = 1e-4  # at the end of warm-up
    warmup_steps: int = 10_000
    schedule: str = "linear_from_start"
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01  # decoupled
    # Regex searched in the path of a parameter, for neither weight decay nor LAMB's trust ratio; '': all that are no matrices.
    no_decay: str = ""
    clip_norm: float = 1.0  # of the gradient over all trained parameters; 0: no clipping
    trainable: str = ".*"  # regex searched in the path of a parameter: 'heads/' trains the heads alone
    layer_decay: float = 1.0  # of the learning rate from each layer to the one below it (see layerwise.py); 1: none
    unfreeze_at: str = ""  # 'SHARE:REGEX;...', what is left alone for a share of the steps (see layerwise.py)

    def __post_init__(self):
        for field in ("learning_rate", "warmup_steps", "epsilon", "weight_decay", "clip_norm"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"optimizer.{field}={getattr(self, field)} must be at least 0")
        for field in ("b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"optimizer.{field}={getattr(self, field)} must be from 0 to below 1")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay={self.layer_decay} must be above 0, and at most 1")


class BertAdamState(NamedTuple):
    mu: Any
    nu: Any


def scale_by_bert_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """Returns Adam without bias correction: m / (sqrt(v) + epsilon) (google-research/bert optimization.py).

    Warm-up makes up for the first moments' start from zero.
    """

    def init(params):
        return BertAdamState(mu=optax.tree.zeros_like(params), nu=optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * jnp.square(g), updates, state.nu)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu), BertAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


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


def scale_by_muon(config: OptimizerConfig, axes: Mapping[str, Axes]) -> optax.GradientTransformation:
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
    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
    return optax.partition(
        {"muon": muon, "adam": adam},
        lambda params: {name: "muon" if name in numbers else "adam" for name in params},
    )


# From the clipped gradient to the direction of the step: functions of the config, the weight decay, the parameters that
# decay, and the logical axes by path.
Rule = Callable[
    [OptimizerConfig, optax.GradientTransformation, Mapping[str, bool], Mapping[str, Axes]],
    tuple[optax.GradientTransformation, ...],
]
RULES: dict[str, Rule] = {
    "adamw": lambda config, decay, decays, axes: (optax.scale_by_adam(config.b1, config.b2, config.epsilon), decay),
    "bert_adam": lambda config, decay, decays, axes: (scale_by_bert_adam(config.b1, config.b2, config.epsilon), decay),
    "lamb": lambda config, decay, decays, axes: (
        *RULES["bert_adam"](config, decay, decays, axes),
        scale_by_layer_trust_ratio(decays, axes),
    ),
    "muon": lambda config, decay, decays, axes: (scale_by_muon(config, axes), decay),
}


def make_optimizer(config: OptimizerConfig, num_steps: int, axes: Params) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `num_steps` steps, over the flat dict of its trained parameters.

    Args:
      config: options.
      num_steps: of the run.
      axes: logical axes of all parameters, `Model.axes`.

    Raises:
      UserError: an unknown optimizer or schedule, or an invalid `no_decay` or `unfreeze_at`.
    """
    for field, name, table in (("name", config.name, RULES), ("schedule", config.schedule, DECAYS)):
        if name not in table:
            raise UserError(f"optimizer.{field}={name!r} is not one of {', '.join(table)}")
    flat_axes = traverse_util.flatten_dict(axes, sep="/")
    decays = decayed(flat_axes, config.no_decay)
    decay = optax.add_decayed_weights(config.weight_decay, mask=lambda params: {name: decays[name] for name in params})
    is_layerwise = config.layer_decay != 1.0 or config.unfreeze_at
    return in_float32(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
            *RULES[config.name](config, decay, decays, flat_axes),
            *([scale_layerwise(config.layer_decay, config.unfreeze_at, num_steps, flat_axes)] if is_layerwise else []),
            optax.scale_by_learning_rate(learning_rate(config, num_steps)),
        )
    )


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps an optimizer so that its moments and updates are float32 for parameters of any dtype.

    In bfloat16 a second moment would never decay: 0.999 times a number rounds to that number.
    """

    def cast(tree):
        return optax.tree.cast(tree, jnp.float32)

    def update(updates, state, params=None):
        return optimizer.update(cast(updates), state, cast(params))

    return optax.GradientTransformation(lambda params: optimizer.init(cast(params)), update)


def learning_rate(config: OptimizerConfig, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate by step of a run of `num_steps` steps."""
    return schedule(config.schedule, config.learning_rate, config.warmup_steps, num_steps)


def decayed(axes: Mapping[str, Axes], no_decay: str) -> dict[str, bool]:
    """Returns by path which parameters the weight decay is for. Raises UserError for an invalid regex."""
    regex = compiled("no_decay", no_decay)
    return {
        name: not regex.search(name) if no_decay else matrix_sides(of_name) is not None
        for name, of_name in axes.items()
    }


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


def compiled(option: str, regex: str) -> re.Pattern[str]:
    """Compiles the regex of an option of the optimizer. Raises UserError if it is invalid."""
    try:
        return re.compile(regex)
    except re.error as error:
        raise UserError(f"optimizer.{option}={regex!r} is not a valid regular expression: {error}; fix it") from None
