"""Gives a model rows for new tokens: in the table of embeddings, and in whatever else has one for each token."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from bert_jax.data.tokenizer.extending import Pieces
from bert_jax.errors import UserError
from bert_jax.library import LoadedEncoder
from bert_jax.model.build import Model, Params
from bert_jax.run_folder.checkpoints import flat_shapes

MULTIPLE = 128  # rows of a table: products with it fill the matrix units and divide over devices


def num_rows(before: int, num_tokens: int) -> int:
    """Returns the rows of a table for so many tokens: as many as before, or the next multiple of 128."""
    return before if num_tokens <= before else -(-num_tokens // MULTIPLE) * MULTIPLE


def with_rows(model: Model, params: Params, words: Sequence[Pieces], first_id: int) -> tuple[Model, Params]:
    """Returns model and parameters with rows for new tokens: the mean of those of their pieces (float32).

    These are the rows from `first_id` on, of padding until now or new. Other new rows, of padding, are the mean of the rows of
    all tokens, so that their logits are those of an average token.

    Args:
      model: with `first_id` tokens or more rows.
      params: of the model.
      words: ids of the pieces of each new token.
      first_id: of the new tokens.

    Raises:
      UserError: a head has arrays that depend on the vocabulary in another way.
    """
    size = num_rows(model.config.vocab_size, first_id + len(words))
    longer = Model.build(dataclasses.replace(model.config, vocab_size=size), model.heads)
    axes = traverse_util.flatten_dict(model.axes)
    flat = dict[tuple[str, ...], Any]()
    for path, array in traverse_util.flatten_dict(params).items():
        has_rows = "vocab" in axes[path]
        flat[path] = (
            extended(np.asarray(array), axes[path].index("vocab"), size, words, first_id) if has_rows else array
        )
    result = traverse_util.unflatten_dict(flat)
    shapes, expected = flat_shapes(result), flat_shapes(longer.abstract)
    if wrong := [path for path in expected if shapes.get(path) != expected[path]]:
        raise UserError(
            f"{wrong[0]}: its shape {shapes.get(wrong[0])} does not follow the vocabulary by an axis 'vocab'"
        )
    return longer, result


def extended(array: np.ndarray, axis: int, size: int, words: Sequence[Pieces], first_id: int) -> np.ndarray:
    """Returns an array with `size` rows along `axis` (see `with_rows`)."""
    rows = np.moveaxis(array, axis, 0)
    longer = np.empty((size, *rows.shape[1:]), array.dtype)
    longer[: len(rows)] = rows
    longer[len(rows) :] = rows[:first_id].mean(0, dtype=np.float32)
    for number, pieces in enumerate(words, first_id):
        longer[number] = rows[list(pieces)].mean(0, dtype=np.float32)
    return np.moveaxis(longer, 0, axis)


def without_new_tokens(encoder: LoadedEncoder, outputs: dict[str, np.ndarray], first_id: int) -> dict[str, np.ndarray]:
    """Returns outputs of an encoder without the logits of tokens from `first_id` on."""
    size = encoder.model.config.vocab_size
    return {name: array[..., :first_id] if array.shape[-1] == size else array for name, array in outputs.items()}
