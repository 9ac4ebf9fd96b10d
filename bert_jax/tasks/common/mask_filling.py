"""Prediction with a pretrained encoder: the likeliest tokens for each [MASK] of a text, or those among given ones.

Shapes: R rows, L length, K texts in a row, P masks in a row, N tokens returned for a mask, T targets, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.model.build import Model, Params
from bert_jax.model.layers import take_positions
from bert_jax.objectives.base import Batch
from bert_jax.tasks.common.packing import Item, Output, joined
from bert_jax.tasks.common.prediction import Answer, InputError, Prepared

TOP_K = 5  # tokens returned for each mask by default
MOST_TOKENS = 50  # returned for a mask, and targets of a text
FEW_MASKS = 8  # in a row; for rows with more there is a second program


def prepare_masks(tokenizer: Tokenizer, length: int, inputs: Sequence[dict[str, Any]]) -> Prepared:
    """Tokenizes texts with masks, each with optional 'targets' (a list of texts) and 'top_k'.

    An answer is {'masks': [[{'token', 'id', 'probability'}] for each mask]}, with the `top_k` likeliest tokens or, for an
    input with targets, with these alone, the likeliest first.

    Raises:
      InputError: a text has no mask, or one beyond the first `length` tokens; a target is not a token.
    """
    masked = [_item(tokenizer, length, number, values) for number, values in enumerate(inputs)]

    def postprocess(outputs: list[Output]) -> list[Answer]:
        pairs = zip(inputs, masked, outputs, strict=True)
        return [{"masks": _fillings(tokenizer, values, item, output)} for values, item, output in pairs]

    return Prepared(masked, postprocess)


def fill_masks(model: Model, vocab_size: int, params: Params, batch: Batch) -> Output:
    """Returns `token_top_ids`, `token_top_probabilities` [R, L, N] and `token_target_probabilities` [R, L, T].

    They are 0 except at masks. `batch` has rows [1, R, ...] of items of `prepare_masks`. Rows of the model's table beyond
    `vocab_size` only pad it.
    """
    num_masks = int(np.asarray(batch["masks"]).sum(axis=-1).max())
    num_positions = min(FEW_MASKS if num_masks <= FEW_MASKS else batch["masks"].shape[-1], batch["masks"].shape[-1])
    return _filled(model, vocab_size, num_positions, params, batch)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _filled(model: Model, vocab_size: int, num_positions: int, params: Params, batch: Batch) -> dict[str, jax.Array]:
    batch = {name: array[0] for name, array in batch.items()}
    positions_RxP = jnp.argsort(-batch["masks"], axis=1, stable=True)[:, :num_positions]  # of the masks first
    bound = model.bind(params)
    states_RxPxD = bound.encoder(
        batch["input_ids"],
        token_type_ids_BxL=batch["token_type_ids"],
        segment_ids_BxL=batch["segment_ids"],
        position_ids_BxL=batch["position_ids"],
        starts_BxK=batch["starts"],
        positions_BxP=positions_RxP,
    ).last_hidden_state
    numbers_RxP = jnp.maximum(jnp.take_along_axis(batch["segment_ids"], positions_RxP, axis=1) - 1, 0)
    targets_RxPxT = take_positions(batch["targets"], numbers_RxP)

    def of_row(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        states_PxD, targets_PxT = row
        logits_PxV = bound.heads["mlm"](states_PxD[None], bound.encoder.embeddings.tokens.embedding[...])[0]
        probabilities_PxV = jax.nn.softmax(logits_PxV[:, :vocab_size])
        top_PxN, ids_PxN = jax.lax.top_k(probabilities_PxV, min(MOST_TOKENS, vocab_size))
        return ids_PxN, top_PxN, jnp.take_along_axis(probabilities_PxV, targets_PxT, axis=1)

    outputs = jax.lax.map(of_row, (states_RxPxD, targets_RxPxT))  # one by one: [R, P, V] may not fit
    num_rows, length = batch["masks"].shape
    rows_Rx1 = jnp.arange(num_rows)[:, None]
    names = ("token_top_ids", "token_top_probabilities", "token_target_probabilities")
    return {
        name: jnp.zeros((num_rows, length, array.shape[-1]), array.dtype).at[rows_Rx1, positions_RxP].set(array)
        for name, array in zip(names, outputs, strict=True)
    }


def _item(tokenizer: Tokenizer, length: int, number: int, values: dict[str, Any]) -> Item:
    text, size = values["text"], length - tokenizer.num_special_tokens(1)
    ids = tokenizer.encode_with_masks(text)
    positions = np.flatnonzero(ids == tokenizer.mask_id)
    mask = tokenizer.tokens([tokenizer.mask_id])[0]
    if not len(positions):
        raise InputError(f"{text[:80]!r}: contains no {mask}; put one where a word is missing", number, "text")
    if positions[-1] >= size:
        problem = f"{text[:80]!r}: a {mask} is beyond the first {size} tokens"
        raise InputError(f"{problem}; shorten the text", number, "text")
    tokens = joined(tokenizer, ids[:size])
    targets = np.zeros(MOST_TOKENS, np.int32)
    target_ids = _target_ids(tokenizer, number, values.get("targets") or [])
    targets[: len(target_ids)] = target_ids
    is_mask = (tokens["input_ids"] == tokenizer.mask_id).astype(np.int32)
    return Item(tokens | {"masks": is_mask}, {"targets": targets})


def _target_ids(tokenizer: Tokenizer, number: int, targets: Sequence[str]) -> list[int]:
    """Returns the id of each target of an input: of a word, or of a piece of one as it is written in the vocabulary (`##s`).

    A word in the middle of a text is a token with a sign of the space before it in some vocabularies, hence the first try.
    """
    if len(targets) > MOST_TOKENS:
        raise InputError(f"targets: {len(targets)} of them; give at most {MOST_TOKENS}", number, "targets")
    target_ids = []
    for target in targets:
        tried = [tokenizer.encode([written])[0] for written in (f" {target}", target)]
        whole = [int(ids[0]) for ids in tried if len(ids) == 1 and ids[0] != tokenizer.unk_id]
        if not whole and (known := tokenizer.token_id(target)) is not None:
            whole = [known]
        if not whole:
            pieces = " ".join(tokenizer.tokens(tried[0]))
            problem = f"targets: {target[:80]!r} is not a token of the vocabulary ({pieces[:200]})"
            raise InputError(f"{problem}; leave it out", number, "targets")
        target_ids.append(whole[0])
    return target_ids


def _fillings(tokenizer: Tokenizer, values: dict[str, Any], item: Item, output: Output) -> list[list[Answer]]:
    """Returns the tokens for each mask of a text, the likeliest first."""
    targets = values.get("targets") or []
    count = min(values.get("top_k") or (len(targets) if targets else TOP_K), MOST_TOKENS)
    fillings = []
    for position in np.flatnonzero(item.tokens["masks"]):
        ids, probabilities = (output[f"token_top_{name}"][position] for name in ("ids", "probabilities"))
        if targets:
            probabilities = output["token_target_probabilities"][position][: len(targets)]
            order = np.argsort(-probabilities, kind="stable")
            ids, probabilities = item.values["targets"][order], probabilities[order]
        rows = zip(tokenizer.tokens(ids[:count]), ids.tolist(), probabilities.tolist(), strict=False)
        fillings.append([{"token": token, "id": number, "probability": share} for token, number, share in rows])
    return fillings
