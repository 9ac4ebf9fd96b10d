"""Which positions are predicted: the strategies against a loop over the words of a row, their counts and their statistics."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.objectives.masking import MaskingOptions, max_predictions
from bert_jax.objectives.mlm import Objective, Options
from bert_jax.random_numbers import bits, fold_in, row_keys, uniform
from tests.objectives.masked_rows import (
    CLS,
    PAD,
    SEP,
    VOCABULARY,
    batches,
    close,
    corrupt,
    example_of,
    keys_of,
    many,
    predicted,
    repeated,
    stacked,
)

COUNTS_OF_MASKING = [
    *((masking, count) for masking in ("token", "word") for count in ("round", "stochastic", "independent")),
    *((masking, count) for masking in ("ngram", "span") for count in ("round", "stochastic")),
]
options_strategy = st.builds(
    lambda strategy, **options: Options(masking=strategy[0], count=strategy[1], **options),
    strategy=st.sampled_from(COUNTS_OF_MASKING),
    mlm_probability=st.floats(0.01, 0.95),
    mlm_probability_end=st.just(0.0) | st.floats(0.01, 0.95),
    max_predictions=st.sampled_from([0, 0, 1, 5]),
    max_ngram=st.integers(1, 4),
    span_p=st.floats(0.05, 0.9),
    max_span=st.integers(1, 12),
    mask_replace_prob=st.floats(0.0, 0.8),
    random_replace_prob=st.floats(0.0, 0.2),
    random_from=st.sampled_from(["vocabulary", "text"]),
)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=200, deadline=None)
@given(batches(), options_strategy, seeds)
def test_corruption(batch, options, seed):
    original = {name: array.copy() for name, array in batch.items()}
    corrupted = corrupt(options, batch, seed)
    assert all(np.array_equal(batch[name], array) for name, array in original.items()), "the input was changed"
    assert np.array_equal(corrupted["attention_mask"], original["attention_mask"])
    most = max_predictions(original["input_ids"].shape[1], options)
    for name, dtype in (("mlm_positions", np.int32), ("mlm_labels", np.int32), ("mlm_weights", np.float32)):
        shape = len(original["input_ids"]), most
        assert corrupted[name].shape == shape and corrupted[name].dtype == dtype, f"{name}: every batch is alike"
    for row, chosen in enumerate(predicted(corrupted)):
        ids, attended = original["input_ids"][row], original["attention_mask"][row]
        assert not np.isin(ids[chosen], VOCABULARY.special_ids).any(), "a special token is to be predicted"
        assert (attended[chosen] == 1).all(), "padding is to be predicted"
        assert (np.diff(chosen) > 0).all(), "positions are not sorted, or one comes twice"
        assert corrupted["mlm_weights"][row].tolist() == [1.0] * len(chosen) + [0.0] * (most - len(chosen))
        labels = corrupted["mlm_labels"][row, : len(chosen)]
        assert np.array_equal(labels, ids[chosen]), "a label is not the original token"
        rest = np.delete(np.arange(len(ids)), chosen)
        assert np.array_equal(corrupted["input_ids"][row, rest], ids[rest]), "a token that is not predicted was changed"

        num_tokens = int(attended.sum())
        maskable = int((~np.isin(ids[:num_tokens], VOCABULARY.special_ids)).sum())
        assert bool(len(chosen)) == bool(maskable), "a row with text has a prediction"
        mean = options.rate(original["progress"][row]) * num_tokens
        lowest, highest = {
            "round": (round(mean), round(mean)),
            "stochastic": (int(mean), int(mean) + 1),
            "independent": (0, num_tokens),
        }[options.count]
        highest = min(max(1, highest), most)
        assert len(chosen) <= highest, f"{len(chosen)} predicted, more than {highest}"
        if options.masking == "token":
            assert len(chosen) >= min(lowest, most, maskable), f"{len(chosen)} predicted, less than {lowest}"


def words_of(ids: np.ndarray) -> list[list[int]]:
    """Positions of each word: pieces that follow one another, up to the next start or special token."""
    words: list[list[int]] = []
    open_word = False
    for position, token in enumerate(ids):
        if token in VOCABULARY.special_ids:
            open_word = False
            continue
        if VOCABULARY.word_starts[token] or not open_word:
            words.append([])
        words[-1].append(position)
        open_word = True
    return words


# ---------------------------------------------------------------------------------------------------------------------
# Units of words, against a loop
# ---------------------------------------------------------------------------------------------------------------------


def units_by_a_loop(options: Options, ids: np.ndarray, budget: int, key: np.ndarray) -> list[list[int]]:
    """The units of one row, as lists of positions: create_pretraining_data.py, one candidate after the other."""
    words = words_of(ids)
    if min(map(len, words), default=0) > budget:
        words = [[position] for word in words for position in word]
    ranks = bits(key, np.arange(len(ids)))
    threshold = options.mlm_probability * 2.0**64 if options.count == "independent" else 2.0**64
    taken, units = set[int](), list[list[int]]()
    for first in sorted(range(len(words)), key=lambda number: ranks[words[number][0]]):
        text = [words[first]]  # the words up to the next gap
        for word in words[first + 1 :]:
            if word[0] != text[-1][-1] + 1:
                break
            text.append(word)
        shares = options.unit_lengths[: len(text)]
        draw = uniform(fold_in(key, "length"), words[first][0]) * shares.sum()
        size = int((draw >= np.cumsum(shares)).sum()) + 1
        while size and len(taken) + sum(map(len, text[:size])) > budget:
            size -= 1
        positions = [position for word in text[:size] for position in word]
        if positions and taken.isdisjoint(positions) and (ranks[words[first][0]] < threshold or not taken):
            units.append(positions)
            taken.update(positions)
    return units


@settings(max_examples=200, deadline=None)
@given(batches(), options_strategy.filter(lambda options: options.masking != "token"), seeds)
def test_units_are_those_of_a_loop_over_candidates(batch, options, seed):
    options = dataclasses.replace(options, mlm_probability_end=0.0)
    keys = keys_of(batch, seed)
    places = predicted(Objective(options, VOCABULARY).corrupt(batch, keys))
    most = max_predictions(batch["input_ids"].shape[1], options)
    for row, ids in enumerate(batch["input_ids"]):
        mean = options.mlm_probability * int(batch["attention_mask"][row].sum())
        key = keys[row : row + 1]
        draw = uniform(fold_in(key, "count"), 0)[0] if options.count == "stochastic" else 0.0
        budget = int(mean + draw) if options.count == "stochastic" else round(mean)
        budget = most if options.count == "independent" else min(max(1, budget), most)
        units = units_by_a_loop(options, ids, budget, key)
        assert sorted(position for unit in units for position in unit) == places[row].tolist()
        assert all(np.diff(unit).tolist() == [1] * (len(unit) - 1) for unit in units), "a unit crosses a special token"


@settings(max_examples=100, deadline=None)
@given(batches(), options_strategy, seeds)
def test_a_row_does_not_depend_on_its_neighbours(batch, options, seed):
    objective, keys = Objective(options, VOCABULARY), keys_of(batch, seed)
    together = objective.corrupt(batch, keys)
    for row in range(len(keys)):
        alone = objective.corrupt({name: array[row:][:1] for name, array in batch.items()}, keys[row : row + 1])
        assert all(np.array_equal(together[name][row], alone[name][0]) for name in alone)


@settings(max_examples=200, deadline=None)
@given(batches(), st.floats(0.01, 0.95), st.sampled_from(COUNTS_OF_MASKING[3:]), seeds)
def test_whole_words_are_masked_wholly_or_not_at_all(batch, rate, strategy, seed):
    options = Options(mlm_probability=rate, masking=strategy[0], count=strategy[1])
    most = max_predictions(batch["input_ids"].shape[1], options)
    for row, places in enumerate(predicted(corrupt(options, batch, seed))):
        chosen, words = set(places.tolist()), words_of(batch["input_ids"][row])
        mean = rate * int(batch["attention_mask"][row].sum())
        budget = {"round": max(1, round(mean)), "stochastic": max(1, int(mean)), "independent": most}[options.count]
        assert bool(chosen) == bool(words), "a row with text has a prediction"
        if words and min(map(len, words)) > budget:  # pieces are chosen where no word fits
            continue
        for word in words:
            inside = [position in chosen for position in word]
            assert all(inside) or not any(inside), f"of the word at {word} the pieces {inside} are predicted"
            if strategy == ("word", "round") and not any(inside):
                assert len(chosen) + len(word) > budget, f"the word at {word} would have fitted"


@pytest.mark.parametrize("masking, count", COUNTS_OF_MASKING[3:])
def test_a_text_without_spaces_is_masked_by_pieces(masking, count):
    """As Chinese or Thai under byte-level BPE: one word of 126 pieces, of which 15% are to be predicted."""
    batch = repeated([CLS, *[7] * 126, SEP], 400)  # no 7 begins a word
    rows = predicted(corrupt(Options(masking=masking, count=count), batch))
    counts = np.array([len(row) for row in rows])
    if count == "independent":
        assert abs(counts.mean() - 0.15 * 126) < 5 * 4 / 20
    else:
        assert set(counts) == ({19} if count == "round" else {19, 20})  # of 0.15 * 128 = 19.2
    hits = np.bincount(np.concatenate(rows), minlength=128)[1:-1]
    inner = hits if masking == "word" else hits[10:-10]  # fewer of the longer units reach the ends
    assert abs(inner - inner.mean()).max() < 5.5 * inner.mean() ** 0.5, "every piece is as likely"


def test_words_that_fit_are_masked_where_others_are_too_long():
    # A word of 60 pieces, and one of two: 10 tokens may be predicted.
    for masking in ("word", "ngram", "span"):
        rows = predicted(corrupt(Options(masking=masking), repeated([CLS, *[7] * 60, 9, 10, SEP], 50)))
        assert all(row.tolist() == [61, 62] for row in rows)


@pytest.mark.parametrize("masking, count", COUNTS_OF_MASKING)
def test_a_text_of_one_token_has_one_prediction(masking, count):
    rows = predicted(corrupt(Options(masking=masking, count=count, mlm_probability=0.01), repeated([CLS, 7, SEP], 20)))
    assert all(row.tolist() == [1] for row in rows)


def test_a_row_of_one_long_word_does_not_change_its_neighbours():
    long, short = [CLS, *[7] * 62, SEP], [CLS, *[9, 10] * 31, SEP]
    both = repeated(short, 2)
    both["input_ids"][0] = long
    alone = {name: array[1:] for name, array in both.items()}
    objective, keys = Objective(Options(masking="word"), VOCABULARY), row_keys(0, np.arange(2))
    together, single = objective.corrupt(both, keys), objective.corrupt(alone, keys[1:])
    assert all(np.array_equal(together[name][1:], single[name]) for name in single)


def test_words_are_as_likely():
    """30 words of one, two and three pieces in turn, 14 tokens to predict: in random order within the budget."""
    ids = [CLS, *[9, 12, 13, 15, 16, 17] * 10, SEP]
    words = words_of(np.array(ids))
    assert [len(word) for word in words[:3]] == [1, 2, 3]
    rows = predicted(corrupt(Options(mlm_probability=0.22, masking="word"), repeated(ids, 6000)))
    hits = np.bincount(np.concatenate(rows), minlength=62)[[word[0] for word in words]].reshape(10, 3)
    for size in range(3):  # alike among words of the same size; long ones fit less often
        mean = hits[:, size].mean()
        assert np.abs(hits[:, size] - mean).max() < 5 * mean**0.5, hits
    assert hits[:, 0].mean() > hits[:, 1].mean() > hits[:, 2].mean()


def lengths_of_units(options: Options) -> np.ndarray:
    """Words of each unit in very long texts of one-piece words, of which so few are predicted that units hardly meet."""
    length, rows = 50_000, 32
    options = dataclasses.replace(options, mlm_probability=0.01)
    lengths = list[int]()
    for places in predicted(corrupt(options, repeated([CLS, *[9] * length, SEP], rows))):
        lengths += [len(unit) for unit in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)]
    return np.array(lengths)


def test_ngrams_have_the_published_lengths():
    """6/11, 3/11 and 2/11; two n-grams of 100 are next to another one and read as one, and the last of a row is cut."""
    lengths = lengths_of_units(Options(masking="ngram"))
    assert len(lengths) > 7000
    for words, expected in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)):
        deviation = (expected * (1 - expected) / len(lengths)) ** 0.5
        share = np.mean(lengths == words)
        assert abs(share - expected) < 0.015 + 4 * deviation, f"{share:.4f} of the n-grams have {words} words"


def test_spans_have_the_published_mean_length():
    """3.8 words (Joshi et al. 2020, section 3.1): 5 - 10 * 0.8^10 / (1 - 0.8^10) = 3.797."""
    options = Options(masking="span")
    assert options.unit_lengths @ np.arange(1, 11) == pytest.approx(5 - 10 * 0.8**10 / (1 - 0.8**10))
    lengths = lengths_of_units(options)
    assert len(lengths) > 3500
    assert abs(lengths.mean() - 3.797) < 0.06 + 4 * lengths.std() / len(lengths) ** 0.5, f"mean {lengths.mean():.3f}"
    one, two = np.mean(lengths == 1), np.mean(lengths == 2)
    assert abs(two / one - 0.8) < 0.12, "lengths are not geometric"


# ---------------------------------------------------------------------------------------------------------------------
# Counts
# ---------------------------------------------------------------------------------------------------------------------


def test_independent_draws_leave_no_text_without_a_prediction():
    """With two tokens at 15%, independent draws would leave 72% of the examples without any."""
    options = Options(count="independent")
    rows = [row.tolist() for row in predicted(corrupt(options, repeated([CLS, 6, 7, SEP], 2000)))]
    assert all(rows)
    close(np.mean([len(row) == 2 for row in rows]), 0.15**2, 2000, "both")
    close(np.mean([row == [1] for row in rows]), (1 - 0.15**2) / 2, 2000, "the first alone")


@pytest.mark.parametrize("masking", ["token", "word"])
def test_independent_draws_choose_the_rate_in_expectation(masking):
    _, _, counts = many(Options(count="independent", mlm_probability=0.3, masking=masking))
    spread = counts.std() / len(counts) ** 0.5
    assert counts.std() > 1, "draws give the same count each time"
    # Whole words may be cut off at the most that fits, so a little less is right.
    assert abs(counts.mean() - 0.3 * 128) < 5 * spread + 0.02 * 128 * (masking == "word"), f"{counts.mean():.2f}"


def test_stochastic_counts_have_the_exact_mean():
    """fairseq's int(0.15 * n + U): 19 or 20 of 130 tokens, 19.5 in the mean, where rounding gives 20 each time."""
    _, _, counts = many(Options(count="stochastic"), count=4000)
    assert set(counts) == {19, 20}
    close(np.mean(counts == 20), 0.5, 4000, "rows with 20 predictions")
    assert max_predictions(130, Options(count="stochastic")) == 20


def test_rates_change_linearly():
    progress = np.linspace(0, 1, 801)
    batch = repeated([CLS, *[9] * 198, SEP], 801) | {"progress": progress}
    options = Options(mlm_probability=0.3, mlm_probability_end=0.15)
    expected = 60 - 30 * progress
    corrupted = corrupt(options, batch)
    assert corrupted["mlm_positions"].shape == (801, 60), "slots are those of the larger rate"
    counts = corrupted["mlm_weights"].sum(axis=1)
    assert (np.abs(counts - expected) <= 0.5).all() and counts[0] == 60 and counts[-1] == 30
    rising = Options(mlm_probability=0.15, mlm_probability_end=0.3, count="independent")
    assert max_predictions(200, rising) == max_predictions(200, Options(mlm_probability=0.3, count="independent"))
    counts = np.array([len(places) for places in predicted(corrupt(rising, batch))])
    assert abs(counts.mean() - 0.225 * 198) < 5 * counts.std() / 801**0.5
    slope, start = np.polyfit(progress, counts, 1)
    assert abs(slope - 0.15 * 198) < 5 and abs(start - 0.15 * 198) < 2.5


@pytest.mark.parametrize("masking, count", COUNTS_OF_MASKING)
def test_no_row_has_more_than_max_predictions(masking, count):
    options = Options(masking=masking, count=count, max_predictions=7)
    assert max_predictions(64, options) == 7 and max_predictions(20, options) <= 7
    rows = predicted(corrupt(options, repeated([CLS, *[9, 12, 13] * 20, SEP], 200)))
    assert max(map(len, rows)) == 7


def test_every_position_is_as_likely():
    rng = np.random.default_rng(0)
    rows = predicted(corrupt(Options(), stacked([example_of(34, [20, 11], rng) for _ in range(4000)])))
    hits = np.bincount(np.concatenate(rows), minlength=34)
    assert hits[[0, 21, 33]].sum() == 0
    each = 4000 * 5 / 31
    assert np.abs(np.delete(hits, [0, 21, 33]) - each).max() < 5 * each**0.5, f"some places are preferred: {hits}"


def test_special_tokens_may_be_masked_as_in_fairseq():
    """Each of 20 tokens, the special ones too, with the same probability; padding never."""
    batch = repeated([CLS, *[9] * 10, SEP, *[9] * 7, SEP, PAD], 4000)
    batch["attention_mask"][:, -1] = 0
    rows = predicted(corrupt(Options(mask_special=True), batch))
    hits = np.bincount(np.concatenate(rows), minlength=21)
    each = 4000 * 3 / 20
    assert hits[-1] == 0 and np.abs(hits[:-1] - each).max() < 5 * each**0.5, hits


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"masking": "words"}, "masking='words' is not one of token, word, ngram, span"),
        ({"count": "exact"}, "count='exact' is not one of round, stochastic, independent"),
        ({"mlm_probability": 0.0}, "mlm_probability=0.0 must be above 0 and below 1"),
        ({"mlm_probability": 1.0}, "mlm_probability=1.0 must be above 0 and below 1"),
        ({"mlm_probability_end": -0.1}, "mlm_probability_end=-0.1 must be above 0 and below 1, or 0 for a constant"),
        ({"mlm_probability_end": 1.0}, "mlm_probability_end=1.0 must be above 0 and below 1, or 0 for a constant"),
        ({"span_p": 1.0}, "span_p=1.0 must be above 0 and below 1"),
        ({"max_ngram": 0}, "max_ngram=0 must be from 1 to 100"),
        ({"max_span": 10**9}, "max_span=1000000000 must be from 1 to 100"),
        ({"max_predictions": -1}, "max_predictions=-1 must be at least 1, or 0 for no limit"),
        ({"masking": "ngram", "count": "independent"}, "count='independent' is for tokens and words"),
        ({"masking": "span", "mask_special": True}, "mask_special is for masking='token', not 'span'"),
    ],
)
def test_options_that_cannot_be(bad, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        MaskingOptions(**bad)
