"""Reads and writes models in Hugging Face's format: config.json and tensors <-> EncoderConfig, heads and parameters.

All that depends on the family is in families.py.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from bert_jax.errors import UserError, listed
from bert_jax.files import as_form
from bert_jax.formats.families import FAMILIES, HEADS
from bert_jax.formats.huggingface_config import (
    CONFIG,
    REMEDY,
    Form,
    class_has_pooler,
    encoder_config,
    label_names,
    pooler_name,
    problem_of,
    read_huggingface_config,
)
from bert_jax.formats.rows import Family, Row, is_unused, layer_names, rows_of
from bert_jax.formats.tensors import Tensors
from bert_jax.model.build import Model, Params
from bert_jax.model.config import EncoderConfig

MOST_CLASSES = 1 << 16  # of a randomly initialised head
_OLD_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}  # before 2020


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """Contents of a folder: the config, and the names and shapes of the tensors."""

    family: Family
    config: dict[str, Any]  # config.json
    model: Model
    heads: dict[str, int]  # name: number of classes, 0 for heads with a fixed number
    fresh: tuple[str, ...]  # heads without tensors in the folder, which start from random weights
    tensors: Tensors

    @property
    def problem(self) -> str:
        """Problem type of the classification head. Raises UserError as `problem_of`."""
        return problem_of(self.config, self.heads["classification"])

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits; empty if no head has classes. Raises UserError as `label_names`."""
        num_classes = max(self.heads.values(), default=0)
        return label_names(self.config, num_classes) if num_classes else []


def inspect(
    folder: str | Path,
    fresh_heads: tuple[str, ...] = (),
    config: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
) -> ModelFolder:
    """Reads the config of a folder and the names and shapes of its tensors.

    Args:
      folder: with config.json and model.safetensors (or several files and their index).
      fresh_heads: heads to add if the folder does not hold them.
      config: the contents of config.json, if they are not in the folder.
      tensors: by their names in Hugging Face's format, if the folder has them in another format.

    Raises:
      UserError: no config, an unsupported family or option, or unknown or missing tensors, or tensors of other shapes.
    """
    folder = Path(folder)
    config = config or read_huggingface_config(folder)
    as_form(config, Form, folder / CONFIG, REMEDY)
    family = FAMILIES.get(str(config.get("model_type")))
    if "task" in config:
        raise UserError(f"{folder}: a run folder of bert_jax, not a model in Hugging Face's format; export it first")
    if family is None:
        raise UserError(f"{folder}: model_type {config.get('model_type')!r} is not one of {', '.join(FAMILIES)}")
    tensors = tensors or Tensors.open(folder)
    if empty := [name for name, shape in tensors.shapes.items() if 0 in shape]:
        raise UserError(f"{folder}: empty tensors: {listed(empty)}; {REMEDY}")
    _rename(tensors, family)
    has_pooler = f"{family.prefix}{pooler_name(family)}" in tensors.shapes
    encoder = dataclasses.replace(encoder_config(family, config, str(folder)), pooler=has_pooler)
    _check_sizes(family, encoder, tensors.shapes, folder)
    heads = stored_heads(family, config, tensors.shapes)
    fresh = tuple(name for name in fresh_heads if name not in heads)
    num_labels = len(config.get("id2label") or {0: "", 1: ""})
    if num_labels > MOST_CLASSES:
        raise UserError(
            f"{folder}: id2label in {CONFIG} names {num_labels:,} classes, more than {MOST_CLASSES:,}; name fewer"
        )
    heads |= {name: num_labels if HEADS[name].has_classes else 0 for name in fresh}
    if not encoder.pooler and (pooled := {"nsp", "sop"}.intersection(fresh)):
        raise UserError(f"{folder}: has no pooler, which the head {pooled.pop()} needs; leave it out of --heads")
    model = Model.build(encoder, {name: HEADS[name].factory(classes) for name, classes in heads.items()})
    _check_tensors(family, model, fresh, tensors.shapes, folder)
    return ModelFolder(family, config, model, heads, fresh, tensors)


def load_params(source: ModelFolder, shardings: Any = None, seed: int = 0) -> Params:
    """Loads the parameters, one array at a time onto its devices; heads that are not stored are initialised.

    Args:
      source: as returned by `inspect`.
      shardings: a tree like the parameters; None for the first device.
      seed: of the initialised heads.

    Raises:
      UserError: a tensor is not finite, or tied weights differ.
    """
    _check_duplicates(source)
    abstract = traverse_util.flatten_dict(source.model.abstract, sep="/")
    placed = traverse_util.flatten_dict(shardings, sep="/") if shardings is not None else {}
    params = {}
    for row in rows_of(source.family, source.model, source.fresh):
        for path, array in zip(row.paths, _row_params(row, source, abstract), strict=True):
            array = array.astype(abstract[path].dtype, copy=False)
            sharding = placed.get(path)
            params[path] = (
                jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
                if sharding
                else jax.device_put(array).block_until_ready()  # at most one array is in memory twice
            )
    if source.fresh:
        initial = traverse_util.flatten_dict(source.model.init(jax.random.key(seed)), sep="/")
        params |= {path: array for path, array in initial.items() if path.split("/")[1] in source.fresh}
    return traverse_util.unflatten_dict(params, sep="/")


def exported_tensors(
    model: Model, params: Params, family: Family, heads: tuple[str, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name in Hugging Face's format, float32 array) for the tensors of the encoder and of `heads`, one at a time."""
    prefix = "" if heads else family.prefix  # classes without a head name their tensors without it
    for row in rows_of(family, model, tuple(set(model.heads) - set(heads))):
        if not row.paths[0].startswith("encoder/pooler/") or class_has_pooler(model.config, heads):
            for name, array in _row_tensors(row, family, model, params):
                yield name.removeprefix(prefix), array


def exported_shapes(model: Model, family: Family, heads: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of what `exported_tensors` yields."""
    return {name: array.shape for name, array in exported_tensors(model, _zeros(model), family, heads)}


def _row_tensors(row: Row, family: Family, model: Model, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (full name, float32 array) for the tensors of a row."""
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = [np.asarray(jax.device_get(flat[path]), np.float32) for path in row.paths]
    if not row.of_layers:
        yield from zip(row.names, row.to_tensors(arrays, model.config), strict=True)
        return
    for number in range(len(arrays[0])):
        if not is_unused(model.config, row, number):
            names = layer_names(family, model.config, row, number)
            yield from zip(names, row.to_tensors([array[number] for array in arrays], model.config), strict=True)


def _zeros(model: Model) -> Params:
    """Returns parameters that have shapes and take no memory."""
    return jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), model.abstract)


def stored_heads(family: Family, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the heads whose tensors are stored, with their numbers of classes.

    Different heads may use the same tensor names; then the one of config.json's `architectures` is meant.
    """
    classes = (config.get("architectures") or [""])[:1]
    declared = family.architectures.get(classes[0], ())
    heads, taken = dict[str, int](), set[str]()
    for name in sorted(family.heads, key=lambda name: name not in declared):  # the declared ones first
        weights = [tensor for row in family.heads[name] for tensor in row.names]
        needed = [tensor for tensor in weights if tensor.endswith(".weight")] or weights
        if taken.isdisjoint(weights) and all(tensor in shapes for tensor in needed):
            taken.update(weights)
            output = needed[-1]  # weights [classes, ...]
            heads[name] = max(shapes[output][:1], default=1) if HEADS[name].has_classes else 0
    return heads


def _row_params(row: Row, source: ModelFolder, abstract: dict[str, jax.ShapeDtypeStruct]) -> list[np.ndarray]:
    """Reads the parameters of a row; stacked if they are those of the layers."""
    config, read = source.model.config, source.tensors.read
    if not row.of_layers:
        return row.to_params([read(name) for name in row.names], config)
    stacked = [np.empty(abstract[path].shape, np.float32) for path in row.paths]
    for number in range(len(stacked[0])):
        if is_unused(config, row, number):
            parts = [np.ones(array.shape[1:], np.float32) for array in stacked]
        else:
            parts = row.to_params([read(name) for name in layer_names(source.family, config, row, number)], config)
        for array, part in zip(stacked, parts, strict=True):
            array[number] = part
    return stacked


def _rename(tensors: Tensors, family: Family) -> None:
    """Renames tensors as in a model with a head: those of a bare encoder have no prefix.

    A tied weight that is stored only under its duplicate's name gets that of the original.
    """
    is_bare = not any(name.startswith(family.prefix) for name in tensors.shapes)
    of_heads = {name for rows in family.heads.values() for row in rows for name in row.names}

    def full_name(name: str) -> str:
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
        return family.prefix + name if is_bare and name not in of_heads else name

    tensors.rename(full_name)
    stored = tensors.shapes.keys()

    def original_name(name: str) -> str:
        original = family.duplicates.get(name, name)
        return name if original in stored else original

    tensors.rename(original_name)


def _check_sizes(family: Family, config: EncoderConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Raises UserError if tensors that show the sizes of an encoder are missing or contradict config.json.

    This comes before arrays of these sizes are allocated; `_check_tensors` then compares all tensors.
    """
    sizes = {
        "embeddings/tokens/embedding": (config.vocab_size, config.table_width),
        "embeddings/positions/embedding": (config.max_positions + config.position_offset, config.table_width),
        "embeddings/token_types/embedding": (config.num_token_types, config.table_width),
        "layers/mlp/down/kernel": (config.hidden_size, config.intermediate_size),
    }
    for row in family.encoder:
        size = sizes.get(row.paths[0])
        if size is None or 0 in size:  # no token types, no table
            continue
        name = family.prefix + row.names[0].format(layer=family.layer(config, 0))
        if name not in shapes:
            raise UserError(f"{folder}: tensors do not fit {family.model_type}: missing {name}; {REMEDY}")
        _check_shapes({name: size}, shapes, folder)


def _check_shapes(expected: dict[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    wrong = [f"{name} {shapes[name]} instead of {shape}" for name, shape in expected.items() if shapes[name] != shape]
    if wrong:
        raise UserError(
            f"{folder}: tensors with other shapes than in {CONFIG}: {listed(wrong)}; correct it or get both again"
        )


def _check_tensors(
    family: Family, model: Model, fresh: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Raises UserError if tensors are missing, unknown or of other shapes."""
    zeros = _zeros(model)
    expected = {
        name: array.shape
        for row in rows_of(family, model, fresh)
        for name, array in _row_tensors(row, family, model, zeros)
    }
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected and name not in family.duplicates]
    if missing or unknown:
        problems = [f"{what} {listed(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise UserError(f"{folder}: tensors do not fit {family.model_type}: {'; '.join(problems)}; {REMEDY}")
    _check_shapes(expected, shapes, folder)


def _check_duplicates(source: ModelFolder) -> None:
    for duplicate, original in source.family.duplicates.items():
        both_stored = source.tensors.shapes.keys() >= {duplicate, original}
        if both_stored and not np.array_equal(source.tensors.read(duplicate), source.tensors.read(original)):
            raise UserError(f"tensor {duplicate} differs from {original}: untied weights are not supported")
