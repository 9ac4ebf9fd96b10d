"""One step of training and one of evaluation, as pure functions of arrays.

Shapes: A microbatches (accumulation), B sequences of a microbatch; a batch is a dict of arrays [A, B, ...].
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from bert_jax.objectives.base import Batch
from bert_jax.train.state import State, keys_of_run, merge, partition

Metrics = dict[str, jax.Array]
TrainStep = Callable[[State, Any, Batch], tuple[State, Metrics]]
EvalStep = Callable[[Any, Any, Batch], tuple[Metrics, dict[str, Metrics], Metrics]]


class LossFunction(Protocol):
    """What the step needs of an objective, or of several (see objectives/losses.py, `Losses`)."""

    def normalizers(self, batch: Batch) -> dict[str, Metrics]:
        """Returns what each sum over a batch is divided by, by objective and term, from the batch alone."""

    def __call__(self, params, frozen, batch, normalizers, key) -> tuple[jax.Array, Metrics]:
        """Returns the share of a (part of a) batch in the loss and the metrics."""

    def evaluate(self, params, frozen, batch, normalizers) -> tuple[jax.Array, Metrics, Metrics]:
        """Returns the same without dropout, and outputs for each row."""


def make_train_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    trainable: str,
    ema_decay: float,
    seed: int,
) -> TrainStep:
    """Returns a function (state, frozen, batch) -> (state, metrics), to be jitted with the state donated.

    Args:
      loss_function: divides by normalizers of the whole batch, so microbatches add up to the same gradient.
      optimizer: over the flat dict of trained parameters.
      learning_rate: of a step, to be reported.
      trainable: regex of the parameters to train.
      ema_decay: of the moving average of the parameters; 0 for none.
      seed: of the run; the numbers of a step and of its microbatches are folded into its random key.
    """

    def train_step(state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
        trained, fixed = partition(state["params"], trainable)
        normalizers = loss_function.normalizers(batch)
        step_key = jax.random.fold_in(keys_of_run(seed)[1], state["step"])

        def microbatch_gradient(number: jax.Array, microbatch: Batch):
            key = jax.random.fold_in(step_key, number)

            def loss(trained):
                return loss_function(merge(trained, fixed), frozen, microbatch, normalizers, key)

            gradient, metrics = jax.grad(loss, has_aux=True)(trained)
            # Summed in float32, also for parameters in bfloat16.
            return jax.tree.map(lambda x: x.astype(jnp.float32), gradient), metrics

        gradient, metrics = sum_over_microbatches(microbatch_gradient, batch)
        updates, opt_state = optimizer.update(gradient, state["opt_state"], trained)
        params = merge(optax.apply_updates(trained, updates), fixed)
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": learning_rate(state["step"])}
        for terms in normalizers.values():
            metrics |= {f"{term}/predictions": normalizer for term, normalizer in terms.items()}
        new_state = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
        if ema_decay:
            new_state["ema"] = optax.incremental_update(params, state["ema"], step_size=1.0 - ema_decay)
        return new_state, metrics

    return train_step


def make_eval_step(loss_function: LossFunction) -> EvalStep:
    """Returns a function (params, frozen, batch) -> (metrics, normalizers, outputs) over one batch [1, B, ...].

    Metrics are means, normalizers what they count for, by objective and term, and outputs are [B, ...].
    """

    def eval_step(params: Any, frozen: Any, batch: Batch) -> tuple[Metrics, dict[str, Metrics], Metrics]:
        batch = {name: array[0] for name, array in batch.items()}
        normalizers = loss_function.normalizers(batch)
        _, metrics, outputs = loss_function.evaluate(params, frozen, batch, normalizers)
        return metrics, normalizers, outputs

    return eval_step


def sum_over_microbatches(function: Callable[[jax.Array, Batch], Any], batch: Batch):
    """Returns the sum of function(number, microbatch), a tree of arrays, over the leading axis of a batch, one by one."""
    numbers = jnp.arange(batch["input_ids"].shape[0])
    first = jax.tree.map(lambda x: x[0], (numbers, batch))
    if len(numbers) == 1:
        return function(*first)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, function(*inputs)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *first))
    return jax.lax.scan(add, zeros, (numbers, batch))[0]
