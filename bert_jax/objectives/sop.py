"""Sentence-order prediction (Lan et al. 2020, ALBERT, section 3.1): whether two consecutive segments are swapped."""

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
    swapped_share: float = 0.5  # of the pairs

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.swapped_share <= 1.0:
            raise ValueError(f"swapped_share={self.swapped_share} must be from 0 to 1")


class Objective(PairObjective):
    name = "sop"
    modules: ClassVar = {"sop": partial(PooledClassifier, num_classes=2)}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        self.options = options

    def second_segments(self, has_next: np.ndarray, keys: np.ndarray) -> SecondSegments:
        is_swapped = random_numbers.uniform(keys, 0) < self.options.swapped_share
        return SecondSegments(np.zeros_like(has_next), is_swapped)

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Adds sop_labels, int32 [B]: 0 for segments in their order, 1 for swapped ones."""
        return batch | {"sop_labels": batch["is_swapped"].astype(np.int32)}
