"""Next-sentence prediction (Devlin et al. 2019, section 3.1): does the second segment follow the first in its document?"""

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
    nsp_probability: float = 0.5  # of the pairs; those whose document ends with the first segment are random too


class Objective(base.Objective):
    makes_pairs = True
    modules: ClassVar = {"nsp": partial(PooledClassifier, num_classes=2)}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        self.options = options

    def pair(self, segments: Segments, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Example]:
        """Label 0: the second segment is the next; 1: it is text of another document (google-research/bert)."""
        other = np.zeros(0, np.int32)
        if len(segments.b) == 0 or rng.random() < self.options.nsp_probability:
            other = segments.from_another_document(rng)  # empty in a corpus of one document
        is_random = len(other) > 0
        return segments.a, other if is_random else segments.b, {"nsp_labels": np.int32(is_random)}

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> None:
        """It reads the pooled state."""

    def loss(self, models, output, batch: Batch, key) -> Loss:
        logits_Bx2 = models.heads["nsp"](output.pooled)
        return classification_loss(logits_Bx2, batch["nsp_labels"], batch["example_weights"])
