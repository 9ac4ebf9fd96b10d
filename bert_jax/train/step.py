"""The training state, one step of training and one of evaluation, as pure functions of arrays.

The state is one nested dict of arrays: {'step': int32, 'params': ..., 'opt_state': ..., 'ema': ... (where asked for)}.
Shapes: A microbatches (accumulation), B sequences of a microbatch; a batch is a dict of arrays [A, B, ...].
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from bert_jax.errors import UserError
from bert_jax.model.build import Model, Params
from bert_jax.objectives.base import Batch
from bert_jax.objectives.losses import FrozenParams, Losses, Normalizers
from bert_jax.parallel.mesh import constrain, partition_spec, replicated, shardings, sum_over_copies
from bert_jax.train.batch_hash import with_batch_hash
from bert_jax.train.loop import PREDICTIONS, TrainConfig
from bert_jax.train.optimizers import OptimizerConfig, make_optimizer
from bert_jax.train.paths import compiled
from bert_jax.train.schedules import RatePiece, learning_rate

State = dict[str, Any]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[State, FrozenParams, Batch], tuple[State, Metrics]]
EvalStep = Callable[[Params, FrozenParams, Batch], tuple[Metrics, Normalizers, Metrics]]


class Config(Protocol):
    """The options that training reads."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...

    @property
    def rate_pieces(self) -> Sequence[RatePiece]:
        """Steps with a learning rate of their own, in their order; all others follow `optimizer`."""


class Training(NamedTuple):
    """What the losses of a model, a config and a mesh become: a state where it will live, and the step."""

    make_state: Callable[[], State]  # jitted: each array is made where it will live
    placed: State  # its shardings
    step: TrainStep

    @property
    def jitted_step(self) -> Any:
        """The step jitted, with the state donated."""
        return jax.jit(self.step, donate_argnums=0, out_shardings=(self.placed, None))

    @classmethod
    def of(cls, losses: Losses, config: Config, mesh: Mesh) -> "Training":
        """Raises UserError for float16, an average in bfloat16, or as `make_optimizer`."""
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
        pieces = config.rate_pieces
        optimizer = make_optimizer(config.optimizer, train.num_steps, losses.model.axes, pieces)
        make_state = partial(init_state, losses.model, optimizer, trainable, train.ema_decay > 0, train.seed)
        placed = state_shardings(losses.model, jax.eval_shape(make_state), mesh)
        rate = learning_rate(config.optimizer, train.num_steps, pieces)
        step = make_train_step(losses, optimizer, rate, trainable, train.ema_decay, train.seed)
        if train.hash_batches:
            step = with_batch_hash(step)
        return cls(jax.jit(make_state, out_shardings=placed), placed, step)


# ----------------------------------------------------------------------------------------------------------------------
# Steps
# ----------------------------------------------------------------------------------------------------------------------


def make_train_step(
    losses: Losses,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    trainable: str,
    ema_decay: float,
    seed: int,
) -> TrainStep:
    """Returns a function (state, frozen, batch) -> (state, metrics), to be jitted with the state donated.

    Args:
      losses: divided by normalizers of the whole batch, so that microbatches add up to the same gradient.
      optimizer: over the flat dict of trained parameters.
      learning_rate: of a step, to be reported.
      trainable: regex of the parameters to train.
      ema_decay: of the moving average of the parameters; 0 for none.
      seed: of the run; the numbers of a step and of a row of its batch are folded into its random key.
    """
    axes = traverse_util.flatten_dict(losses.model.axes, sep="/")

    def gradient_of(rows, trained, fixed, frozen: FrozenParams, normalizers: Normalizers):
        def of_microbatch(microbatch: Batch, keys_B: jax.Array):
            def loss(trained):
                total, metrics, _ = losses.compute(merge(trained, fixed), frozen, microbatch, normalizers, keys_B)
                return total, metrics

            gradient, metrics = jax.grad(loss, has_aux=True)(trained)
            # Added up over microbatches in float32, also for parameters in bfloat16, and split as the parameters are.
            return {name: constrain(x.astype(jnp.float32), *axes[name]) for name, x in gradient.items()}, metrics

        return sum_over_microbatches(of_microbatch, *rows)

    def train_step(state: State, frozen: FrozenParams, batch: Batch) -> tuple[State, Metrics]:
        trained, fixed = partition(state["params"], trainable)
        normalizers = losses.normalizers(batch)
        rows = batch, keys_of_rows(seed, state["step"], batch["input_ids"].shape[:2])
        # A single microbatch is left to the compiler, which sums the gradients of a layer over the devices while it computes
        # those of the next, in the dtype of the products.
        summed = sum_over_copies(gradient_of) if len(batch["input_ids"]) > 1 else gradient_of
        gradient, metrics = summed(rows, trained, fixed, frozen, normalizers)
        updates, opt_state = optimizer.update(gradient, state["opt_state"], trained)
        params = merge(optax.apply_updates(trained, updates), fixed)
        metrics |= losses.derived(metrics)
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": learning_rate(state["step"])}
        for terms in normalizers.values():
            metrics |= {term + PREDICTIONS: normalizer for term, normalizer in terms.items()}
        new_state = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
        if ema_decay:
            new_state["ema"] = optax.incremental_update(params, state["ema"], step_size=1.0 - ema_decay)
        return new_state, metrics

    return train_step


def make_eval_step(losses: Losses) -> EvalStep:
    """Returns a function (params, frozen, batch) -> (metrics, normalizers, outputs) over one batch [1, B, ...].

    Metrics are means, normalizers what they count for, by objective and term, and outputs are [B, ...].
    """

    def eval_step(params: Params, frozen: FrozenParams, batch: Batch) -> tuple[Metrics, Normalizers, Metrics]:
        batch = {name: array[0] for name, array in batch.items()}
        normalizers = losses.normalizers(batch)
        _, metrics, outputs = losses.compute(params, frozen, batch, normalizers)
        return metrics, normalizers, outputs

    return eval_step


def sum_over_microbatches(function: Callable[[Batch, jax.Array], Any], batch: Batch, keys_AxB: jax.Array):
    """Returns the sum of function(microbatch, keys_B), a tree of arrays, over the leading axis of a batch, one by one."""
    first = jax.tree.map(lambda x: x[0], (batch, keys_AxB))
    if len(keys_AxB) == 1:
        return function(*first)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, function(*inputs)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *first))
    return jax.lax.scan(add, zeros, (batch, keys_AxB))[0]


# ----------------------------------------------------------------------------------------------------------------------
# The state
# ----------------------------------------------------------------------------------------------------------------------


def keys_of_run(seed: int) -> tuple[jax.Array, jax.Array]:
    """Returns independent random keys for the initial parameters and for dropout."""
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    return init_key, dropout_key


def keys_of_rows(seed: int, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns random keys [A, B] of the rows of a batch, which do not depend on how it is cut into microbatches."""
    step_key = jax.random.fold_in(keys_of_run(seed)[1], step)
    return jax.vmap(partial(jax.random.fold_in, step_key))(jnp.arange(math.prod(shape))).reshape(shape)


def init_state(
    model: Model, optimizer: optax.GradientTransformation, trainable: str, with_ema: bool, seed: int
) -> State:
    """Returns a fresh state. To be traced by `jax.jit` with `state_shardings` as out_shardings, so that nothing is copied."""
    params = model.init(keys_of_run(seed)[0])
    trained, _ = partition(params, trainable)
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "opt_state": optimizer.init(trained)}
    return state | ({"ema": params} if with_ema else {})


def state_shardings(model: Model, state: State, mesh: Mesh) -> State:
    """Returns NamedShardings of an (abstract) state: the optimizer's moments lie where their parameters do.

    Any array in the optimizer's state that is kept under a parameter's path is a moment if it has the parameter's shape,
    perhaps with axes of size 1, over which it is a mean: these stay whole, and the others are split as the parameter's are.
    Other arrays, such as step counts, are small and replicated.
    """
    params = shardings(model.abstract, model.axes, mesh)
    shapes, axes = (traverse_util.flatten_dict(tree, sep="/") for tree in (model.abstract, model.axes))

    def sharding(path: tuple[Any, ...], array: jax.ShapeDtypeStruct) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in shapes]
        if not names or not is_moment(array.shape, shapes[names[-1]].shape):
            return replicated(mesh)
        return NamedSharding(mesh, partition_spec(axes[names[-1]], array.shape, dict(mesh.shape)))

    opt_state = jax.tree.map_with_path(sharding, state["opt_state"])
    known = {"step": replicated(mesh), "params": params, "opt_state": opt_state, "ema": params}
    return {name: known[name] for name in state}


def is_moment(shape: tuple[int, ...], of_parameter: tuple[int, ...]) -> bool:
    """Checks whether an array of the optimizer's state has the axes of its parameter, some perhaps reduced to size 1."""
    return len(shape) == len(of_parameter) and all(
        size in (1, full) for size, full in zip(shape, of_parameter, strict=True)
    )


def partition(params: Params, trainable: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns flat dicts {path: leaf} of the parameters that are trained and of those that are not.

    Raises:
      UserError: the regex is invalid, or matches no parameter.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    regex = compiled("trainable", trainable)
    trained = {name: leaf for name, leaf in flat.items() if regex.search(name)}
    if not trained:
        raise UserError(f"optimizer.trainable={trainable!r} matches no parameter; paths look like {min(flat)}")
    return trained, {name: leaf for name, leaf in flat.items() if name not in trained}


def merge(trained: dict[str, Any], fixed: dict[str, Any]) -> Params:
    """Returns the nested parameters of both flat dicts."""
    return traverse_util.unflatten_dict(trained | fixed, sep="/")
