"""A model's losses, a config and a mesh become what training runs: a state where it will live, and the step."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from bert_jax.errors import UserError
from bert_jax.objectives.losses import Losses
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig, learning_rate, make_optimizer
from bert_jax.train.state import State, init_state, state_shardings
from bert_jax.train.step import TrainStep, make_train_step


class Config(Protocol):
    """The sections that training reads."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...


class Training(NamedTuple):
    make_state: Callable[[], State]  # jitted: each array is made where it will live
    placed: State  # its shardings
    train_step: TrainStep

    @property
    def step(self) -> Any:
        """The step jitted, with the state donated."""
        return jax.jit(self.train_step, donate_argnums=0, out_shardings=(self.placed, None))

    @classmethod
    def of(cls, losses: Losses, config: Config, mesh: Mesh) -> "Training":
        """Raises UserError for float16, an average in bfloat16, an unknown optimizer or schedule, or an invalid regex."""
        if losses.model.config.dtype == "float16":
            raise UserError(
                "model.dtype=float16: its gradients vanish without loss scaling, which is not implemented; set "
                "--config.model.dtype=bfloat16 (float16 is for evaluation and prediction)"
            )
        train, trainable = config.train, config.optimizer.trainable
        if train.ema_decay and losses.model.config.param_dtype == "bfloat16":
            raise UserError(
                f"train.ema_decay={train.ema_decay}: in model.param_dtype=bfloat16 rounding would freeze the average; "
                "set --config.model.param_dtype=float32"
            )
        optimizer = make_optimizer(config.optimizer, train.num_steps, losses.model.axes)
        make_state = partial(init_state, losses.model, optimizer, trainable, train.ema_decay > 0, train.seed)
        placed = state_shardings(losses.model, jax.eval_shape(make_state), mesh)
        rate = learning_rate(config.optimizer, train.num_steps)
        step = make_train_step(losses, optimizer, rate, trainable, train.ema_decay, train.seed)
        return cls(jax.jit(make_state, out_shardings=placed), placed, step)
