"""Sentence-order prediction (Lan et al. 2020, ALBERT, section 3.1): are two consecutive segments in their order or swapped?"""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import numpy as np

from bert_jax.model.heads import PooledClassifier
from bert_jax.objectives import base
from bert_jax.objectives.base import BaseOptions, Batch, Example, Loss, Segments, Vocabulary, classification_loss


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    swapped_share: float = 0.5  # of the pairs


class Objective(base.Objective):
    makes_pairs = True
    modules: ClassVar = {"sop": partial(PooledClassifier, num_classes=2)}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        self.options = options

    def pair(self, segments: Segments, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Example]:
        """Label 0: in order; 1: swapped. A lone segment is cut in its middle to have two."""
        a, b = segments.a, segments.b
        if len(b) == 0:
            a, b = a[: (len(a) + 1) // 2], a[(len(a) + 1) // 2 :]
        is_swapped = len(b) > 0 and rng.random() < self.options.swapped_share
        if is_swapped:
            a, b = b, a
        return a, b, {"sop_labels": np.int32(is_swapped)}

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> None:
        """It reads the pooled state."""

    def loss(self, models, output, batch: Batch, key) -> Loss:
        logits_Bx2 = models.heads["sop"](output.pooled)
        return classification_loss(logits_Bx2, batch["sop_labels"], batch["example_weights"])
