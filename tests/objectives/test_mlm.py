"""Masked language modelling: what becomes of the chosen tokens, and the loss at the masked positions."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.objectives.losses import Losses
from bert_jax.objectives.mlm import Objective, Options
from bert_jax.random_numbers import row_keys
from tests.objectives.masked_rows import MASK, VOCABULARY, close, corrupt, example_of, many, stacked


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


def test_random_tokens_of_text_are_never_special():
    """fairseq's random tokens; the others are as likely as each other."""
    options = Options(mask_replace_prob=0.0, random_replace_prob=1.0, random_from="text")
    labels, replaced, _ = many(options, count=2000)
    counts = np.bincount(replaced, minlength=VOCABULARY.vocab_size)
    is_text = np.delete(counts, VOCABULARY.special_ids)
    assert counts[VOCABULARY.special_ids].sum() == 0
    expected = len(labels) / len(is_text)
    assert np.abs(is_text - expected).max() < 5 * expected**0.5, counts


def test_held_out_masks_may_be_the_standard_ones():
    training = Options(weight=0.5, masking="span", mlm_probability=0.4, mask_replace_prob=1.0, random_replace_prob=0.0)
    objective = Objective(training, VOCABULARY)
    assert objective.for_evaluation() is objective
    objective = Objective(dataclasses.replace(training, standard_evaluation=True), VOCABULARY)
    batch = stacked([example_of(64, [62], np.random.default_rng(0))])
    keys = row_keys(0, np.arange(1))
    corrupted = objective.for_evaluation().corrupt(batch, keys)
    expected = Objective(Options(), VOCABULARY).corrupt(batch, keys)
    assert all(np.array_equal(corrupted[name], expected[name]) for name in expected)
    assert corrupted["mlm_positions"].shape == (1, 10) and objective.for_evaluation().options.weight == 0.5


@pytest.mark.parametrize(
    "bad, message",
    [
        (
            {"mask_replace_prob": -0.1},
            "mask_replace_prob=-0.1 and random_replace_prob=0.1 must be at least 0, with a sum",
        ),
        ({"mask_replace_prob": 0.9, "random_replace_prob": 0.2}, "mask_replace_prob=0.9 and random_replace_prob=0.2 "),
        ({"random_from": "words"}, "random_from='words' is not one of vocabulary, text"),
        ({"mlm_probability": 1.0}, "mlm_probability=1.0 must be above 0 and below 1"),
    ],
)
def test_options_that_cannot_be(bad, message):
    with pytest.raises(ValueError, match=f"^{message}"):
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
