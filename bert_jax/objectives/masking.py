"""The choice of the positions that masked language modelling predicts; each strategy is a value of an option.

'token' chooses single tokens. The others choose units of whole words: one word, an n-gram or a span. Each row takes units in
random order up to its budget of tokens. Shapes: B rows, L length, U words of the longest unit.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from bert_jax import random_numbers
from bert_jax.objectives.base import BaseOptions, HostBatch, Vocabulary
from bert_jax.random_numbers import fold_in

MASKINGS = ("token", "word", "ngram", "span")
COUNTS = ("round", "stochastic", "independent")
MOST_WORDS = 100  # of an n-gram or a span


@dataclasses.dataclass(frozen=True)
class MaskingOptions(BaseOptions):
    # 'token'; 'word': all pieces of a word; 'ngram': n words, with a probability proportional to 1/n (Lan et al. 2020, section
    # 4.1); 'span': a geometric number of words (Joshi et al. 2020, section 3.1).
    masking: str = "token"
    mlm_probability: float = 0.15  # share of the tokens predicted, special tokens counted in (as in the original)
    mlm_probability_end: float = 0.0  # the share at the end of the phase, to which it changes linearly; 0: constant
    # Predict round(mlm_probability * length) tokens; 'stochastic': int(mlm_probability * length + U), U uniform from 0 to 1
    # (fairseq); 'independent': each token (or word) independently with that probability. Always at least one.
    count: str = "round"
    max_predictions: int = 0  # most predictions of a row (max_predictions_per_seq of google-research/bert); 0: no limit
    max_ngram: int = 3  # words
    span_p: float = 0.2  # of the geometric distribution of lengths
    max_span: int = 10  # words; longer spans are drawn again
    mask_special: bool = False  # special tokens may be predicted, too, as <s> and </s> in fairseq

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (("masking", MASKINGS), ("count", COUNTS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")
        for name in ("mlm_probability", "span_p"):
            if not 0.0 < (value := getattr(self, name)) < 1.0:
                raise ValueError(f"{name}={value} must be above 0 and below 1")
        if not 0.0 <= self.mlm_probability_end < 1.0:
            raise ValueError(
                f"mlm_probability_end={self.mlm_probability_end} must be above 0 and below 1, or 0 for a constant rate"
            )
        if self.max_predictions < 0:
            raise ValueError(f"max_predictions={self.max_predictions} must be at least 1, or 0 for no limit")
        for name in ("max_ngram", "max_span"):
            if not 1 <= (value := getattr(self, name)) <= MOST_WORDS:
                raise ValueError(f"{name}={value} must be from 1 to {MOST_WORDS}")
        if self.count == "independent" and self.masking in ("ngram", "span"):
            raise ValueError(f"count='independent' is for tokens and words; masking={self.masking!r} has 'stochastic'")
        if self.mask_special and self.masking != "token":
            raise ValueError(f"mask_special is for masking='token', not {self.masking!r}")

    def rate(self, progress: np.ndarray | float) -> np.ndarray | float:
        """Returns the share of the tokens predicted at some progress of the phase, from 0 to 1."""
        end = self.mlm_probability_end or self.mlm_probability
        return self.mlm_probability + (end - self.mlm_probability) * progress

    @property
    def unit_lengths(self) -> np.ndarray:
        """Probabilities [U] of units of 1, 2, ... U words."""
        weights = {
            "ngram": 1.0 / np.arange(1, self.max_ngram + 1),
            # The paper clips lengths at 10 and states a mean of 3.8 words: that of the distribution which is cut off there and
            # normalized, as in facebookresearch/SpanBERT masking.py. min(length, 10) would have a mean of 4.5.
            "span": (1.0 - self.span_p) ** np.arange(self.max_span),
        }.get(self.masking, np.ones(1))
        return weights / weights.sum()


def max_predictions(length: int, options: MaskingOptions) -> int:
    """Returns the most predictions of a row of `length` positions: those of the larger rate, or five deviations above."""
    rate = max(options.mlm_probability, options.mlm_probability_end)
    if options.count == "independent":
        most = min(length, int(np.ceil(rate * length + 5 * (length * rate * (1 - rate)) ** 0.5)))
    else:
        most = max(1, round(rate * length) if options.count == "round" else int(np.ceil(rate * length)))
    return min(most, options.max_predictions or most)


class Masking:
    """Chooses the positions to predict, as a function of a row and its key alone."""

    def __init__(self, options: MaskingOptions, vocabulary: Vocabulary):
        self.options = options
        self.vocabulary = vocabulary
        self.is_special = np.zeros(vocabulary.vocab_size, bool)
        self.is_special[vocabulary.special_ids] = True
        self._length_bounds = np.cumsum(options.unit_lengths)

    def chosen(self, batch: HostBatch, keys: np.ndarray) -> np.ndarray:
        """Returns the positions to predict, bool [B, L]: tokens or words in the order of random numbers, up to the budget.

        Where each is drawn independently, those whose number (of 64 bits) is below `rates` are.
        """
        ids, attention_mask, options = batch["input_ids"], batch["attention_mask"], self.options
        most = max_predictions(ids.shape[1], options)
        rates = np.full(len(ids), options.rate(batch["progress"] if options.mlm_probability_end else 0.0))
        limits = (rates * 2.0**64).astype(np.uint64) if options.count == "independent" else None
        is_maskable = attention_mask != 0
        if not options.mask_special:
            is_maskable &= ~self.is_special.take(ids)
        ranks = random_numbers.bits(keys[:, None], np.arange(ids.shape[1]))
        budgets = self._budgets(rates * attention_mask.sum(axis=1), most, keys)
        if options.masking != "token":
            words = self._words(ids, is_maskable, budgets)
            return self._take_units(words, ranks, budgets, limits, fold_in(keys, "length"))
        ranks[~is_maskable] = np.iinfo(ranks.dtype).max
        if limits is not None:
            budgets = np.clip((ranks < limits[:, None]).sum(axis=1), 1, most)
        smallest = np.sort(np.partition(ranks, most - 1, axis=1)[:, :most], axis=1)
        return (ranks <= np.take_along_axis(smallest, budgets[:, None] - 1, axis=1)) & is_maskable

    def _budgets(self, means: np.ndarray, most: int, keys: np.ndarray) -> np.ndarray:
        """Returns how many tokens rows may predict, int64 [B], from their means [B]."""
        if self.options.count == "independent":
            return np.full(len(means), most)
        if self.options.count == "stochastic":
            counts = np.floor(means + random_numbers.uniform(fold_in(keys, "count"), 0))
        else:
            counts = np.round(means)
        return np.clip(counts, 1, most).astype(np.int64)

    def _words(self, ids: np.ndarray, is_maskable: np.ndarray, budgets: np.ndarray) -> "_Words":
        """Returns the words of rows; single pieces where no word fits into the budget, as in a text without spaces."""
        # A word starts where the vocabulary says so, and after every gap (a special token).
        after_gap = is_maskable.copy()
        after_gap[:, 1:] &= ~is_maskable[:, :-1]
        is_start = is_maskable & (self.vocabulary.word_starts.take(ids) | after_gap)
        words = _Words.of(is_start, after_gap, is_maskable)
        if (is_too_long := words.shortest() > budgets).any():
            words = _Words.of(np.where(is_too_long[:, None], is_maskable, is_start), after_gap, is_maskable)
        return words

    def _take_units(
        self, words: "_Words", ranks: np.ndarray, budgets: np.ndarray, limits: np.ndarray | None, keys: np.ndarray
    ) -> np.ndarray:
        """Returns the positions to predict, bool [B, L]: units in the order of their ranks [B, L], up to the budgets [B].

        A unit is shortened to the whole words that fit into the budget, and skipped if none does, or if one of them is taken
        already (google-research/bert and google-research/albert create_pretraining_data.py). With `limits`, a unit of a larger
        rank is taken only if no other was.
        """
        num_rows, length = ranks.shape
        ranks = np.where(words.is_start, ranks, np.iinfo(ranks.dtype).max)
        order = np.argsort(ranks, axis=1)[:, : words.counts.max(initial=0)]
        row_starts, bounds = np.arange(num_rows) * length, self._length_bounds
        is_taken = np.zeros(len(words.starts) + 1, bool)  # the last one is that of places before any word, number -1
        left = budgets.copy()
        for number, columns in enumerate(order.T):  # [B], the next word of each row
            places = row_starts + columns
            begins = words.numbers[places]
            fitting = words.whole[np.minimum(places + left, ranks.size)]
            ends = np.minimum(begins + self._lengths(words, begins, keys, columns), fitting)
            is_new = (ends > begins) & (number < words.counts)
            if limits is not None:
                is_drawn = (ranks.ravel()[places] < limits) | (left == budgets)
                if not is_drawn.any():
                    break
                is_new &= is_drawn
            units = begins + np.arange(len(bounds))[:, None]  # [U, B]
            is_inside = (units < ends) & is_new
            is_new &= ~(is_taken.take(units, mode="clip") & is_inside).any(axis=0)
            is_taken[units[is_inside & is_new]] = True
            left -= np.where(is_new, words.stops[ends - 1] - places, 0)
            if not left.any():
                break
        return is_taken[words.numbers].reshape(ranks.shape) & words.is_maskable

    def _lengths(self, words: "_Words", begins: np.ndarray, keys: np.ndarray, columns: np.ndarray) -> np.ndarray | int:
        """Returns of how many words [B] the units are that begin with some words [B], given what is left of the text.

        Source: google-research/albert create_pretraining_data.py, which normalizes the probabilities of what is left.
        """
        bounds = self._length_bounds
        if len(bounds) == 1:
            return 1
        left = np.minimum(words.text_ends[begins] - begins, len(bounds))
        return 1 + np.searchsorted(bounds, random_numbers.uniform(keys, columns) * bounds[left - 1], side="right")


class _Words(NamedTuple):
    """The N words of all rows, numbered through the batch; places are those of the flattened batch, M = B * L."""

    is_maskable: np.ndarray  # bool [B, L]
    is_start: np.ndarray  # bool [B, L]
    counts: np.ndarray  # words of each row [B]
    starts: np.ndarray  # places [N] of the first pieces
    stops: np.ndarray  # places [N] after the last pieces
    text_ends: np.ndarray  # [N], the first word beyond the next gap
    numbers: np.ndarray  # [M], the word that each place is in
    whole: np.ndarray  # [M + 1], how many words end at or before each place

    @classmethod
    def of(cls, is_start: np.ndarray, after_gap: np.ndarray, is_maskable: np.ndarray) -> "_Words":
        """Finds the words of rows from their first pieces, the first pieces after gaps and all pieces, bool [B, L]."""
        flat = is_start.ravel()
        starts = np.flatnonzero(flat)
        before_start = np.append(flat[1:] | ~is_maskable.ravel()[1:], True)
        stops = np.flatnonzero(is_maskable.ravel() & before_start) + 1
        firsts = np.flatnonzero(after_gap.ravel()[starts])
        sizes = np.diff(firsts, append=len(starts))
        text_ends = np.repeat(firsts + sizes, sizes)
        begun = np.cumsum(flat)
        whole = np.append(begun - is_maskable.ravel(), len(starts))
        return cls(is_maskable, is_start, is_start.sum(axis=1), starts, stops, text_ends, begun - 1, whole)

    def shortest(self) -> np.ndarray:
        """Returns how many pieces the shortest word of each row has, [B]; 0 where there is none."""
        result, has_words = np.zeros_like(self.counts), self.counts > 0
        if has_words.any():
            firsts = np.cumsum(self.counts) - self.counts
            result[has_words] = np.minimum.reduceat(self.stops - self.starts, firsts[has_words])
        return result


def numbers_in_rows(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns the number of each element within its row, from 0; `rows` holds the row of each element, sorted."""
    return np.arange(len(rows)) - np.searchsorted(rows, np.arange(num_rows))[rows]
