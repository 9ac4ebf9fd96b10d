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
from bert_jax.objectives.base import BaseOptions, Batch, HostBatch, Loss, Vocabulary


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
    masks_tokens = True
    modules: ClassVar = {"mlm": MaskedLMHead}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        self.options = options
        self.vocabulary = vocabulary
        self.is_special = np.zeros(vocabulary.vocab_size, bool)
        self.is_special[vocabulary.special_ids] = True
        # A number of 64 random bits is below it with probability mlm_probability.
        self._threshold = np.uint64(options.mlm_probability * 2.0**64)

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Adds mlm_positions, mlm_labels (int32 [B, P]) and mlm_weights (float32 [B, P]; 0 where there is no prediction)."""
        options, ids = self.options, batch["input_ids"]
        most = max_predictions(ids.shape[1], options)
        rows, columns = np.divmod(np.flatnonzero(self._chosen(ids, batch["attention_mask"], most, keys)), ids.shape[1])
        labels = ids[rows, columns]

        draws = random_numbers.uniform(random_numbers.fold_in(keys, "draw")[rows], columns)
        token_keys = random_numbers.fold_in(keys, "random token")[rows]
        random_ids = random_numbers.integers(token_keys, columns, self.vocabulary.vocab_size)
        replaced = np.where(draws < options.mask_replace_prob, self.vocabulary.mask_id, labels)
        is_random = (draws >= options.mask_replace_prob) & (
            draws < options.mask_replace_prob + options.random_replace_prob
        )
        corrupted = ids.copy()
        corrupted[rows, columns] = np.where(is_random, random_ids, replaced)

        slots = rows, _numbers_in_rows(rows, len(ids))
        positions, padded_labels = np.zeros((2, len(ids), most), np.int32)
        weights = np.zeros((len(ids), most), np.float32)
        positions[slots], padded_labels[slots], weights[slots] = columns, labels, 1
        predictions = {"mlm_positions": positions, "mlm_labels": padded_labels, "mlm_weights": weights}
        return batch | {"input_ids": corrupted} | predictions

    def _chosen(self, ids: np.ndarray, attention_mask: np.ndarray, most: int, keys: np.ndarray) -> np.ndarray:
        """Returns the positions to predict, bool [B, L]: those whose random numbers are the smallest of their row.

        Where each position is drawn independently, those below `mlm_probability` are; they are the smallest, too.
        """
        is_maskable = ~self.is_special.take(ids) & (attention_mask != 0)
        ranks = random_numbers.bits(keys[:, None], np.arange(ids.shape[1]))
        budgets = np.maximum(1, np.round(self.options.mlm_probability * attention_mask.sum(axis=1))).astype(np.int64)
        if self.options.whole_word_mask:
            return self._chosen_words(ids, is_maskable, ranks, budgets, most)
        ranks[~is_maskable] = np.iinfo(ranks.dtype).max
        # `most` is the budget of a full row (see `max_predictions`), so no row has more.
        if not self.options.exact_count:
            budgets = np.clip((ranks < self._threshold).sum(axis=1), 1, most)
        smallest = np.sort(np.partition(ranks, most - 1, axis=1)[:, :most], axis=1)
        return (ranks <= np.take_along_axis(smallest, budgets[:, None] - 1, axis=1)) & is_maskable

    def _chosen_words(
        self, ids: np.ndarray, is_maskable: np.ndarray, ranks: np.ndarray, budgets: np.ndarray, most: int
    ) -> np.ndarray:
        """Returns what `_chosen` does, by whole words, which have the random number of their first piece.

        Shapes: W words of the longest row.
        """
        num_rows, length = ids.shape
        budgets = budgets if self.options.exact_count else np.full_like(budgets, most)
        # A word starts where the vocabulary says so, and after every gap (a special token).
        after_gap = ~np.pad(is_maskable, ((0, 0), (1, 0)))[:, :-1]
        is_start = is_maskable & (self.vocabulary.word_starts.take(ids) | after_gap)
        pieces = np.flatnonzero(is_maskable)
        starts, sizes = _words(is_start, pieces)
        smallest = np.full(num_rows, length)
        np.minimum.at(smallest, starts // length, sizes)
        if (is_too_long := smallest > budgets).any():  # a text without spaces, or a very long word: single pieces
            starts, sizes = _words(np.where(is_too_long[:, None], is_maskable, is_start), pieces)

        rows = starts // length
        words = rows, _numbers_in_rows(rows, num_rows)
        shape = num_rows, int(words[1].max(initial=-1)) + 1
        ranks_BxW, sizes_BxW = np.full(shape, np.iinfo(ranks.dtype).max), np.zeros(shape, np.int64)
        ranks_BxW[words], sizes_BxW[words] = ranks.ravel()[starts], sizes
        chosen = np.zeros(ids.shape, bool)
        chosen.ravel()[pieces] = np.repeat(self._within(budgets, sizes_BxW, ranks_BxW)[words], sizes)
        return chosen

    def _within(self, budgets: np.ndarray, sizes_BxW: np.ndarray, ranks_BxW: np.ndarray) -> np.ndarray:
        """Returns the words to take, bool [B, W]: in the order of their ranks; one that would exceed the budget is skipped.

        Source: google-research/bert create_pretraining_data.py.
        """
        order_BxW = np.argsort(ranks_BxW, axis=1)
        in_order = (np.take_along_axis(array, order_BxW, axis=1).T.copy() for array in (sizes_BxW, ranks_BxW))
        is_taken_WxB, taken = np.zeros(sizes_BxW.T.shape, bool), np.zeros_like(budgets)
        for sizes, ranks, is_taken in zip(*in_order, is_taken_WxB, strict=True):  # [B], the next word of each row
            np.less_equal(taken + sizes, budgets, out=is_taken)
            if not self.options.exact_count:  # those drawn, or the first that fits if none of them does
                is_taken &= (ranks < self._threshold) | (taken == 0)
            taken += sizes * is_taken
            if (taken == budgets).all():
                break
        result = np.zeros(sizes_BxW.shape, bool)
        np.put_along_axis(result, order_BxW, is_taken_WxB.T, axis=1)
        return result

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


def _words(is_start: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where words start, and how many of the sorted `pieces` each has; all are places in the flattened batch."""
    firsts = np.flatnonzero(is_start.ravel()[pieces])
    return pieces[firsts], np.diff(firsts, append=len(pieces))


def _numbers_in_rows(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns the number of each element within its row, from 0; `rows` holds the row of each element, sorted."""
    return np.arange(len(rows)) - np.searchsorted(rows, np.arange(num_rows))[rows]


def max_predictions(length: int, options: Options) -> int:
    """Returns the most predictions of a row of `length` positions: the exact count, or five deviations above the mean."""
    if options.exact_count:
        return max(1, round(options.mlm_probability * length))
    deviation = (length * options.mlm_probability * (1 - options.mlm_probability)) ** 0.5
    return min(length, int(np.ceil(options.mlm_probability * length + 5 * deviation)))
