"""Frozen features: what an encoder says of a task's examples, to be computed once and used by any model.

Shapes: N examples or words, R rows, L length, K examples in a row, D hidden_size.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from bert_jax.model.build import Model, Params
from bert_jax.model.heads import means_over_examples
from bert_jax.tasks.finetuning.packing import Item
from bert_jax.tasks.finetuning.task import FineTuning


def features(task: FineTuning, model: Model, params: Params, items: Sequence[Item], layer: int = -1) -> np.ndarray:
    """One vector [N, D], float32, for each example, the mean over its tokens; for words for each of them, its first piece.

    Args:
      task: on texts or words.
      model: with the encoder, whose tokenizer is the task's.
      params: of the model.
      items: of the task.
      layer: whose hidden states; 0 are the embeddings, -1 the last.
    """
    of_words = "token_weights" in items[0].tokens
    found = task.over_rows(partial(_states, model, layer, of_words), params, items)
    if not of_words:
        return np.stack([output["states"] for output in found])
    pairs = zip(items, found, strict=True)
    return np.concatenate([output["token_states"][item.tokens["token_weights"] > 0] for item, output in pairs])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _states(model: Model, layer: int, of_words: bool, params: Params, batch: dict[str, Any]) -> dict[str, jax.Array]:
    batch = {name: array[0] for name, array in batch.items()}
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    encoder = model.bind(params).encoder
    layout = {"position_ids_BxL": batch["position_ids"], "segment_ids_BxL": batch["segment_ids"]}
    hidden_states = encoder(*inputs, **layout, all_hidden_states=True).hidden_states
    assert hidden_states is not None
    states_RxLxD = hidden_states[layer].astype("float32")
    if of_words:
        return {"token_states": states_RxLxD}
    return {"states": means_over_examples(states_RxLxD, batch["segment_ids"], batch["starts"].shape[1])}
