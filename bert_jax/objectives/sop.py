"""Sentence-order prediction (Lan et al. 2020, ALBERT, section 3.1): whether two consecutive segments are swapped."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import numpy as np

from bert_jax import random_numbers
from bert_jax.model.heads import PooledClassifier
from bert_jax.objectives import base
from bert_jax.objectives.base import (
    BaseOptions,
    Batch,
    HostBatch,
    Loss,
    SecondSegments,
    Vocabulary,
    classification_loss,
)


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    swapped_share: float = 0.5  # of the pairs


class Objective(base.Objective):
    makes_pairs = True
    modules: ClassVar = {"sop": partial(PooledClassifier, num_classes=2)}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        self.options = options

    def second_segments(self, has_next: np.ndarray, keys: np.ndarray) -> SecondSegments:
        is_swapped = random_numbers.uniform(keys, 0) < self.options.swapped_share
        return SecondSegments(np.zeros_like(has_next), is_swapped)

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Adds sop_labels, int32 [B]: 0 for segments in their order, 1 for swapped ones."""
        return batch | {"sop_labels": batch["is_swapped"].astype(np.int32)}

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> None:
        """Returns None: the loss reads the pooled state."""

    def loss(self, models, output, batch: Batch, key) -> Loss:
        logits_Bx2 = models.heads["sop"](output.pooled)
        return classification_loss(logits_Bx2, batch["sop_labels"], batch["example_weights"])
