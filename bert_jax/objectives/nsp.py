"""Next-sentence prediction (Devlin et al. 2019, section 3.1): whether the second segment follows the first."""

import dataclasses
from functools import partial
from typing import ClassVar

import numpy as np

from bert_jax import random_numbers
from bert_jax.model.heads import PooledClassifier
from bert_jax.objectives.base import BaseOptions, HostBatch, Vocabulary
from bert_jax.objectives.pairs import PairObjective, SecondSegments


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    nsp_probability: float = 0.5  # of the pairs; those whose document ends with the first segment are random too

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.nsp_probability <= 1.0:
            raise ValueError(f"nsp_probability={self.nsp_probability} must be from 0 to 1")


class Objective(PairObjective):
    name = "nsp"
    modules: ClassVar = {"nsp": partial(PooledClassifier, num_classes=2)}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        self.options = options

    def second_segments(self, has_next: np.ndarray, keys: np.ndarray) -> SecondSegments:
        is_random = random_numbers.uniform(keys, 0) < self.options.nsp_probability
        return SecondSegments(is_random | ~has_next, np.zeros_like(has_next))

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Adds nsp_labels, int32 [B]: 0 if the second segment is the next text, 1 if it is of another document."""
        return batch | {"nsp_labels": batch["is_other_document"].astype(np.int32)}
