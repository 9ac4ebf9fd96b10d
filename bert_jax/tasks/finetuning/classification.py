"""The loss of a sequence classifier over rows of several examples: classes, several labels at once, or a number.

Shapes: R rows, L length, K examples in a row, C outputs.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.model.build import ModuleFactory
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import SequenceClassifier, positions_read, sequence_state
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

    def loss(self, models, output, batch: Batch, key) -> Loss:
        state_RxKxD = sequence_state(self.model, output, batch["segment_ids"], batch["starts"])
        logits_RxKxC = models.heads["classification"](state_RxKxD, key)
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


def balanced_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Returns N / (C * number of examples) for each class, as scikit-learn's class_weight='balanced'."""
    counts = np.bincount(labels, minlength=num_classes)
    return tuple((len(labels) / (num_classes * np.maximum(counts, 1))).tolist())
