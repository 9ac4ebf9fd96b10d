"""Prediction with a pretrained encoder: the likeliest tokens for each [MASK] of a text.

Shapes: B texts, L length, P masks, K tokens per mask, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from bert_jax.data import joining
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.build import Model, Params
from bert_jax.objectives.base import Batch

TOP_K = 5  # tokens returned for each mask


def fill_masks(
    model: Model, tokenizer: Tokenizer, length: int, params: Params, texts: list[str]
) -> list[dict[str, Any]]:
    """Returns {'masks': [[{'token', 'probability'} x TOP_K] for each mask]} for each text.

    Raises:
      UserError: a text has no mask, or one beyond the first `length` tokens, or the model has no MLM head.
    """
    if "mlm" not in model.heads:
        raise UserError("this run was not pretrained with the objective mlm, so it cannot fill masks")
    # Numbers of texts and masks are padded to powers of two, so that there are few programs to compile.
    padded = [*texts, *texts[-1:] * (_power_of_two(len(texts)) - len(texts))]
    rows, positions = zip(*(_with_masks(tokenizer, length, text) for text in padded), strict=True)
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    num_positions = _power_of_two(max(map(len, positions)))
    positions_BxP = np.stack([np.resize(row, num_positions) for row in positions])
    ids_BxPxK, probabilities_BxPxK = jax.device_get(
        _top_tokens(model, tokenizer.vocab_size, params, batch, positions_BxP)
    )

    def fillings(ids_K: np.ndarray, probabilities_K: np.ndarray) -> list[dict[str, Any]]:
        pairs = zip(tokenizer.tokens(ids_K), probabilities_K.tolist(), strict=True)
        return [{"token": token, "probability": probability} for token, probability in pairs]

    return [
        {"masks": [fillings(ids_BxPxK[row, mask], probabilities_BxPxK[row, mask]) for mask in range(len(masks))]}
        for row, masks in enumerate(positions[: len(texts)])
    ]


def _power_of_two(number: int) -> int:
    """Returns the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def _with_masks(tokenizer: Tokenizer, length: int, text: str) -> tuple[joining.Example, np.ndarray]:
    """Returns the arrays of a text, and the positions of its masks."""
    size = length - tokenizer.num_special_tokens(1)
    ids = tokenizer.encode_with_masks(text)
    positions = np.flatnonzero(ids == tokenizer.mask_id)
    mask = tokenizer.tokens([tokenizer.mask_id])[0]
    if not len(positions):
        raise UserError(f"{text[:80]!r}: contains no {mask}; put one where a word is missing")
    if positions[-1] >= size:
        raise UserError(f"{text[:80]!r}: a {mask} is beyond the first {size} tokens; shorten the text")
    return joining.join(tokenizer, length, ids[:size]), positions + 1  # after [CLS]


@partial(jax.jit, static_argnums=(0, 1))
def _top_tokens(
    model: Model, vocab_size: int, params: Params, batch: Batch, positions_BxP: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns ids and probabilities [B, P, K] of the likeliest tokens at the positions."""
    bound = model.bind(params)
    output = bound.encoder(
        batch["input_ids"],
        token_type_ids_BxL=batch["token_type_ids"],
        lengths_B=batch["attention_mask"].sum(axis=1),
        positions_BxP=positions_BxP,
    )

    def row(hidden_PxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_PxV = bound.heads["mlm"](hidden_PxD[None], bound.encoder.embeddings.tokens.embedding[...])[0]
        # Rows of the table beyond the tokenizer's vocabulary only pad it.
        probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits_PxV[:, :vocab_size]), TOP_K)
        return ids, probabilities

    return jax.lax.map(row, output.last_hidden_state)  # one by one: [B, P, V] may not fit
