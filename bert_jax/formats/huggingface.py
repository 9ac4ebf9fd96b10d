"""Models in Hugging Face's format, both ways: config.json and tensors <-> EncoderConfig, heads and parameters.

What a family calls things is in families.py; nothing here asks for a family.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from bert_jax.errors import UserError, listed
from bert_jax.formats.families import FAMILIES
from bert_jax.formats.heads import COUNTED, head_factory
from bert_jax.formats.huggingface_config import (
    CONFIG,
    check_form,
    class_has_pooler,
    encoder_config,
    pooler_name,
    read_config,
)
from bert_jax.formats.huggingface_labels import label_names, problem_of
from bert_jax.formats.rows import Family, Row
from bert_jax.formats.tensors import Tensors
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig

MOST_CLASSES = 1 << 16  # of a head that begins with random weights
_OTHER_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}  # of files before 2020


@dataclasses.dataclass(frozen=True)
class Found:
    """What a folder holds."""

    family: Family
    config: dict[str, Any]  # theirs
    model: Model
    heads: dict[str, int]  # our name: classes, 0 where they are not counted
    fresh: tuple[str, ...]  # heads whose tensors are not in the file
    tensors: Tensors

    @property
    def problem(self) -> str:
        """Problem type of the classification head. Raises UserError as `problem_of` does."""
        return problem_of(self.config, self.heads["classification"])

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits; empty if no head has classes. Raises UserError as `label_names` does."""
        num_classes = max(self.heads.values(), default=0)
        return label_names(self.config, num_classes) if num_classes else []


def look(
    folder: str | Path,
    fresh_heads: tuple[str, ...] = (),
    config: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
) -> Found:
    """Reads the config of a folder and the names and shapes of its tensors.

    Args:
      folder: with config.json and model.safetensors (or its parts with their index).
      fresh_heads: names of heads to add where the file does not hold them.
      config: the contents of config.json, where the folder has none (yet).
      tensors: under names of theirs, where the folder holds them in another format.

    Raises:
      UserError: no config, a family or an option that is not supported, tensors that are unknown, missing or of other shapes.
    """
    folder = Path(folder)
    config = config or read_config(folder)
    check_form(config, str(folder))
    family = FAMILIES.get(str(config.get("model_type")))
    if "task" in config:
        raise UserError(f"{folder}: is a run folder of bert_jax, not one of Hugging Face's; export it first")
    if family is None:
        raise UserError(f"{folder}: model_type {config.get('model_type')!r} is not one of {', '.join(FAMILIES)}")
    tensors = tensors or Tensors.open(folder)
    if empty := [name for name, shape in tensors.shapes.items() if 0 in shape]:
        raise UserError(f"{folder}: tensors without a number: {listed(empty)}; get the folder again")
    tensors.rename(_full_names(family, tensors.shapes))
    tensors.rename(lambda name: _stored_name(name, family, tensors.shapes))
    has_pooler = f"{family.prefix}{pooler_name(family)}" in tensors.shapes
    encoder = dataclasses.replace(encoder_config(family, config, str(folder)), pooler=has_pooler)
    _check_sizes(family, encoder, tensors.shapes, folder)
    heads = heads_found(family, config, tensors.shapes)
    fresh = tuple(name for name in fresh_heads if name not in heads)
    num_labels = len(config.get("id2label") or {0: "", 1: ""})
    if num_labels > MOST_CLASSES:
        raise UserError(
            f"{folder}: id2label in {CONFIG} names {num_labels:,} classes, more than {MOST_CLASSES:,}; name fewer"
        )
    heads |= {name: num_labels if name in COUNTED else 0 for name in fresh}
    if not encoder.pooler and (needing := {"nsp", "sop"}.intersection(fresh)):
        raise UserError(f"{folder}: has no pooler, which the head {needing.pop()} reads; leave that out of --heads")
    model = Model.build(encoder, {name: head_factory(name, classes) for name, classes in heads.items()})
    found = Found(family, config, model, heads, fresh, tensors)
    _check_tensors(found, folder)
    return found


def load(found: Found, shardings: Any = None, seed: int = 0) -> Params:
    """The parameters of a folder, one at a time, each part straight onto its device; heads that are not there are fresh.

    Args:
      found: by `look`.
      shardings: a tree like the parameters; the first device for None.
      seed: of the fresh heads.

    Raises:
      UserError: tensors that are not finite, or of a tied pair that are not equal.
    """
    _check_duplicates(found)
    abstract, axes = (traverse_util.flatten_dict(tree, sep="/") for tree in (found.model.abstract, found.model.axes))
    placed = traverse_util.flatten_dict(shardings, sep="/") if shardings is not None else {}
    params = {}
    for row in rows_of(found.family, found.model, found.fresh):
        is_stacked = "layers" in axes[row.ours[0]]
        for path, array in zip(row.ours, _from_theirs(row, found, abstract, is_stacked), strict=True):
            array = array.astype(abstract[path].dtype, copy=False)
            sharding = placed.get(path)
            params[path] = (
                jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
                if sharding
                else jax.device_put(array).block_until_ready()  # one array at a time twice in memory
            )
    if found.fresh:
        initial = traverse_util.flatten_dict(found.model.init(jax.random.key(seed)), sep="/")
        params |= {path: array for path, array in initial.items() if path.split("/")[1] in found.fresh}
    return traverse_util.unflatten_dict(params, sep="/")


def exported(model: Model, params: Params, family: Family, heads: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (their name, float32 array) of the encoder's tensors and those of `heads`, one at a time."""
    flat, axes = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, model.axes))
    prefix = "" if heads else family.prefix  # a class of theirs without heads names its tensors without it
    config = model.config
    for row in rows_of(family, model, tuple(set(model.heads) - set(heads))):
        if row.ours[0].startswith("encoder/pooler/") and not class_has_pooler(config, heads):
            continue
        arrays = [np.asarray(jax.device_get(flat[path]), np.float32) for path in row.ours]
        if "layers" not in axes[row.ours[0]]:
            names = (name.removeprefix(prefix) for name in row.theirs)
            yield from zip(names, row.to_theirs(arrays, config), strict=True)
            continue
        for number in range(len(arrays[0])):
            if not is_unused(config, row, number):
                names = (name.removeprefix(prefix) for name in layer_names(family, config, row, number))
                yield from zip(names, row.to_theirs([array[number] for array in arrays], config), strict=True)


# ----------------------------------------------------------------------------------------------------------------------
# Tensors
# ----------------------------------------------------------------------------------------------------------------------


def rows_of(family: Family, model: Model, without_heads: tuple[str, ...] = ()) -> list[Row]:
    """The rows of the family whose parameters the model has, with full names and paths."""
    paths = set(traverse_util.flatten_dict(model.abstract, sep="/"))
    rows = [
        Row(tuple(f"encoder/{path}" for path in row.ours), tuple(family.prefix + name for name in row.theirs), *row[2:])
        for row in family.encoder
    ]
    for name in model.heads:
        if name not in without_heads:
            if name not in family.heads:
                raise UserError(f"head '{name}': {family.model_type} has none in Hugging Face's format; leave it out")
            rows += [row._replace(ours=tuple(f"heads/{path}" for path in row.ours)) for row in family.heads[name]]
    return [row for row in rows if paths.issuperset(row.ours)]


def layer_names(family: Family, config: EncoderConfig, row: Row, number: int) -> tuple[str, ...]:
    """Their names of a row within the layers, for the weights of one of them."""
    return tuple(name.format(layer=family.layer(config, number)) for name in row.theirs)


def is_unused(config: EncoderConfig, row: Row, number: int) -> bool:
    """Whether this layer has the parameter only because the others have it (see EncoderConfig.first_attention_norm)."""
    return number == 0 and not config.first_attention_norm and row.ours[0].startswith("encoder/layers/attention_norm/")


def expected_names(family: Family, model: Model, without_heads: tuple[str, ...]) -> list[str]:
    """All of their tensors that a model needs."""
    names = list[str]()
    axes = traverse_util.flatten_dict(model.axes, sep="/")
    for row in rows_of(family, model, without_heads):
        if "layers" not in axes[row.ours[0]]:
            names += row.theirs
            continue
        for number in range(model.config.groups * model.config.layers_per_group):
            if not is_unused(model.config, row, number):
                names += layer_names(family, model.config, row, number)
    return names


def heads_found(family: Family, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The heads whose tensors are there, with their numbers of classes.

    Heads of several classes of theirs have the same names; then it is the one in config.json's `architectures` that counts.
    """
    classes = (config.get("architectures") or [""])[:1]
    named = family.architectures.get(classes[0], ())
    heads, taken = dict[str, int](), set[str]()
    for name in (*named, *(other for other in family.heads if other not in named)):
        if name not in family.heads:
            continue
        weights = [their for row in family.heads[name] for their in row.theirs]
        needed = [their for their in weights if their.endswith(".weight")] or weights
        if taken.isdisjoint(weights) and all(their in shapes for their in needed):
            taken.update(weights)
            output = needed[-1]  # weights [classes, ...]
            heads[name] = max(shapes[output][:1], default=1) if name in COUNTED else 0
    return heads


def _from_theirs(
    row: Row, found: Found, abstract: dict[str, jax.ShapeDtypeStruct], is_stacked: bool
) -> list[np.ndarray]:
    """Returns the parameters of a row, stacked over layers if `is_stacked`."""
    config, read = found.model.config, found.tensors.read
    if not is_stacked:
        return row.from_theirs([read(name) for name in row.theirs], config)
    stacked = [np.empty(abstract[path].shape, np.float32) for path in row.ours]
    for number in range(len(stacked[0])):
        if is_unused(config, row, number):
            parts = [np.ones(array.shape[1:], np.float32) for array in stacked]
        else:
            parts = row.from_theirs([read(name) for name in layer_names(found.family, config, row, number)], config)
        for array, part in zip(stacked, parts, strict=True):
            array[number] = part
    return stacked


def _full_names(family: Family, all_names: Mapping[str, Any]) -> Callable[[str], str]:
    """The names as a model with a head has them: a bare encoder's tensors have no prefix."""
    is_bare = not any(name.startswith(family.prefix) for name in all_names)
    of_heads = {their for rows in family.heads.values() for row in rows for their in row.theirs}

    def full_name(name: str) -> str:
        for old, new in _OTHER_NAMES.items():
            name = name.replace(old, new)
        return family.prefix + name if is_bare and name not in of_heads else name

    return full_name


def _stored_name(name: str, family: Family, all_names: Mapping[str, Any]) -> str:
    """The name of a tied weight that is stored once, under the name of either."""
    original = family.duplicates.get(name, name)
    return name if original in all_names else original


def _check_sizes(family: Family, config: EncoderConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Raises UserError if the tensors that show the sizes of an encoder are missing or have others than config.json says.

    It comes before anything of these sizes is made; `_check_tensors` then compares all tensors.
    """
    sizes = {
        "embeddings/tokens/embedding": (config.vocab_size, config.table_width),
        "embeddings/positions/embedding": (config.max_positions + config.position_offset, config.table_width),
        "embeddings/token_types/embedding": (config.num_token_types, config.table_width),
        "layers/mlp/down/kernel": (config.hidden_size, config.intermediate_size),
    }
    for row in family.encoder:
        size = sizes.get(row.ours[0])
        if size is None or 0 in size:  # without token types there is no table of them
            continue
        name = family.prefix + row.theirs[0].format(layer=family.layer(config, 0))
        if name not in shapes:
            raise UserError(f"{folder}: tensors do not fit {family.model_type}: missing {name}; get the folder again")
        if shapes[name] != size:
            raise _other_shapes(folder, [f"{name} {shapes[name]} instead of {size}"])


def _other_shapes(folder: Path, wrong: list[str]) -> UserError:
    return UserError(
        f"{folder}: tensors of other shapes than {CONFIG} says: {listed(wrong)}; correct it or get both again"
    )


def _check_tensors(found: Found, folder: Path) -> None:
    """Raises UserError naming the tensors that are missing, unknown or of other shapes."""
    shapes = found.tensors.shapes
    expected = dict.fromkeys(expected_names(found.family, found.model, found.fresh))
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected and name not in found.family.duplicates]
    if missing or unknown:
        told = [f"{what} {listed(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise UserError(
            f"{folder}: tensors do not fit {found.family.model_type}: {'; '.join(told)}; get the folder again"
        )
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), found.model.abstract)
    there = tuple(name for name in found.heads if name not in found.fresh)
    wrong = []
    bare = ((found.family.prefix + name, array) for name, array in exported(found.model, zeros, found.family, ()))
    with_heads = exported(found.model, zeros, found.family, there) if there else ()
    for name, array in dict(chain(bare, with_heads)).items():
        if shapes[name] != array.shape:
            wrong.append(f"{name} {shapes[name]} instead of {array.shape}")
    if wrong:
        raise _other_shapes(folder, wrong)


def _check_duplicates(found: Found) -> None:
    for duplicate, original in found.family.duplicates.items():
        if duplicate not in found.tensors.shapes or original not in found.tensors.shapes:
            continue
        if not np.array_equal(found.tensors.read(duplicate), found.tensors.read(original)):
            raise UserError(f"tensor {duplicate} differs from {original}: untied weights are not supported")
