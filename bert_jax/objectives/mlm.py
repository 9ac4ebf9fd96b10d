"""Masked language modelling (Devlin et al. 2019, section 3.1), with masks drawn on the fly (Liu et al. 2019, section 4.1).

Shapes: B batch, L length, P predictions (the most that an example of length L can have), D hidden_size, V vocabulary.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.model.heads import MaskedLMHead
from bert_jax.objectives import base
from bert_jax.objectives.base import BaseOptions, Batch, Example, Loss, Vocabulary


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    mlm_probability: float = 0.15  # share of the tokens predicted, special tokens counted in (as in the original)
    mask_replace_prob: float = 0.8  # of those, the share replaced by [MASK] ...
    random_replace_prob: float = 0.1  # ... and by a random token of the whole vocabulary; the rest stay
    whole_word_mask: bool = False  # predict all pieces of a word; single pieces if no word is short enough
    # Predict round(mlm_probability * length) tokens; else each token (or word) independently with that probability. Always at
    # least one.
    exact_count: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not (
            0.0 < self.mlm_probability < 1.0
            and self.mask_replace_prob >= 0.0
            and self.random_replace_prob >= 0.0
            and self.mask_replace_prob + self.random_replace_prob <= 1.0
        ):
            raise ValueError(
                "mlm_probability must be above 0 and below 1, mask_replace_prob and random_replace_prob at least 0 with a sum "
                "of at most 1"
            )


class Objective(base.Objective):
    makes_pairs = False
    modules: ClassVar = {"mlm": MaskedLMHead}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        self.options = options
        self.vocabulary = vocabulary
        self.is_special = np.zeros(vocabulary.vocab_size, bool)
        self.is_special[vocabulary.special_ids] = True

    def corrupt(self, example: Example, rng: np.random.Generator) -> Example:
        """Adds mlm_positions, mlm_labels (int32 [P]) and mlm_weights (float32 [P]; 0 where there is no prediction)."""
        options, vocabulary = self.options, self.vocabulary
        ids = example["input_ids"]
        num_tokens = int(example["attention_mask"].sum())
        maskable = np.flatnonzero(~self.is_special[ids[:num_tokens]])
        chosen = self._choose(ids, maskable, num_tokens, rng)

        draw = rng.random(len(chosen))
        replaced = np.where(draw < options.mask_replace_prob, vocabulary.mask_id, ids[chosen])
        random_ids = rng.integers(vocabulary.vocab_size, size=len(chosen))
        replaced = np.where(
            (draw >= options.mask_replace_prob) & (draw < options.mask_replace_prob + options.random_replace_prob),
            random_ids,
            replaced,
        )
        corrupted = ids.copy()
        corrupted[chosen] = replaced

        padding = (0, max_predictions(len(ids), options) - len(chosen))
        return example | {
            "input_ids": corrupted,
            "mlm_positions": np.pad(chosen, padding).astype(np.int32),
            "mlm_labels": np.pad(ids[chosen], padding).astype(np.int32),
            "mlm_weights": np.pad(np.ones(len(chosen), np.float32), padding),
        }

    def _choose(self, ids: np.ndarray, maskable: np.ndarray, num_tokens: int, rng: np.random.Generator) -> np.ndarray:
        """The positions to predict, sorted, out of the sorted `maskable` ones."""
        # A word starts where the vocabulary says so, and after every gap (a special token).
        starts = np.ones(len(maskable), bool)
        if self.options.whole_word_mask:
            starts = self.vocabulary.word_starts[ids[maskable]] | (np.diff(maskable, prepend=-2) > 1)
        budget = max(1, round(self.options.mlm_probability * num_tokens))
        if not self.options.exact_count:
            budget = max_predictions(len(ids), self.options)
        word_of = np.cumsum(starts) - 1  # [maskable] -> word
        sizes = np.bincount(word_of)
        if len(sizes) and sizes.min() > budget:  # a text without spaces, or a very long word
            word_of, sizes = np.arange(len(maskable)), np.ones(len(maskable), int)
        candidates = rng.permutation(len(sizes))
        if not self.options.exact_count:
            drawn = rng.random(len(sizes)) < self.options.mlm_probability
            fits = sizes[candidates] <= budget
            candidates = candidates[drawn] if (drawn & fits).any() else candidates[fits][:1]
        # create_pretraining_data.py: words are taken in random order within the budget; one that would exceed it is skipped.
        taken, fitting = 0, []
        for word, size in zip(candidates, sizes[candidates], strict=True):
            if taken + size <= budget:
                fitting.append(word)
                taken += size
                if taken == budget:
                    break
        return maskable[np.isin(word_of, fitting)]

    def normalizer(self, batch: Batch) -> jax.Array:
        return batch["mlm_weights"].sum()

    def positions(self, batch: Batch) -> jax.Array:
        return batch["mlm_positions"]

    def loss(self, models, output, batch: Batch, key) -> Loss:
        """Cross-entropy over the masked positions alone."""
        logits_BxPxV = models.heads["mlm"](output.last_hidden_state, models.encoder.embeddings.tokens.embedding[...])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxPxV, batch["mlm_labels"])
        # Not by argmax, which costs as much as the product on CPU.
        label_logits_BxP = jnp.take_along_axis(logits_BxPxV, batch["mlm_labels"][:, :, None], axis=-1)[:, :, 0]
        correct = label_logits_BxP == logits_BxPxV.max(-1)
        weights = batch["mlm_weights"]
        return Loss((losses * weights).sum(), {"accuracy": (correct * weights).sum()})


def max_predictions(length: int, options: Options) -> int:
    """The most predictions in an example of `length` positions: all it can have by count, or five deviations by coins."""
    if options.exact_count:
        return max(1, round(options.mlm_probability * length))
    deviation = (length * options.mlm_probability * (1 - options.mlm_probability)) ** 0.5
    return min(length, int(np.ceil(options.mlm_probability * length + 5 * deviation)))
