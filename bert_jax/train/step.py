"""One step of training and one of evaluation, as pure functions of arrays.

Shapes: A microbatches (accumulation), B sequences of a microbatch; a batch is a dict of arrays [A, B, ...].
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from bert_jax.train.state import State, keys_of_run, merge, partition

Metrics = dict[str, jax.Array]


class LossFunction(Protocol):
    """What the step needs of an objective, or of several (see objectives/base.py, `Losses`)."""

    def weights(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What each sum of a batch is divided by, from the batch alone."""

    def __call__(self, params, batch, weights, key) -> tuple[jax.Array, Metrics]:
        """The share of a (part of a) batch in the loss and the metrics."""

    def evaluate(self, params, batch, weights) -> tuple[jax.Array, Metrics, Metrics]:
        """The same without dropout, and outputs for each row."""


def make_train_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    trainable: str,
    ema_decay: float,
    seed: int,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Metrics]]:
    """A function (state, batch) -> (state, metrics), to be jitted with the state donated.

    Args:
      loss_function: divides by weights of the whole batch, so microbatches add up to the same gradient.
      optimizer: over the flat dict of trained parameters.
      learning_rate: of a step, to be reported.
      trainable: regex of the parameters to train.
      ema_decay: of the moving average of the parameters; 0 for none.
      seed: of the run; the numbers of a step and of its microbatches are folded into its dropout key.
    """

    def train_step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Metrics]:
        trained, frozen = partition(state["params"], trainable)
        weights = loss_function.weights(batch)
        accumulation_steps = batch["input_ids"].shape[0]

        def microbatch_gradient(number: jax.Array, microbatch: dict[str, jax.Array]):
            key = jax.random.fold_in(keys_of_run(seed)[1], state["step"] * accumulation_steps + number)

            def loss(trained):
                return loss_function(merge(trained, frozen), microbatch, weights, key)

            return jax.grad(loss, has_aux=True)(trained)

        gradient, metrics = sum_over_microbatches(microbatch_gradient, batch)
        updates, opt_state = optimizer.update(gradient, state["opt_state"], trained)
        params = merge(optax.apply_updates(trained, updates), frozen)
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": learning_rate(state["step"])}
        metrics |= {f"{name}/predictions": weight for name, weight in weights.items()}
        new_state = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
        if ema_decay:
            new_state["ema"] = optax.incremental_update(params, state["ema"], step_size=1.0 - ema_decay)
        return new_state, metrics

    return train_step


def make_eval_step(
    loss_function: LossFunction,
) -> Callable[[Any, dict[str, jax.Array]], tuple[Metrics, Metrics, Metrics]]:
    """A function (params, batch) -> (metrics, weights, outputs): means over one batch [1, B, ...], what they count for, and
    outputs [B, ...]."""

    def eval_step(params, batch: dict[str, jax.Array]) -> tuple[Metrics, Metrics, Metrics]:
        batch = {name: array[0] for name, array in batch.items()}
        weights = loss_function.weights(batch)
        _, metrics, outputs = loss_function.evaluate(params, batch, weights)
        return metrics, weights, outputs

    return eval_step


def sum_over_microbatches(function: Callable[[jax.Array, dict[str, jax.Array]], Any], batch: dict[str, jax.Array]):
    """Sum of function(number, microbatch), a tree of arrays, over the leading axis of a batch, one after the other."""
    numbers = jnp.arange(batch["input_ids"].shape[0])
    first = jax.tree.map(lambda x: x[0], (numbers, batch))
    if len(numbers) == 1:
        return function(*first)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, function(*inputs)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *first))
    return jax.lax.scan(add, zeros, (numbers, batch))[0]
