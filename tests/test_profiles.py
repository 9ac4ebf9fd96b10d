"""The recipes of the families have the values of the originals, and mask as these do: statistics of many rows.

Sources of the values: docs/recipes.md.
"""

import dataclasses

import numpy as np
import pytest

from bert_jax.config import from_dict
from bert_jax.data.pretraining.stream import training_stream
from bert_jax.objectives import base as objectives_lib
from bert_jax.tasks.pretraining import Config
from tests.objectives.masked_rows import VOCABULARY, example_of, stacked
from tests.test_configs import ROOT, load

ROWS, LENGTH = 2000, 128
DEVIATIONS = 5  # bound of every statistic, in standard deviations of its mean

# Recipe, objectives, optimizer, learning rate, b2, weight decay, clipping, warm-up, schedule.
TRAINING = {
    "bert_base": (("mlm", "nsp"), "bert_adam", 1e-4, 0.999, 0.01, 1.0, 10_000, "linear_from_start"),
    "roberta": (("mlm",), "adamw", 6e-4, 0.98, 0.01, 0.0, 24_000, "linear"),
    "albert": (("mlm", "sop"), "lamb", 1.76e-3, 0.999, 0.01, 1.0, 3125, "linear_from_start"),
    "electra": (("rtd",), "bert_adam", 5e-4, 0.999, 0.01, 1.0, 10_000, "linear_from_start"),
    "distilbert": (("distillation",), "adamw", 5e-4, 0.98, 0.0, 5.0, 300, "linear"),
    "modernbert": (("mlm",), "stable_adamw", 8e-4, 0.98, 1e-5, 0.0, 3200, "constant"),
}
# Predicted share of 128 tokens, special ones counted in; shares masked, replaced at random and kept.
MASKS = {
    "bert_base": (19 / 128, 0.8, 0.1, 0.1),
    "roberta": (0.15, 0.8, 0.1, 0.1),
    "albert": (19 / 128, 0.8, 0.1, 0.1),
    "electra": (19 / 128, 0.85, 0.0, 0.15),
    "distilbert": (19 / 128, 0.8, 0.1, 0.1),
    "modernbert": (38 / 128, 0.8, 0.1, 0.1),
}


@pytest.fixture
def recipe(monkeypatch):
    def make(name: str) -> Config:
        config = load(ROOT / "configs" / f"{name}.py", monkeypatch).get_config()
        config.options.distillation.folder = "teacher"
        return from_dict(Config(), config)

    return make


@pytest.mark.parametrize("name", TRAINING)
def test_objectives_and_optimizer(recipe, name):
    config = recipe(name)
    of = config.optimizer
    adam = (of.name, of.learning_rate, of.b2, of.weight_decay, of.clip_norm)
    assert (config.objectives, *adam, of.warmup_steps, of.schedule) == TRAINING[name]
    assert of.epsilon == 1e-6 and of.b1 == 0.9
    assert bool(of.no_decay) == (name == "roberta"), "RoBERTa decays all parameters, the others matrices alone"


def test_weights_of_losses(recipe):
    rtd, distillation = recipe("electra").options["rtd"], recipe("distilbert").options["distillation"]
    assert (rtd.discriminator_weight, rtd.generator_weight, rtd.generator_size) == (50.0, 1.0, 0.25)
    weights = (distillation.kl_weight, distillation.mlm_weight, distillation.cosine_weight, distillation.temperature)
    assert weights == (5.0, 2.0, 1.0, 2.0)
    assert recipe("distilbert").init_layers == (0, 2, 4, 7, 9, 11)


def corrupted(config: Config) -> tuple[dict, dict]:
    """Full rows of two segments, and what the objectives of a recipe make of them."""
    rng = np.random.default_rng(0)
    first = rng.integers(20, LENGTH - 23, ROWS)
    examples = [example_of(LENGTH, [size, LENGTH - 3 - size], rng) for size in first]
    batch = stacked(examples) | {"progress": np.zeros(ROWS)}
    batch |= dict.fromkeys(("is_other_document", "is_swapped"), np.zeros(ROWS, bool))
    keys = rng.integers(0, 2**63, ROWS, dtype=np.uint64)
    result = batch
    for objective in objectives_lib.load(config.objectives, config.options, VOCABULARY).values():
        result = objective.corrupt(result, keys)
    return batch, result


@pytest.mark.parametrize("name", MASKS)
def test_masks(recipe, name):
    original, result = corrupted(recipe(name))
    share, *shares = MASKS[name]
    weights = result["mlm_weights"]
    counts = weights.sum(axis=1)
    if name == "roberta":  # int(19.2 + U)
        assert set(counts) == {19.0, 20.0}
        assert abs(counts.mean() / LENGTH - share) < DEVIATIONS * counts.std() / LENGTH / ROWS**0.5
    else:
        assert (counts == round(share * LENGTH)).all()
    rows, slots = np.nonzero(weights)
    places, labels = result["mlm_positions"][rows, slots], result["mlm_labels"][rows, slots]
    np.testing.assert_array_equal(labels, original["input_ids"][rows, places])
    read = result["input_ids"][rows, places]
    masked, kept = read == VOCABULARY.mask_id, (read == labels) & (labels != VOCABULARY.mask_id)
    # A random token is the original one, or [MASK], once in as many as there are.
    random_share, size = shares[1], VOCABULARY.vocab_size
    expected = shares[0] + random_share / size, random_share * (1 - 2 / size), shares[2] + random_share / size
    found = masked.mean(), (~masked & ~kept).mean(), kept.mean()
    if name == "roberta":  # never a special token
        text = size - len(VOCABULARY.special_ids)
        expected = shares[0], random_share * (1 - 1 / text), shares[2] + random_share / text
    for value, wanted in zip(found, expected, strict=True):
        assert abs(value - wanted) <= DEVIATIONS * (wanted * (1 - wanted) / len(read)) ** 0.5 + 1e-12
    special = np.isin(labels, VOCABULARY.special_ids).mean()
    expected_special = 3 / LENGTH if name == "roberta" else 0.0
    assert abs(special - expected_special) <= DEVIATIONS * (expected_special / len(read)) ** 0.5


def test_albert_masks_whole_words_in_grams(recipe):
    """Neighbours of a predicted word are predicted more often than others, and no word in part."""
    original, result = corrupted(recipe("albert"))
    predicted = np.zeros((ROWS, LENGTH), bool)
    rows, slots = np.nonzero(result["mlm_weights"])
    predicted[rows, result["mlm_positions"][rows, slots]] = True
    special = np.isin(original["input_ids"], VOCABULARY.special_ids)
    continues = ~VOCABULARY.word_starts[original["input_ids"]] & ~special
    inside = continues[:, 1:] & ~special[:, :-1]
    cut = (predicted[:, 1:] != predicted[:, :-1]) & inside
    assert cut.sum() / predicted.sum() < 0.001, "pieces alone only where no whole word fits into the budget"
    after_word = predicted[:, :-1] & ~continues[:, 1:] & ~special[:, 1:]
    share = predicted[:, 1:][after_word].mean()
    assert share > 0.3, "independent words would have the share of all, 0.15"


def test_pairs_of_bert(recipe, corpus_dir, tokenizer):
    """More than half of the next segments are random: a chunk of one segment gets a random one. Short pairs are 10%."""
    config = recipe("bert_base")
    data = dataclasses.replace(config.data, corpus=str(corpus_dir), sequence_length=64)
    objectives = objectives_lib.load(config.objectives, config.options, tokenizer)
    batch = training_stream(data, tokenizer, objectives, 0).batch(np.arange(ROWS))
    share = batch["nsp_labels"].mean()
    assert 0.5 + 3 * 0.5 / ROWS**0.5 < share < 0.75
    lengths = batch["attention_mask"].sum(axis=1)
    whole = dataclasses.replace(data, short_seq_prob=0.0)
    not_cut = training_stream(whole, tokenizer, objectives, 0).batch(np.arange(ROWS))["attention_mask"].sum(axis=1)
    shortened = (lengths < not_cut).mean()  # a target of 2 to 60 tokens, rarely above what the documents have
    assert 0.06 < shortened < 0.1 + DEVIATIONS * (0.09 / ROWS) ** 0.5
    assert (batch["mlm_weights"].sum(axis=1) == np.maximum(1, np.round(0.15 * lengths))).all()


def test_swaps_of_albert(recipe, corpus_dir, tokenizer):
    config = recipe("albert")
    data = dataclasses.replace(config.data, corpus=str(corpus_dir), sequence_length=64)
    objectives = objectives_lib.load(config.objectives, config.options, tokenizer)
    batch = training_stream(data, tokenizer, objectives, 0).batch(np.arange(ROWS))
    assert abs(batch["sop_labels"].mean() - 0.5) < DEVIATIONS * 0.5 / ROWS**0.5
