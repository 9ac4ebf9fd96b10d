"""What a new run takes from `init_from`, a run folder or a model in Hugging Face's format: parameters, placed on its mesh."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from bert_jax.config import from_dict, to_dict
from bert_jax.errors import UserError, listed
from bert_jax.formats import huggingface
from bert_jax.growing import axis_fits, check_growth, grown
from bert_jax.model.build import Params
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import shardings, with_shardings
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore, flat_shapes
from bert_jax.run_folder.default_checkpoint import chosen_params, default_or_latest_step, default_step
from bert_jax.tasks import base as tasks
from bert_jax.train.step import State

logger = logging.getLogger(__name__)
# Options by which an encoder of the same arrays computes something else.
CHANGES_FUNCTION = {
    *("positions", "position_offset", "local_rope_theta", "global_attention_every", "local_window"),
    "attention_direction",
    *("norm", "norm_position", "norm_epsilon", "first_attention_norm"),
    *("activation", "gated_mlp", "use_bias", "head_activation"),
}


class InitialModel(NamedTuple):
    """What is in the folder that `init_from` names."""

    name: str  # for messages
    model: EncoderConfig
    stored: Params  # abstract
    restore: Callable[[Params], Params]  # a part of `stored`, with shardings, to arrays


def open_initial_model(folder: Path) -> InitialModel:
    """Opens a run folder or a model in Hugging Face's format.

    Raises:
      UserError: there is no checkpoint, or as `formats.huggingface.inspect`.
    """
    if not run_folder.is_run(folder):
        inspected, generator = huggingface.inspect(folder), tasks.generator_folder(folder)
        model, stored = inspected.model.config, inspected.model.abstract
        if not generator:
            return InitialModel(str(folder), model, stored, partial(huggingface_params, inspected))
        of_generator = huggingface.inspect(generator)
        heads = stored.get("heads", {}) | {"generator": as_head(of_generator.model.abstract)}
        return InitialModel(
            str(folder), model, stored | {"heads": heads}, partial(params_with_generator, inspected, of_generator)
        )
    config, store = run_folder.read_config(folder), CheckpointStore(folder)
    steps = store.steps()
    if not steps:
        raise UserError(f"init_from={folder}: holds no checkpoint; train it first")
    name, step = chosen_params(config), default_step(folder, config, steps)
    shown = default_or_latest_step(folder, config, steps)
    options = from_dict(EncoderConfig(), run_folder.model_after(config, shown), "config.model")
    num_steps = config["train"].get("num_steps")
    place = f"{folder}, step {shown}" + (
        f" of {num_steps}" if 0 < shown != num_steps else ""
    )  # 0: of an imported model
    return InitialModel(place, options, store.structure(name), lambda part: store.restore({name: part}, step)[1][name])


def huggingface_params(inspected: huggingface.ModelFolder, abstract: Params) -> Params:
    """Loads the arrays of a model folder that are in `abstract`, each with the sharding that it has there."""
    wanted = traverse_util.flatten_dict(abstract, sep="/")
    paths = traverse_util.flatten_dict(inspected.model.abstract, sep="/")
    placed = {path: wanted[path].sharding if path in wanted else None for path in paths}
    params = huggingface.load_params(inspected, traverse_util.unflatten_dict(placed, sep="/"))
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({path: flat[path] for path in wanted}, sep="/")


def as_head(generator: Params) -> Params:
    """Returns the parameters of a generator as those of a module of `rtd` (see objectives/rtd.py, `Generator`)."""
    return {"encoder": generator["encoder"], "mlm": generator["heads"]["mlm"]}


def params_with_generator(
    inspected: huggingface.ModelFolder, generator: huggingface.ModelFolder, abstract: Params
) -> Params:
    """Loads the arrays of a discriminator and of its generator that are in `abstract`."""
    heads = dict(abstract.get("heads", {}))
    wanted = heads.pop("generator", None)
    params = huggingface_params(inspected, abstract | {"heads": heads})
    if wanted is None:
        return params
    loaded = huggingface_params(generator, {"encoder": wanted["encoder"], "heads": {"mlm": wanted["mlm"]}})
    return params | {"heads": params.get("heads", {}) | {"generator": as_head(loaded)}}


def inherited_state(task: tasks.Task, origin: InitialModel, state: State, mesh: Mesh) -> State:
    """Returns the entries of the state that change when `init_from` provides parameters: params, and ema.

    Call `check_origin` first.
    """
    config, model = task.config, task.losses.model
    taken, axes = (inheritable_parts(task, tree, origin.stored) for tree in (origin.stored, model.axes))
    restored = origin.restore(with_shardings(taken, shardings(taken, axes, mesh)))
    parts = [f"{part}/{key}" if part == "heads" else part for part in restored for key in restored[part]]
    for option in differing_options(to_dict(origin.model), to_dict(config.model)):
        now, then = getattr(config.model, option), getattr(origin.model, option)
        logger.warning("model.%s is %s in %s and %s from here on", option, then, origin.name, now)
    how = f", init_growth={config.init_growth!r}" if config.init_growth else ""
    how += f", its layers {', '.join(map(str, config.init_layers))}" if config.init_layers else ""
    logger.info("parameters %s are those of %s%s", " and ".join(dict.fromkeys(parts)), origin.name, how)
    for head in model.heads if "heads" in task.initialization.parts else ():
        if head not in restored.get("heads", ()):
            logger.warning("head %s is not in %s and starts from random weights", head, origin.name)
    flat, flat_fresh, flat_axes = (
        traverse_util.flatten_dict(tree, sep="/") for tree in (restored, state["params"], model.axes)
    )
    made = grown(flat, flat_fresh, flat_axes, config.init_growth, config.init_layers)
    new = traverse_util.unflatten_dict(made, sep="/")
    params = state["params"] | {part: state["params"][part] | new[part] for part in new}
    if "encoder" in new:
        num_kept = config.model.num_layers - task.initialization.reinit_layers
        params["encoder"]["layers"] = jax.tree.map(
            partial(with_fresh, num_kept), params["encoder"]["layers"], state["params"]["encoder"]["layers"]
        )
    return {"params": params} | ({"ema": jax.tree.map(lambda x: x.copy(), params)} if "ema" in state else {})


def check_origin(task: tasks.Task, origin: InitialModel) -> None:
    """Raises UserError if the model in `init_from` has other sizes, or another tokenizer, or cannot be grown as asked."""
    config, model = task.config, task.losses.model
    check_growth(config.init_growth, config.init_layers, origin.model, config.model)
    then, now = to_dict(origin.model), to_dict(config.model)
    differences, remedies = list[str](), list[str]()
    wanted, axes = (inheritable_parts(task, tree, origin.stored) for tree in (model.abstract, model.axes))
    wrong = misfits(wanted, axes, origin.stored, config.init_growth, config.init_layers)
    if then["num_layer_groups"] != now["num_layer_groups"]:
        wrong = wrong or ["encoder/layers"]
    options = differing_options(then, now)
    if not wrong:  # the arrays fit, so that other options may differ, such as the number of layers
        options = [name for name in options if name in CHANGES_FUNCTION or name == "param_dtype"]
    differences += [
        f"model.{name} is {_shown(then[name])} there, {_shown(now[name])} here" for name in options
    ] or wrong
    remedies += (
        ["set " + " ".join(f"--config.model.{name}={_shown(then[name])}" for name in options)] if options else []
    )
    tokenizer = tasks.origin_tokenizer(Path(config.init_from))
    if tokenizer.fingerprint != task.tokenizer.fingerprint:
        sizes = f"{tokenizer.vocab_size} tokens there, {task.tokenizer.vocab_size} here"
        differences.append(f"its tokenizer differs ({sizes})")
        remedies.append(f"prepare the corpus with --tokenizer={tasks.tokenizer_folder(Path(config.init_from))}")
    if differences:
        more = [now[name] - then[name] for name in ("num_layers", "hidden_size")]
        could_grow = not config.init_growth and min(more) >= 0 and max(more) > 0
        growing = "set --config.init_growth=stack (deeper) or tile (wider)" if could_grow else ""
        remedy = ", or ".join(filter(None, [" and ".join(remedies), growing, "name a run like this one"]))
        raise UserError(f"init_from={config.init_from}: holds another model: {listed(differences)}; {remedy}")


def differing_options(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns the options of `model` that differ, without those that have no effect."""
    before, after = effective(then), effective(now)
    return [name for name in run_folder.differing_model_options(then, now) if before[name] != after[name]]


def effective(options: dict[str, Any]) -> dict[str, Any]:
    """Returns options of `model` with None for those that have no effect with the others (see model/config.py)."""
    has_windows, is_rotary = options["global_attention_every"] > 1, options["positions"] == "rope"
    has_effect = {
        "position_offset": not is_rotary,
        "rope_theta": is_rotary,
        "local_rope_theta": is_rotary and has_windows,
        "local_window": has_windows,
        "first_attention_norm": options["norm_position"] == "pre",
    }
    values = {name: value if has_effect.get(name, True) else None for name, value in options.items()}
    return values | {"head_activation": options["head_activation"] or options["activation"]}


def _shown(value: Any) -> str:
    return "''" if value == "" else str(value)


def misfits(wanted: Params, axes: Params, stored: Params, growth: str, layers: Sequence[int]) -> list[str]:
    """Returns paths of wanted arrays that are missing or cannot be made of stored ones.

    More layers may be stored, where they have weights of their own, and fewer if the encoder is to grow.
    """
    shapes, flat_axes = flat_shapes(stored), traverse_util.flatten_dict(axes, sep="/")

    def fits(path: str, shape: tuple[int, ...]) -> bool:
        stored_shape = shapes.get(path)
        if stored_shape is None or len(stored_shape) != len(shape):
            return False

        sizes = zip(flat_axes[path], stored_shape, shape, strict=True)
        return all(axis_fits(path, *of_axis, growth, layers) for of_axis in sizes)

    return [path for path, shape in flat_shapes(wanted).items() if not fits(path, shape)]


def with_fresh(num_kept: int, layers: jax.Array, fresh: jax.Array) -> jax.Array:
    """Returns the first layers of one stack and the last ones of `fresh`, which has the sharding of the result."""
    if len(layers) == num_kept or len(fresh) < num_kept:  # all are taken, or one serves for all
        return layers
    return jax.device_put(jnp.concatenate([layers[:num_kept], fresh[num_kept:]]), fresh.sharding)


def inheritable_parts(task: tasks.Task, tree: Params, stored: Params) -> Params:
    """Returns the part of a tree, shaped like parameters, that is in the task's parameters and in the stored ones.

    Heads that are not stored keep their initial values, and so does a pooler on top of reinitialised layers. Within a part of
    the encoder, e.g. the embeddings, nothing that the task has may be missing.
    """
    wanted = task.losses.model.abstract
    names = {part: set(wanted[part]) & set(stored.get(part, ())) for part in task.initialization.parts}
    if task.initialization.reinit_layers:
        names["encoder"] -= {"pooler"}
    return {part: {name: _like(tree[part][name], wanted[part][name]) for name in sorted(names[part])} for part in names}


def _like(tree: Params, wanted: Params) -> Params:
    """Returns the part of a tree that has the keys of another one, as far as it has them."""
    if not isinstance(wanted, dict):
        return tree
    return {name: _like(tree[name], wanted[name]) for name in wanted if name in tree}
