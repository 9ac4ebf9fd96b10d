"""Sentence-order prediction (Lan et al. 2020, ALBERT, section 3.1): are two consecutive segments in their order or swapped?"""

import dataclasses

import jax
import numpy as np
from flax import nnx

from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import PooledClassifier
from bert_jax.objectives.base import BaseOptions, Batch, Example, Loss, Segments, Vocabulary, classification_loss


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    swapped_share: float = 0.5  # of the pairs


class Objective:
    makes_pairs = True

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

    def corrupt(self, example: Example, rng: np.random.Generator) -> Example:
        return example

    def head(self, config: EncoderConfig, rngs: nnx.Rngs) -> nnx.Module:
        return PooledClassifier(config, num_classes=2, rngs=rngs)

    def weight(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> None:
        """It reads the pooled state."""

    def loss(self, model, output, batch: Batch, key) -> Loss:
        logits_Bx2 = model.heads["sop"](output.pooled)
        return classification_loss(logits_Bx2, batch["sop_labels"], batch["example_weights"])
