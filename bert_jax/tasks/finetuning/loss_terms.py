"""The losses of fine-tuning, over rows of several examples: of texts, of words, and of spans that answer questions.

Shapes: R rows, L length, K examples in a row, C outputs.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from bert_jax.model.build import ModuleFactory
from bert_jax.model.classifiers import SequenceClassifier, TokenClassifier, positions_read, sequence_state
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives.base import BaseOptions, Batch, DeviceObjective, Loss

PROBLEMS = ("classification", "multi_label", "regression")


@dataclasses.dataclass(frozen=True)
class Classification(DeviceObjective):
    """Cross-entropy of one class, binary cross-entropy of several labels, or squared error of a number."""

    model: EncoderConfig
    problem: str
    num_outputs: int
    dropout: float
    class_weights: tuple[float, ...] = ()  # weight of each class in the mean loss; empty for equal weights
    options: BaseOptions = BaseOptions()

    @property
    def modules(self) -> dict[str, ModuleFactory]:
        return {"classification": partial(SequenceClassifier, num_classes=self.num_outputs, dropout=self.dropout)}

    def normalizer(self, batch: Batch) -> jax.Array:
        return self._weights_RxK(batch).sum()

    def positions(self, batch: Batch) -> jax.Array | None:
        return positions_read(self.model, batch["input_ids"].shape[-1], batch["starts"])

    def loss(self, models, output, batch: Batch, keys_B) -> Loss:
        state_RxKxD = sequence_state(self.model, output, batch["segment_ids"], batch["starts"])
        logits_RxKxC = models.heads["classification"](state_RxKxD, keys_B)
        losses_RxK = self._losses(logits_RxKxC, batch["labels"])
        return Loss((losses_RxK * self._weights_RxK(batch)).sum(), {}, {"logits": logits_RxKxC})

    def _losses(self, logits_RxKxC: jax.Array, labels: jax.Array) -> jax.Array:
        if self.problem == "classification":
            return optax.softmax_cross_entropy_with_integer_labels(logits_RxKxC, labels)
        if self.problem == "multi_label":
            return optax.sigmoid_binary_cross_entropy(logits_RxKxC, labels).mean(-1)
        return jnp.square(logits_RxKxC[..., 0] - labels)

    def _weights_RxK(self, batch: Batch) -> jax.Array:
        if not self.class_weights:
            return batch["example_weights"]
        return batch["example_weights"] * jnp.asarray(self.class_weights)[batch["labels"]]


@dataclasses.dataclass(frozen=True)
class TokenLabels(DeviceObjective):
    """Cross-entropy of the label of each word's first piece."""

    num_labels: int
    dropout: float
    options: BaseOptions = BaseOptions()

    @property
    def modules(self) -> dict[str, ModuleFactory]:
        return {"token": partial(TokenClassifier, num_classes=self.num_labels, dropout=self.dropout)}

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["token_weights"].sum()

    def positions(self, batch: Batch) -> Literal["all"]:
        return "all"

    def loss(self, models, output, batch: Batch, keys_B) -> Loss:
        logits_RxLxC = models.heads["token"](output.last_hidden_state, keys_B)
        losses_RxL = optax.softmax_cross_entropy_with_integer_labels(logits_RxLxC, batch["token_labels"])
        return Loss((losses_RxL * batch["token_weights"]).sum(), {}, {"token_logits": logits_RxLxC})


@dataclasses.dataclass(frozen=True)
class Span(DeviceObjective):
    """Cross-entropy of the first and of the last token of the answer, over the tokens of the window."""

    dropout: float
    options: BaseOptions = BaseOptions()

    @property
    def modules(self) -> dict[str, ModuleFactory]:
        return {"qa": partial(TokenClassifier, num_classes=2, dropout=self.dropout)}

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> Literal["all"]:
        return "all"

    def loss(self, models, output, batch: Batch, keys_B) -> Loss:
        logits_RxLx2 = models.heads["qa"](output.last_hidden_state, keys_B)
        numbers_K = jnp.arange(1, batch["starts"].shape[1] + 1)
        is_own_RxKxL = batch["segment_ids"][:, None] == numbers_K[None, :, None]
        own_RxKxLx2 = jnp.where(is_own_RxKxL[..., None], logits_RxLx2[:, None], -1e9)
        log_RxKxLx2 = jax.nn.log_softmax(own_RxKxLx2, axis=2)
        gold_RxKx2 = batch["starts"][..., None] + batch["spans"]
        chosen_RxKx2 = jnp.take_along_axis(log_RxKxLx2, gold_RxKx2[:, :, None], axis=2)[:, :, 0]
        losses_RxK = -chosen_RxKx2.mean(-1)
        return Loss((losses_RxK * batch["example_weights"]).sum(), {}, {"token_logits": logits_RxLx2})
