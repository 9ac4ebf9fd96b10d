"""What a new run takes from the run in `init_from`: parameters, as many layers as are wanted, placed on its mesh."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from bert_jax.config import to_dict
from bert_jax.errors import UserError, listed
from bert_jax.model.build import Params
from bert_jax.parallel.mesh import shardings, with_shardings
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore, flat_shapes
from bert_jax.run_folder.default_checkpoint import chosen_params, default_step
from bert_jax.tasks import base as tasks
from bert_jax.train.step import State

logger = logging.getLogger(__name__)


def inherited(task: tasks.Task, state: State, mesh: Mesh) -> State:
    """Returns the entries of the state that change when the run in `init_from` provides parameters: params, and ema.

    Call `check_origin` first.
    """
    origin = run_folder.origin(task.config.init_from)
    origin_config = run_folder.read_config(origin)
    store = CheckpointStore(origin)
    name = chosen_params(origin_config)
    abstract = inheritable(task, store.structure(name), mesh)
    step, restored = store.restore({name: abstract}, default_step(origin, origin_config, store.steps()))
    parts = [
        f"{part}/{key}" if part == "heads" else part
        for part in task.initialization.parts
        for key in restored[name][part]
    ]
    for option in run_folder.differing_model_options(origin_config["model"], to_dict(task.config.model)):
        now, then = getattr(task.config.model, option), origin_config["model"].get(option)
        logger.warning("model.%s is %s in %s and %s from here on", option, then, origin, now)
    logger.info("parameters %s are those of %s, step %d", " and ".join(dict.fromkeys(parts)), origin, step)
    params = state["params"] | {
        part: state["params"][part] | restored[name][part] for part in task.initialization.parts
    }
    if "encoder" in task.initialization.parts:
        num_kept = task.config.model.num_layers - task.initialization.reinit_layers
        params["encoder"]["layers"] = jax.tree.map(
            partial(with_fresh, num_kept), params["encoder"]["layers"], state["params"]["encoder"]["layers"]
        )
    return {"params": params} | ({"ema": jax.tree.map(lambda x: x.copy(), params)} if "ema" in state else {})


def check_origin(task: tasks.Task) -> None:
    """Raises UserError if the run in `init_from` has no checkpoint, a model of other sizes, or another tokenizer."""
    origin = run_folder.origin(task.config.init_from)
    config, store = run_folder.read_config(origin), CheckpointStore(origin)
    if not store.steps():
        raise UserError(f"init_from={origin}: holds no checkpoint; train it first")
    then, now = config["model"], to_dict(task.config.model)
    has_spare_layers = not then.get("num_layer_groups") and not now["num_layer_groups"]
    stored = store.structure(chosen_params(config))
    differences, remedies = list[str](), list[str]()
    model = task.losses.model
    wanted, axes = (inheritable_parts(task, tree, stored) for tree in (model.abstract, model.axes))
    wrong = misfits(wanted, axes, stored, has_spare_layers)
    if wrong or then.get("param_dtype", "float32") != now["param_dtype"]:
        options = run_folder.differing_model_options(then, now)
        differences += [f"model.{name} is {then[name]} there, {now[name]} here" for name in options] or wrong
        remedies += ["set " + " ".join(f"--config.model.{name}={then[name]}" for name in options)] if options else []
    tokenizer = tasks.load_tokenizer(origin)
    if tokenizer.fingerprint != task.tokenizer.fingerprint:
        sizes = f"{tokenizer.vocab_size} tokens there, {task.tokenizer.vocab_size} here"
        differences.append(f"its tokenizer differs ({sizes})")
        remedies.append(f"prepare the corpus with --tokenizer={origin / run_folder.TOKENIZER}")
    if differences:
        remedy = ", or ".join(filter(None, [" and ".join(remedies), "name a run like this one"]))
        raise UserError(f"init_from={origin}: holds another model: {listed(differences)}; {remedy}")


def misfits(wanted: Params, axes: Params, stored: Params, has_spare_layers: bool) -> list[str]:
    """Returns paths of wanted arrays that are missing or differ in shape; with `has_spare_layers` more layers may be stored."""
    shapes, flat_axes = flat_shapes(stored), traverse_util.flatten_dict(axes, sep="/")

    def fits(path: str, shape: tuple[int, ...]) -> bool:
        stored_shape = shapes.get(path)
        if stored_shape is None or "layers" not in flat_axes[path]:
            return stored_shape == shape
        num_layers, *rest = stored_shape
        return (*rest,) == shape[1:] and (num_layers == shape[0] or (has_spare_layers and num_layers > shape[0]))

    return [path for path, shape in flat_shapes(wanted).items() if not fits(path, shape)]


def with_fresh(num_kept: int, layers: jax.Array, fresh: jax.Array) -> jax.Array:
    """Returns the first layers of one stack and the last ones of `fresh`, which has the sharding of the result."""
    if len(layers) == num_kept or len(fresh) < num_kept:  # all are taken, or one serves for all
        return layers
    return jax.device_put(jnp.concatenate([layers[:num_kept], fresh[num_kept:]]), fresh.sharding)


def inheritable(task: tasks.Task, stored: Params, mesh: Mesh) -> Params:
    """Returns the abstract arrays that a task takes from a run's checkpoint, with as many layers as are stored."""
    model = task.losses.model
    wanted, axes = (inheritable_parts(task, tree, stored) for tree in (model.abstract, model.axes))
    abstract = with_shardings(wanted, shardings(wanted, axes, mesh))
    if "encoder" in abstract:
        abstract["encoder"]["layers"] = jax.tree.map(
            lambda array, stored: array.update(shape=(stored.shape[0], *array.shape[1:])),
            abstract["encoder"]["layers"],
            stored["encoder"]["layers"],
        )
    return abstract


def inheritable_parts(task: tasks.Task, tree: Params, stored: Params) -> Params:
    """Returns the part of a tree, shaped like the task's parameters, that a run's checkpoint provides.

    Heads that it lacks keep their initial values, and so does a pooler on top of reinitialised layers.
    """
    names = {part: set(tree[part]) & set(stored[part]) for part in task.initialization.parts}
    if task.initialization.reinit_layers:
        names["encoder"] -= {"pooler"}
    return {part: {name: tree[part][name] for name in sorted(names[part])} for part in names}
