"""Frozen features: hidden states of an encoder for a task's examples, as inputs of other models.

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
from bert_jax.tasks.finetuning.tagging import words_only
from bert_jax.tasks.finetuning.task import FineTuning


def features(task: FineTuning, model: Model, params: Params, items: Sequence[Item], layer: int = -1) -> np.ndarray:
    """Returns a vector for each word (of its first piece) or, for tasks on texts, for each text (the mean over its tokens).

    The result is float32 [N, D], from the hidden states of a layer: 0 for the embeddings, -1 for the last.
    """
    is_words = "token_weights" in items[0].tokens
    outputs = task.apply(partial(_states, model, layer, is_words), params, items)
    if not is_words:
        return np.stack([output["states"] for output in outputs])
    return words_only(items, outputs, "token_states")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _states(model: Model, layer: int, is_words: bool, params: Params, batch: dict[str, Any]) -> dict[str, jax.Array]:
    batch = {name: array[0] for name, array in batch.items()}
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    encoder = model.bind(params).encoder
    layout = {"position_ids_BxL": batch["position_ids"], "segment_ids_BxL": batch["segment_ids"]}
    hidden_states = encoder(*inputs, **layout, all_hidden_states=True).hidden_states
    assert hidden_states is not None
    states_RxLxD = hidden_states[layer].astype("float32")
    if is_words:
        return {"token_states": states_RxLxD}
    return {"states": means_over_examples(states_RxLxD, batch["segment_ids"], batch["starts"].shape[1])}
