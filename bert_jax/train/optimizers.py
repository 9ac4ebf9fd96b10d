"""Optimizers by name, with what all of them share: clipping, decoupled weight decay on matrices alone, the schedule."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.errors import UserError
from bert_jax.train.layerwise import scale_layerwise
from bert_jax.train.schedules import DECAYS, schedule


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The defaults are BERT's (Devlin et al. 2019, appendix A.2; google-research/bert optimization.py)."""

    name: str = "bert_adam"
    learning_rate: float = 1e-4  # at the end of warm-up
    warmup_steps: int = 10_000
    schedule: str = "linear_from_start"
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01  # decoupled
    no_decay: str = r"bias|norm/scale|mix/"  # regex searched in the path of a parameter; without LAMB's trust ratio too
    clip_norm: float = 1.0  # of the gradient over all trained parameters; 0: no clipping
    trainable: str = ".*"  # regex searched in the path of a parameter: 'heads/' trains the heads alone
    layer_decay: float = 1.0  # of the learning rate from each layer to the one below it (see layerwise.py); 1: none
    frozen_until: str = ""  # 'SHARE:REGEX;...', what is left alone for a share of the steps (see layerwise.py)

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
    """Adam without bias correction: m / (sqrt(v) + epsilon) (google-research/bert optimization.py).

    Warm-up makes up for the first moments' start from zero.
    """

    def init(params):
        return BertAdamState(mu=optax.tree.zeros_like(params), nu=optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * jnp.square(g), updates, state.nu)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu), BertAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_layer_trust_ratio(excluded: str) -> optax.GradientTransformation:
    """Scales each update to the size of its parameter: |w| / |update| (You et al. 2020, LAMB, algorithm 2).

    Norms are of each layer's weights, not of the stack they are stored in, and of queries, keys and values apart. Parameters
    whose path matches `excluded` (norms and biases, as in google-research/albert lamb_optimizer.py) are left out, and those
    where a norm is zero.
    """

    def scaled(path, update: jax.Array, param: jax.Array) -> jax.Array:
        name = path_name(path)
        if re.search(excluded, name):
            return update
        apart = {0} if "layers/" in name else set()  # layer
        apart |= {2} if name.endswith("qkv/kernel") else set()  # [layer, D, 3, H, S]
        axes = tuple(axis for axis in range(param.ndim) if axis not in apart)
        size = jnp.sqrt(jnp.square(param).sum(axes, keepdims=True))
        step = jnp.sqrt(jnp.square(update).sum(axes, keepdims=True))
        return update * jnp.where((size > 0) & (step > 0), size / jnp.where(step > 0, step, 1.0), 1.0)

    def update(updates, state, params):
        return jax.tree.map_with_path(scaled, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# From the clipped gradient to the direction of the step; the weight decay is given to put it in its place.
Rule = Callable[[OptimizerConfig, optax.GradientTransformation], tuple[optax.GradientTransformation, ...]]
RULES: dict[str, Rule] = {
    "adamw": lambda config, decay: (optax.scale_by_adam(config.b1, config.b2, config.epsilon), decay),
    "bert_adam": lambda config, decay: (scale_by_bert_adam(config.b1, config.b2, config.epsilon), decay),
    "lamb": lambda config, decay: (
        *RULES["bert_adam"](config, decay),
        scale_by_layer_trust_ratio(config.no_decay),
    ),
}


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `num_steps` steps.

    Raises:
      UserError: an unknown optimizer or schedule, or an invalid `frozen_until`.
    """
    for field, name, table in (("name", config.name, RULES), ("schedule", config.schedule, DECAYS)):
        if name not in table:
            raise UserError(f"optimizer.{field}={name!r} is not one of {', '.join(table)}")
    decay = optax.add_decayed_weights(config.weight_decay, mask=lambda params: decayed(params, config.no_decay))
    is_layerwise = config.layer_decay != 1.0 or config.frozen_until
    return in_float32(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
            *RULES[config.name](config, decay),
            *([scale_layerwise(config.layer_decay, config.frozen_until, num_steps)] if is_layerwise else []),
            optax.scale_by_learning_rate(learning_rate(config, num_steps)),
        )
    )


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps an optimizer so that its moments and updates are float32 for parameters of any dtype.

    In bfloat16 a second moment would never decay: 0.999 times a number rounds to that number.
    """

    def cast(tree):
        # optax also initialises the state of placeholders
        return jax.tree.map(lambda x: x.astype(jnp.float32) if isinstance(x, jax.Array | np.ndarray) else x, tree)

    def update(updates, state, params=None):
        return optimizer.update(cast(updates), state, cast(params))

    return optax.GradientTransformation(lambda params: optimizer.init(cast(params)), update)


def learning_rate(config: OptimizerConfig, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate by step of a run of `num_steps` steps."""
    return schedule(config.schedule, config.learning_rate, config.warmup_steps, num_steps)


def decayed(params, no_decay: str):
    """A tree of bools: which parameters the weight decay is for."""
    return jax.tree.map_with_path(lambda path, _: not re.search(no_decay, path_name(path)), params)


def path_name(path) -> str:
    """'encoder/layers/mlp/up/kernel'."""
    return "/".join(str(key.key) for key in path)
