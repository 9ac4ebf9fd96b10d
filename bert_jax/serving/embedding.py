"""Vectors of texts from the encoder of any run: the mean of the last hidden states of a text's tokens.

Shapes: R rows, L length, K texts in a row, D hidden_size.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.model.build import Model, Params
from bert_jax.model.classifiers import means_over_examples
from bert_jax.tasks.common.packing import Item, joined
from bert_jax.tasks.common.prediction import InputError, Prediction, Prepared


@dataclasses.dataclass(frozen=True)
class Embedding(Prediction):
    """Computes {'vector': float32 [D]} for each {'text'}.

    An optional 'cut' says what is cut off a long text: its 'right' end, which is the default, its 'left' end, or, for 'error',
    nothing.
    """

    model: Model
    tokenizer: Tokenizer
    length: int

    @property
    def row_length(self) -> int:
        return self.length

    def prepare(self, inputs: list[dict[str, Any]]) -> Prepared:
        space = self.length - self.tokenizer.num_special_tokens(1)
        items = []
        for number, ids in enumerate(self.tokenizer.encode([values["text"] for values in inputs])):
            cut = inputs[number].get("cut", "right")
            if cut == "error" and len(ids) > space:
                problem = f"text of {len(ids)} tokens: the model reads {space}"
                raise InputError(f"{problem}; shorten it, or allow truncate", number, "text")
            kept = ids[max(0, len(ids) - space) :] if cut == "left" else ids[:space]
            items.append(Item(joined(self.tokenizer, kept), {}))
        return Prepared(items, lambda outputs: [{"vector": output["vectors"]} for output in outputs])

    def compute(self, params: Params, batch: Any) -> dict[str, jax.Array]:
        return _vectors(self.model, params, batch)


def similarities(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the cosine of each pair of vectors [N, D] and [M, D]: [N, M]; 0 for a vector of zeros."""
    first, second = (
        array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12) for array in (vectors, others)
    )
    return np.clip(first @ second.T, -1.0, 1.0)


@partial(jax.jit, static_argnums=0)
def _vectors(model: Model, params: Params, batch: Any) -> dict[str, jax.Array]:
    batch = {name: array[0] for name, array in batch.items()}
    output = model.bind(params).encoder(
        batch["input_ids"],
        token_type_ids_BxL=batch["token_type_ids"],
        segment_ids_BxL=batch["segment_ids"],
        position_ids_BxL=batch["position_ids"],
        starts_BxK=batch["starts"],
    )
    states_RxLxD = output.last_hidden_state.astype(jnp.float32)
    return {"vectors": means_over_examples(states_RxLxD, batch["segment_ids"], batch["starts"].shape[1])}
