"""Masked language modelling (Devlin et al. 2019, section 3.1), with masks drawn on the fly (Liu et al. 2019, section 4.1).

Shapes: B batch, L length, P predictions (the most that an example of length L can have), D hidden_size, V vocabulary.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from bert_jax import random_numbers
from bert_jax.model.heads import MaskedLMHead
from bert_jax.objectives import base
from bert_jax.objectives.base import Batch, HostBatch, Loss, Vocabulary
from bert_jax.objectives.masking import Masking, MaskingOptions, max_predictions, numbers_in_rows

RANDOM_FROM = ("vocabulary", "text")


@dataclasses.dataclass(frozen=True)
class Options(MaskingOptions):
    mask_replace_prob: float = 0.8  # of the tokens predicted, the share replaced by [MASK] ...
    random_replace_prob: float = 0.1  # ... and by a random token; the rest stay
    random_from: str = "vocabulary"  # random tokens are any of it; 'text': any that stand for text (fairseq)
    standard_evaluation: bool = False  # held-out text is masked by the defaults of all these, so that runs compare

    def __post_init__(self):
        super().__post_init__()
        shares = self.mask_replace_prob, self.random_replace_prob
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise ValueError(
                f"mask_replace_prob={shares[0]} and random_replace_prob={shares[1]} must be at least 0, with a sum of at most 1"
            )
        if self.random_from not in RANDOM_FROM:
            raise ValueError(f"random_from={self.random_from!r} is not one of {', '.join(RANDOM_FROM)}")


class Objective(base.Objective):
    masks_tokens = True
    modules: ClassVar = {"mlm": MaskedLMHead}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        self.options = options
        self.vocabulary = vocabulary
        self.masking = Masking(options, vocabulary)
        self._text_ids = np.delete(np.arange(vocabulary.vocab_size), vocabulary.special_ids)

    def shares(self, progress: float) -> tuple[float, float]:
        rate = float(self.options.rate(progress))
        return rate, rate

    def for_evaluation(self) -> "Objective":
        if not self.options.standard_evaluation:
            return self
        return Objective(Options(weight=self.options.weight), self.vocabulary)

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Adds mlm_positions, mlm_labels (int32 [B, P]) and mlm_weights (float32 [B, P]; 0 where there is no prediction)."""
        options, ids = self.options, batch["input_ids"]
        most = max_predictions(ids.shape[1], options)
        rows, columns = np.divmod(np.flatnonzero(self.masking.chosen(batch, keys)), ids.shape[1])
        labels = ids[rows, columns]

        draws = random_numbers.uniform(random_numbers.fold_in(keys, "draw")[rows], columns)
        token_keys = random_numbers.fold_in(keys, "random token")[rows]
        if options.random_from == "text":
            random_ids = self._text_ids[random_numbers.integers(token_keys, columns, len(self._text_ids))]
        else:
            random_ids = random_numbers.integers(token_keys, columns, self.vocabulary.vocab_size)
        replaced = np.where(draws < options.mask_replace_prob, self.vocabulary.mask_id, labels)
        is_random = (draws >= options.mask_replace_prob) & (
            draws < options.mask_replace_prob + options.random_replace_prob
        )
        corrupted = ids.copy()
        corrupted[rows, columns] = np.where(is_random, random_ids, replaced)

        slots = rows, numbers_in_rows(rows, len(ids))
        positions, padded_labels = np.zeros((2, len(ids), most), np.int32)
        weights = np.zeros((len(ids), most), np.float32)
        positions[slots], padded_labels[slots], weights[slots] = columns, labels, 1
        predictions = {"mlm_positions": positions, "mlm_labels": padded_labels, "mlm_weights": weights}
        return batch | {"input_ids": corrupted} | predictions

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["mlm_weights"].sum()

    def positions(self, batch: Batch) -> jax.Array:
        return batch["mlm_positions"]

    def loss(self, models, output, batch: Batch, keys_B) -> Loss:
        """Cross-entropy over the masked positions alone."""
        table_VxE = models.encoder.embeddings.tokens.embedding[...]
        losses, correct = models.heads["mlm"].cross_entropy(output.last_hidden_state, table_VxE, batch["mlm_labels"])
        weights = batch["mlm_weights"]
        return Loss((losses * weights).sum(), {"accuracy": (correct * weights).sum()})
