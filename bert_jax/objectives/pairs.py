"""What objectives on pairs of segments have in common: a label for each pair, predicted from the pooled state.

Shapes: B batch, C classes.
"""

from typing import NamedTuple

import jax
import numpy as np
import optax

from bert_jax.objectives import base
from bert_jax.objectives.base import Batch, Loss


class SecondSegments(NamedTuple):
    """What the second segments of pairs are to be, bool [B]; the next text of the document where neither is set."""

    is_other_document: np.ndarray  # text of another document
    is_swapped: np.ndarray  # the next text, with the first segment after it


class PairObjective(base.Objective):
    """Decides what the second segments are. `corrupt` adds the labels int32 [B] as NAME_labels, for the head `name`."""

    makes_pairs = True
    name: str

    def second_segments(self, has_next: np.ndarray, keys: np.ndarray) -> SecondSegments:
        """Returns what the second segments are to be.

        Args:
          has_next: bool [B], False where the document ends with the first segment, which is then cut in two if there is to be
            no other document.
          keys: uint64 [B], of the rows' random numbers (see random_numbers.py).
        """
        return SecondSegments(np.zeros_like(has_next), np.zeros_like(has_next))

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["example_weights"].sum()

    def positions(self, batch: Batch) -> None:
        """Returns None: the loss reads the pooled state."""

    def loss(self, models, output, batch: Batch, keys_B) -> Loss:
        logits_BxC = models.heads[self.name](output.pooled)
        labels_B, weights_B = batch[f"{self.name}_labels"], batch["example_weights"]
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, labels_B)
        correct_B = logits_BxC.argmax(-1) == labels_B
        return Loss((losses_B * weights_B).sum(), {"accuracy": (correct_B * weights_B).sum()})
