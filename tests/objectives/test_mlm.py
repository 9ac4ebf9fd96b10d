"""Masked language modelling: which tokens are chosen, what becomes of them, and the loss at the masked positions."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.objectives.losses import Losses
from bert_jax.objectives.mlm import Objective, Options, max_predictions
from bert_jax.random_numbers import row_keys

PAD, UNK, CLS, SEP, MASK, FIRST = range(6)


@dataclasses.dataclass(frozen=True)
class Words:
    """A vocabulary of 60 tokens, every third of which begins a word."""

    vocab_size: int = 60
    mask_id: int = MASK
    special_ids = np.array([PAD, UNK, CLS, SEP, MASK])
    word_starts = np.arange(60) % 3 == 0


VOCABULARY = Words()


def example_of(length: int, segments: list[int], rng: np.random.Generator) -> dict:
    """[CLS] a [SEP] (b [SEP]), padded."""
    ids = np.full(length, PAD, np.int32)
    ids[0], end = CLS, 1
    for size in segments:
        ids[end : end + size] = rng.integers(FIRST, VOCABULARY.vocab_size, size)
        ids[end + size] = SEP
        end += size + 1
    return {"input_ids": ids, "attention_mask": (np.arange(length) < end).astype(np.int32)}


def stacked(examples: list[dict]) -> dict:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def repeated(ids: list[int], count: int) -> dict:
    """A batch of rows that are alike."""
    input_ids = np.tile(np.array(ids, np.int32), (count, 1))
    return {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}


def corrupt(options: Options, batch: dict, seed: int = 0) -> dict:
    return Objective(options, VOCABULARY).corrupt(batch, row_keys(seed, np.arange(len(batch["input_ids"]))))


@st.composite
def batches(draw):
    length, rng = draw(st.integers(8, 64)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def example():
        a = draw(st.integers(0, length - 3))
        b = draw(st.none() | st.integers(0, length - 3 - a))
        return example_of(length, [a] if b is None else [a, b], rng)

    return stacked([example() for _ in range(draw(st.integers(1, 4)))])


options_strategy = st.builds(
    Options,
    mlm_probability=st.floats(0.01, 0.95),
    mask_replace_prob=st.floats(0.0, 0.8),
    random_replace_prob=st.floats(0.0, 0.2),
    whole_word_mask=st.booleans(),
    exact_count=st.booleans(),
)
seeds = st.integers(0, 2**32 - 1)


def predicted(batch: dict) -> list[np.ndarray]:
    """The predicted positions of each row."""
    return [places[weights > 0] for places, weights in zip(batch["mlm_positions"], batch["mlm_weights"], strict=True)]


@settings(max_examples=200, deadline=None)
@given(batches(), options_strategy, seeds)
def test_corruption(batch, options, seed):
    original = {name: array.copy() for name, array in batch.items()}
    corrupted = corrupt(options, batch, seed)
    assert all(np.array_equal(batch[name], array) for name, array in original.items()), "the input was changed"
    assert np.array_equal(corrupted["attention_mask"], original["attention_mask"])
    room = max_predictions(original["input_ids"].shape[1], options)
    for name, dtype in (("mlm_positions", np.int32), ("mlm_labels", np.int32), ("mlm_weights", np.float32)):
        shape = len(original["input_ids"]), room
        assert corrupted[name].shape == shape and corrupted[name].dtype == dtype, f"{name}: every batch is alike"
    for row, chosen in enumerate(predicted(corrupted)):
        ids, attended = original["input_ids"][row], original["attention_mask"][row]
        assert not np.isin(ids[chosen], VOCABULARY.special_ids).any(), "a special token is to be predicted"
        assert (attended[chosen] == 1).all(), "padding is to be predicted"
        assert (np.diff(chosen) > 0).all(), "positions are not sorted, or one comes twice"
        assert corrupted["mlm_weights"][row].tolist() == [1.0] * len(chosen) + [0.0] * (room - len(chosen))
        labels = corrupted["mlm_labels"][row, : len(chosen)]
        assert np.array_equal(labels, ids[chosen]), "a label is not the original token"
        rest = np.delete(np.arange(len(ids)), chosen)
        assert np.array_equal(corrupted["input_ids"][row, rest], ids[rest]), "a token that is not predicted was changed"

        num_tokens = int(attended.sum())
        maskable = int((~np.isin(ids[:num_tokens], VOCABULARY.special_ids)).sum())
        assert bool(len(chosen)) == bool(maskable), "a row with text has a prediction"
        if options.exact_count:
            budget = max(1, round(options.mlm_probability * num_tokens))
            if options.whole_word_mask:
                assert len(chosen) <= budget, f"{len(chosen)} predicted, more than {budget}"
            else:
                assert len(chosen) == min(budget, maskable), f"{len(chosen)} predicted instead of {budget}"


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


@settings(max_examples=200, deadline=None)
@given(batches(), st.floats(0.01, 0.95), st.booleans(), seeds)
def test_whole_words_are_masked_wholly_or_not_at_all(batch, rate, exact_count, seed):
    options = Options(mlm_probability=rate, whole_word_mask=True, exact_count=exact_count)
    room = max_predictions(batch["input_ids"].shape[1], options)
    for row, places in enumerate(predicted(corrupt(options, batch, seed))):
        chosen, words = set(places.tolist()), words_of(batch["input_ids"][row])
        budget = max(1, round(rate * int(batch["attention_mask"][row].sum()))) if exact_count else room
        assert bool(chosen) == bool(words), "a row with text has a prediction"
        if words and min(map(len, words)) > budget:
            assert not exact_count or len(chosen) == budget, (
                "where no word fits, pieces are chosen, as many as without words"
            )
            continue
        for word in words:
            inside = [position in chosen for position in word]
            assert all(inside) or not any(inside), f"of the word at {word} the pieces {inside} are predicted"
            if exact_count and not any(inside):
                assert len(chosen) + len(word) > budget, f"the word at {word} would have fitted"


@pytest.mark.parametrize("exact_count", [True, False])
def test_a_text_without_spaces_is_masked_by_pieces(exact_count):
    """As Chinese or Thai under byte-level BPE: one word of 126 pieces, of which 15% are to be predicted."""
    batch = repeated([CLS, *[7] * 126, SEP], 400)  # no 7 begins a word
    rows = predicted(corrupt(Options(whole_word_mask=True, exact_count=exact_count), batch))
    counts = np.array([len(row) for row in rows])
    assert (counts == 19).all() if exact_count else abs(counts.mean() - 0.15 * 126) < 5 * 4 / 20
    hits = np.bincount(np.concatenate(rows), minlength=128)[1:-1]
    assert abs(hits - hits.mean()).max() < 5 * hits.mean() ** 0.5, "every piece is as likely"


def test_words_that_fit_are_masked_where_others_are_too_long():
    # A word of 60 pieces, and one of two: 10 tokens may be predicted.
    rows = predicted(corrupt(Options(whole_word_mask=True), repeated([CLS, *[7] * 60, 9, 10, SEP], 50)))
    assert all(row.tolist() == [61, 62] for row in rows)


def test_a_row_of_one_long_word_does_not_change_its_neighbours():
    long, short = [CLS, *[7] * 62, SEP], [CLS, *[9, 10] * 31, SEP]
    both = repeated(short, 2)
    both["input_ids"][0] = long
    alone = {name: array[1:] for name, array in both.items()}
    objective, keys = Objective(Options(whole_word_mask=True), VOCABULARY), row_keys(0, np.arange(2))
    together, single = objective.corrupt(both, keys), objective.corrupt(alone, keys[1:])
    assert all(np.array_equal(together[name][1:], single[name]) for name in single)


def test_words_are_as_likely():
    """30 words of one, two and three pieces in turn, 14 tokens to predict: in random order within the budget."""
    ids = [CLS, *[9, 12, 13, 15, 16, 17] * 10, SEP]
    words = words_of(np.array(ids))
    assert [len(word) for word in words[:3]] == [1, 2, 3]
    rows = predicted(corrupt(Options(mlm_probability=0.22, whole_word_mask=True), repeated(ids, 6000)))
    hits = np.bincount(np.concatenate(rows), minlength=62)[[word[0] for word in words]].reshape(10, 3)
    for size in range(3):  # alike among words of the same size; long ones fit less often
        mean = hits[:, size].mean()
        assert np.abs(hits[:, size] - mean).max() < 5 * mean**0.5, hits
    assert hits[:, 0].mean() > hits[:, 1].mean() > hits[:, 2].mean()


def test_independent_draws_leave_no_text_without_a_prediction():
    """With two tokens at 15%, independent draws would leave 72% of the examples without any."""
    rows = [row.tolist() for row in predicted(corrupt(Options(exact_count=False), repeated([CLS, 6, 7, SEP], 2000)))]
    assert all(rows)
    close(np.mean([len(row) == 2 for row in rows]), 0.15**2, 2000, "both")
    close(np.mean([row == [1] for row in rows]), (1 - 0.15**2) / 2, 2000, "the first alone")


def many(options: Options, count: int = 3000, length: int = 130) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(originals, corrupted ids, numbers of predictions) of many full examples."""
    rng = np.random.default_rng(0)
    corrupted = corrupt(options, stacked([example_of(length, [length - 2], rng) for _ in range(count)]))
    is_predicted = corrupted["mlm_weights"] > 0
    replaced = np.take_along_axis(corrupted["input_ids"], corrupted["mlm_positions"], axis=1)
    return corrupted["mlm_labels"][is_predicted], replaced[is_predicted], is_predicted.sum(axis=1)


def close(share: float, expected: float, trials: int, what: str) -> None:
    deviation = (expected * (1 - expected) / trials) ** 0.5
    assert abs(share - expected) < 5 * deviation + 1e-9, f"{what}: {share:.4f} instead of {expected:.4f}"


@pytest.mark.parametrize("mask, random", [(0.8, 0.1), (0.5, 0.5), (1.0, 0.0), (0.0, 0.0), (0.85, 0.0)])
def test_shares_of_masks_and_random_tokens(mask, random):
    labels, replaced, counts = many(Options(mask_replace_prob=mask, random_replace_prob=random), count=1000)
    assert (counts == round(0.15 * 130)).all(), "special tokens count in the length that the rate is of"
    n, size = len(labels), VOCABULARY.vocab_size
    close((replaced == MASK).mean(), mask + random / size, n, "[MASK]")
    close((replaced == labels).mean(), 1 - mask - random + random / size, n, "unchanged")
    strange = (replaced != MASK) & (replaced != labels)
    close(strange.mean(), random * (size - 2) / size, n, "random token")


def test_random_tokens_come_from_the_whole_vocabulary():
    labels, replaced, _ = many(Options(mask_replace_prob=0.0, random_replace_prob=1.0), count=2000)
    counts = np.bincount(replaced, minlength=VOCABULARY.vocab_size)
    expected = len(labels) / VOCABULARY.vocab_size
    assert len(counts) == VOCABULARY.vocab_size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 59 + 5 * (2 * 59) ** 0.5, f"replacements are not uniform over the vocabulary: {counts}"


def test_every_position_is_as_likely():
    rng = np.random.default_rng(0)
    rows = predicted(corrupt(Options(), stacked([example_of(34, [20, 11], rng) for _ in range(4000)])))
    hits = np.bincount(np.concatenate(rows), minlength=34)
    assert hits[[0, 21, 33]].sum() == 0
    each = 4000 * 5 / 31
    assert np.abs(np.delete(hits, [0, 21, 33]) - each).max() < 5 * each**0.5, f"some places are preferred: {hits}"


@pytest.mark.parametrize("whole_word_mask", [False, True])
def test_coins_choose_the_rate_in_expectation(whole_word_mask):
    _, _, counts = many(Options(exact_count=False, mlm_probability=0.3, whole_word_mask=whole_word_mask))
    spread = counts.std() / len(counts) ** 0.5
    assert counts.std() > 1, "coins give the same count each time"
    # Whole words may be cut off at the most that fits, so a little less is right.
    assert abs(counts.mean() - 0.3 * 128) < 5 * spread + 0.02 * 128 * whole_word_mask, (
        f"{counts.mean():.2f} are predicted"
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"mlm_probability": 0.0},
        {"mlm_probability": 1.0},
        {"mask_replace_prob": -0.1},
        {"mask_replace_prob": 0.9, "random_replace_prob": 0.2},
    ],
)
def test_options_that_cannot_be(bad):
    with pytest.raises(ValueError, match=r"mlm_probability must be above 0 and below 1"):
        Options(**bad)


# ---------------------------------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------------------------------

BATCH, LENGTH = 3, 24
CONFIG = EncoderConfig(
    vocab_size=60, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, max_positions=LENGTH, pooler=False
)


@pytest.fixture(scope="module")
def losses():
    return Losses(Model.build(CONFIG, {"mlm": MaskedLMHead}), {"mlm": Objective(Options(), VOCABULARY)})


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    joined = stacked([example_of(LENGTH, [size], rng) for size in (22, 9, 14)])
    types, weights = np.zeros((BATCH, LENGTH), np.int32), np.ones(BATCH, np.float32)
    return corrupt(Options(), joined) | {"token_type_ids": types, "example_weights": weights}


def test_loss_equals_that_of_full_logits(losses, batch, random_params):
    params = random_params(losses.model)
    model = losses.model.bind(params)

    @jax.jit
    def full_logits():
        output = model.encoder(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        return model.heads["mlm"](output.last_hidden_state, model.encoder.embeddings.tokens.embedding[...])

    logits = full_logits()
    expected, correct, total = 0.0, 0, 0
    for row in range(BATCH):
        for position, label, weight in zip(
            *(batch[f"mlm_{name}"][row] for name in ("positions", "labels", "weights")), strict=True
        ):
            if weight:
                own = np.asarray(logits[row, position], np.float64)
                expected += np.log(np.exp(own).sum()) - own[label]
                correct += own.argmax() == label
                total += 1
    loss, metrics, _ = jax.jit(lambda params: losses.compute(params, {}, batch, losses.normalizers(batch), None))(
        params
    )
    assert total == batch["mlm_weights"].sum() < batch["mlm_weights"].size  # the test has padded predictions
    np.testing.assert_allclose(loss, expected / total, rtol=1e-5)
    np.testing.assert_allclose(metrics["mlm/accuracy"], correct / total, rtol=1e-5)


def test_vocabulary_product_is_made_at_masked_positions_only(losses, batch):
    predictions = batch["mlm_positions"].shape[1]
    trace = str(
        jax.make_jaxpr(lambda p: losses.compute(p, {}, batch, losses.normalizers(batch), None)[0])(
            losses.model.abstract
        )
    )
    assert f"[{BATCH},{predictions},60]" in trace or f"[{BATCH * predictions},60]" in trace
    assert f"{LENGTH},60]" not in trace and f"{BATCH * LENGTH},60]" not in trace, "logits are made at every position"


def test_a_batch_without_predictions_has_loss_zero_and_finite_gradients(losses, batch, random_params):
    empty = batch | {"mlm_weights": np.zeros_like(batch["mlm_weights"])}
    params = random_params(losses.model)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda p: losses.compute(p, {}, empty, losses.normalizers(empty), None)[0])
    )(params)
    assert value == 0.0
    assert optax.tree.norm(gradient) == 0.0
