"""Optimizers by name, with what all of them share: clipping, decoupled weight decay of matrices, the learning rate.

Parameters are flat dicts {path: array}; what the axes of an array mean is asked of its logical axes (see parallel/mesh.py).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from bert_jax.errors import UserError
from bert_jax.model.build import Params
from bert_jax.parallel.mesh import Axes, matrix_sides
from bert_jax.train.layerwise import Multipliers, scale_layerwise
from bert_jax.train.matrices import (
    scale_by_adafactor,
    scale_by_layer_trust_ratio,
    scale_by_muon,
    scale_by_stable_adamw,
)
from bert_jax.train.paths import compiled
from bert_jax.train.schedules import RatePiece, ScheduleConfig, learning_rate


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(ScheduleConfig):
    """The defaults are BERT's (Devlin et al. 2019, appendix A.2; google-research/bert optimization.py)."""

    name: str = "bert_adam"  # one of RULES
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # Lion's is usually 0.99 (Chen et al. 2023); Adafactor has neither b1 nor b2 nor epsilon
    epsilon: float = 1e-6  # added to the root of the second moment
    momentum: float = 0.95  # of Muon's matrices, always Nesterov's; b1, b2 and epsilon are for its other parameters
    weight_decay: float = 0.01  # decoupled
    # Regex searched in the path of a parameter, for neither weight decay nor LAMB's trust ratio; '': all that are no matrices.
    no_decay: str = ""
    # Of the gradient over all trained parameters; 0: none, as adafactor and stable_adamw need, which clip updates.
    clip_norm: float = 1.0
    trainable: str = ".*"  # regex searched in the path of a parameter: 'heads/' trains the heads alone
    layer_decay: float = 1.0  # of the learning rate from each layer to the one below it (see layerwise.py); 1: none
    unfreeze_at: str = ""  # 'SHARE:REGEX;...', what is left alone for a share of the steps (see layerwise.py)
    # 'LR:REGEX;LR,DECAY:REGEX;...', factors of the learning rate and of the weight decay of the parameters that a regex fits
    # (see layerwise.py), in addition to layer_decay and no_decay.
    multipliers: str = ""

    def __post_init__(self):
        super().__post_init__()
        for field in ("epsilon", "weight_decay", "clip_norm"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"optimizer.{field}={getattr(self, field)} must be at least 0")
        for field in ("b1", "b2", "momentum"):
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
        scale_by_muon(config.b1, config.b2, config.epsilon, config.momentum, axes),
        decay,
    ),
    "adafactor": lambda config, decay, decays, axes: (scale_by_adafactor(axes), decay),
    "lion": lambda config, decay, decays, axes: (optax.scale_by_lion(config.b1, config.b2), decay),
    "stable_adamw": lambda config, decay, decays, axes: (
        scale_by_stable_adamw(config.b1, config.b2, config.epsilon, decay, axes),
    ),
}


def make_optimizer(
    config: OptimizerConfig, num_steps: int, axes: Params, pieces: Sequence[RatePiece] = ()
) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `num_steps` steps, over the flat dict of its trained parameters.

    Args:
      config: options.
      num_steps: of the run.
      axes: logical axes of all parameters, `Model.axes`.
      pieces: steps with a learning rate of their own.

    Raises:
      UserError: an unknown optimizer or schedule, a schedule that does not fit the steps, or an invalid `no_decay`,
        `unfreeze_at` or `multipliers`.
    """
    if config.name not in RULES:
        raise UserError(f"optimizer.name={config.name!r} is not one of {', '.join(RULES)}")
    flat_axes = traverse_util.flatten_dict(axes, sep="/")
    decays = decayed(flat_axes, config.no_decay)
    decay = optax.add_decayed_weights(config.weight_decay, mask=lambda params: {name: decays[name] for name in params})
    multipliers = Multipliers(config.multipliers, flat_axes)
    is_layerwise = config.layer_decay != 1.0 or config.unfreeze_at
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *RULES[config.name](config, multipliers.of_decay(decay), decays, flat_axes),
        *([scale_layerwise(config.layer_decay, config.unfreeze_at, num_steps, flat_axes)] if is_layerwise else []),
        optax.scale_by_learning_rate(learning_rate(config, num_steps, pieces)),
    )
    return in_float32(multipliers.of_rate(optimizer))


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps an optimizer so that its moments and updates are float32 for parameters of any dtype.

    In bfloat16 a second moment would never decay: 0.999 times a number rounds to that number.
    """

    def cast(tree):
        return optax.tree.cast(tree, jnp.float32)

    def update(updates, state, params=None):
        return optimizer.update(cast(updates), state, cast(params))

    return optax.GradientTransformation(lambda params: optimizer.init(cast(params)), update)


def decayed(axes: Mapping[str, Axes], no_decay: str) -> dict[str, bool]:
    """Returns by path which parameters the weight decay is for. Raises UserError for an invalid regex."""
    regex = compiled("no_decay", no_decay)
    return {
        name: not regex.search(name) if no_decay else matrix_sides(of_name) is not None
        for name, of_name in axes.items()
    }
