"""What a pretrained run predicts: the likeliest tokens for each [MASK] of a text.

Shapes: B texts, L length, P masks, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from bert_jax.data import joining
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.build import Model, Params
from bert_jax.objectives.base import Batch

TOP_K = 5  # fillings of a mask that are returned


@dataclasses.dataclass(frozen=True)
class MaskFilling:
    """Fills [MASK]s: see tasks/base.py, `Answers`."""

    model: Model
    tokenizer: Tokenizer
    length: int  # of a text, in tokens

    input_fields = ("text",)

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns {'masks': [[{'token', 'probability'} x TOP_K] for each mask]} for each text.

        Raises:
          UserError: a text without a mask, or with one beyond the length, or the run has no MLM head.
        """
        if "mlm" not in self.model.heads:
            raise UserError("this run was not pretrained with the objective mlm, so it cannot fill masks")
        # As many as the next power of two, so that there are few programs to compile.
        padded = inputs + inputs[-1:] * ((1 << (len(inputs) - 1).bit_length()) - len(inputs))
        rows, positions = zip(*(self._with_masks(values["text"]) for values in padded), strict=True)
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        most = 1 << (max(map(len, positions)) - 1).bit_length()  # few widths, few compilations
        positions_BxP = np.stack([np.resize(row, most) for row in positions])
        top = _top_tokens(self.model, self.tokenizer.vocab_size, params, batch, positions_BxP)
        answers = []
        for masks, ids_PxK, probabilities_PxK in zip(positions, *jax.device_get(top), strict=True):
            pairs = [
                zip(self.tokenizer.tokens(ids_PxK[i]), probabilities_PxK[i], strict=True) for i in range(len(masks))
            ]
            answers.append({"masks": [[{"token": t, "probability": float(p)} for t, p in pair] for pair in pairs]})
        return answers[: len(inputs)]

    def _with_masks(self, text: str) -> tuple[joining.Example, np.ndarray]:
        """Returns a text as an example, and the positions of its masks."""
        length, mask_id = self.length, self.tokenizer.mask_id
        room = length - self.tokenizer.num_special_tokens(1)
        ids = self.tokenizer.encode_with_masks(text)
        masks = np.flatnonzero(ids == mask_id)
        mask = self.tokenizer.tokens([mask_id])[0]
        if not len(masks):
            raise UserError(f"{text[:80]!r}: no {mask} in it; put one where a word is to be")
        if masks[-1] >= room:
            raise UserError(f"{text[:80]!r}: a {mask} beyond the first {room} tokens; shorten the text")
        return joining.join(self.tokenizer, length, ids[:room]), masks + 1  # after [CLS]


@partial(jax.jit, static_argnums=(0, 1))
def _top_tokens(
    model: Model, vocab_size: int, params: Params, batch: Batch, positions_BxP: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Ids and probabilities [B, P, TOP_K] of the likeliest tokens at some positions."""
    bound = model.bind(params)
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    output = bound.encoder(*inputs, positions_BxP=positions_BxP)

    def row(hidden_PxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_PxV = bound.heads["mlm"](hidden_PxD[None], bound.encoder.embeddings.tokens.embedding[...])[0]
        # Rows of the table beyond the tokenizer's vocabulary are there for the hardware only.
        probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits_PxV[:, :vocab_size]), TOP_K)
        return ids, probabilities

    return jax.lax.map(row, output.last_hidden_state)  # one by one: [B, P, V] may not fit
