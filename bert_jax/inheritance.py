"""What a new run takes from the run in `init_from`: parameters, as many layers as are wanted, placed on its mesh."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bert_jax import run_folder
from bert_jax.checkpoint.store import CheckpointStore
from bert_jax.chosen_checkpoint import chosen_params, chosen_step
from bert_jax.config import to_dict
from bert_jax.model.build import Params
from bert_jax.parallel.mesh import shardings, with_shardings
from bert_jax.tasks import base as tasks
from bert_jax.train.state import State

logger = logging.getLogger(__name__)


def inherited(task: tasks.Task, state: State, mesh: Mesh) -> State:
    """Those entries of the state that change when the run in `init_from` provides parameters: params, and ema."""
    origin = Path(task.config.init_from)
    origin_config = run_folder.read_config(origin)
    store = CheckpointStore(origin)
    name = chosen_params(origin_config)
    abstract = inheritable(task, store.structure(max(store.steps()))[name] if store.steps() else {}, mesh)
    step, restored = store.restore({name: abstract}, chosen_step(origin, origin_config, store.steps()))
    parts = [f"{part}/{key}" if part == "heads" else part for part in task.inherited for key in restored[name][part]]
    for option in run_folder.differing_model_options(origin_config["model"], to_dict(task.config.model)):
        now, then = getattr(task.config.model, option), origin_config["model"].get(option)
        logger.warning("model.%s is %s in %s and %s from here on", option, then, origin, now)
    logger.info("parameters %s are those of %s, step %d", " and ".join(dict.fromkeys(parts)), origin, step)
    params = state["params"] | {part: state["params"][part] | restored[name][part] for part in task.inherited}
    if "encoder" in task.inherited:
        num_kept = task.config.model.num_layers - task.fresh_layers
        params["encoder"]["layers"] = jax.tree.map(
            partial(with_fresh, num_kept), params["encoder"]["layers"], state["params"]["encoder"]["layers"]
        )
    return {"params": params} | ({"ema": jax.tree.map(lambda x: x.copy(), params)} if "ema" in state else {})


def with_fresh(num_kept: int, layers: jax.Array, fresh: jax.Array) -> jax.Array:
    """The first layers of one stack, and the last ones of another that lies where the result is to lie."""
    if len(layers) == num_kept or len(fresh) < num_kept:  # all are taken, or one serves for all
        return layers
    return jax.device_put(jnp.concatenate([layers[:num_kept], fresh[num_kept:]]), fresh.sharding)


def inheritable(task: tasks.Task, stored: dict[str, Any], mesh: Mesh) -> Params:
    """The abstract arrays of a run's checkpoint that a task takes; heads that it has not stay fresh, and so does a pooler under
    fresh layers. There may be more layers than are wanted."""
    model = task.losses.model
    known: Params = stored or model.abstract

    def taken(tree: Params) -> Params:
        names = {part: set(tree[part]) & set(known[part]) for part in task.inherited}
        if task.fresh_layers:
            names["encoder"] -= {"pooler"}
        return {part: {name: tree[part][name] for name in sorted(names[part])} for part in names}

    abstract = with_shardings(taken(model.abstract), shardings(taken(model.abstract), taken(model.axes), mesh))
    if "encoder" in abstract:
        abstract["encoder"]["layers"] = jax.tree.map(
            lambda ours, theirs: ours.update(shape=(theirs.shape[0], *ours.shape[1:])),
            abstract["encoder"]["layers"],
            known["encoder"]["layers"],
        )
    return abstract
