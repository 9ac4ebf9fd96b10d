"""The training state: one nested dict of arrays, made where it will live, and its shardings.

{'step': int32, 'params': ..., 'opt_state': ..., 'ema': ... (where asked for)}
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from bert_jax.errors import UserError
from bert_jax.model.build import Model, Params
from bert_jax.parallel.mesh import replicated, shardings
from bert_jax.train.optimizers import compiled

State = dict[str, Any]


def keys_of_run(seed: int) -> tuple[jax.Array, jax.Array]:
    """Returns independent random keys for the initial parameters and for dropout."""
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    return init_key, dropout_key


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

    Any array in the optimizer's state that is kept under a parameter's path and has its shape is a moment. Other arrays, such
    as step counts and factored second moments, are small and replicated.
    """
    params = shardings(model.abstract, model.axes, mesh)
    shapes, placed = (traverse_util.flatten_dict(tree, sep="/") for tree in (model.abstract, params))

    def sharding(path: tuple[Any, ...], array: jax.ShapeDtypeStruct) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in shapes]
        return placed[names[-1]] if names and shapes[names[-1]].shape == array.shape else replicated(mesh)

    opt_state = jax.tree.map_with_path(sharding, state["opt_state"])
    known = {"step": replicated(mesh), "params": params, "opt_state": opt_state, "ema": params}
    return {name: known[name] for name in state}


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
