"""The training state: one nested dict of arrays, made where it will live, and its shardings.

{'step': int32, 'params': ..., 'opt_state': ..., 'ema': ... (where asked for)}
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bert_jax.errors import UserError
from bert_jax.model.build import Model, Params
from bert_jax.parallel.mesh import replicated, shardings
from bert_jax.train.optimizers import path_name

State = dict[str, Any]


def keys_of_run(seed: int) -> tuple[jax.Array, jax.Array]:
    """Returns independent random keys for the initial parameters and for dropout."""
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    return init_key, dropout_key


def init_state(
    model: Model, optimizer: optax.GradientTransformation, trainable: str, with_ema: bool, seed: int
) -> State:
    """A fresh state. To be traced by `jax.jit` with `state_shardings` as out_shardings, so that nothing is copied."""
    params = model.init(keys_of_run(seed)[0])
    trained, _ = partition(params, trainable)
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "opt_state": optimizer.init(trained)}
    return state | ({"ema": params} if with_ema else {})


def state_shardings(model: Model, optimizer: optax.GradientTransformation, state: State, trainable: str, mesh: Mesh):
    """NamedShardings of an (abstract) state: the optimizer's moments lie where their parameters do."""
    params = shardings(model.abstract, model.axes, mesh)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state["opt_state"],
        partition(params, trainable)[0],
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),  # a placeholder for what another part of it trains
    )
    known = {"step": replicated(mesh), "params": params, "opt_state": opt_state, "ema": params}
    return {name: known[name] for name in state}


def partition(params: Params, trainable: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flat dicts path -> leaf of the parameters that are trained and of those that are not.

    Raises:
      UserError: the regex is none, or matches no parameter.
    """
    flat = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    try:
        trained = {name: leaf for name, leaf in flat.items() if re.search(trainable, name)}
    except re.error as error:
        raise UserError(
            f"optimizer.trainable={trainable!r} is not a valid regular expression: {error}; fix it"
        ) from None
    if not trained:
        raise UserError(f"optimizer.trainable={trainable!r} matches no parameter; paths look like {min(flat)}")
    return trained, {name: leaf for name, leaf in flat.items() if name not in trained}


def merge(trained: dict[str, Any], frozen: dict[str, Any]) -> Params:
    """The nested parameters of both flat dicts."""
    params: Params = {}
    for name, leaf in (trained | frozen).items():
        *folders, last = name.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return params
