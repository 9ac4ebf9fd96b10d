"""Optimizers by name, with what all of them share: clipping, decoupled weight decay of matrices, the schedule.

Parameters are flat dicts {path: array}; what the axes of an array mean is asked of its logical axes (see parallel/mesh.py).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from bert_jax.errors import UserError
from bert_jax.model.build import Params
from bert_jax.parallel.mesh import Axes, matrix_sides
from bert_jax.train.layerwise import scale_layerwise
from bert_jax.train.matrices import scale_by_layer_trust_ratio, scale_by_muon


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


# Share of the peak rate, from `progress` through the decay (0 at the end of warm-up, 1 at the end of the run) and
# `elapsed`, the same counted from step 0.
DECAYS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "constant": lambda progress, elapsed: jnp.ones_like(progress),
    "linear": lambda progress, elapsed: 1.0 - progress,
    "cosine": lambda progress, elapsed: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    # google-research/bert optimization.py decays from step 0: the rate drops by (1 - warmup/total) as warm-up ends.
    "linear_from_start": lambda progress, elapsed: 1.0 - elapsed,
}


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
    "muon": lambda config, decay, decays, axes: (
        scale_by_muon(config.b1, config.b2, config.epsilon, axes),
        decay,
    ),
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


def schedule(name: str, peak: float, warmup_steps: int, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate of step t (from 0): t / warmup_steps * peak, then `peak` times the decay.

    With no warm-up the first step has the full rate.
    """
    decay = DECAYS[name]

    def learning_rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup_steps) / max(num_steps - warmup_steps, 1), 0.0, 1.0)
        elapsed = jnp.clip(step / max(num_steps, 1), 0.0, 1.0)
        warmup = step / max(warmup_steps, 1)
        return peak * jnp.where(step < warmup_steps, warmup, decay(progress, elapsed))

    return learning_rate


def learning_rate(config: OptimizerConfig, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate by step of a run of `num_steps` steps.

    The optimizer counts its updates itself; as each step is one, its count equals the state's `step`.
    """
    return schedule(config.schedule, config.learning_rate, config.warmup_steps, num_steps)


def decayed(axes: Mapping[str, Axes], no_decay: str) -> dict[str, bool]:
    """Returns by path which parameters the weight decay is for. Raises UserError for an invalid regex."""
    regex = compiled("no_decay", no_decay)
    return {
        name: not regex.search(name) if no_decay else matrix_sides(of_name) is not None
        for name, of_name in axes.items()
    }


def compiled(option: str, regex: str) -> re.Pattern[str]:
    """Compiles the regex of an option of the optimizer. Raises UserError if it is invalid."""
    try:
        return re.compile(regex)
    except re.error as error:
        raise UserError(f"optimizer.{option}={regex!r} is not a valid regular expression: {error}; fix it") from None
